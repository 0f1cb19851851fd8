package org.streamml.flink;

import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.flink.streaming.api.functions.source.legacy.SourceFunction;
import org.apache.flink.streaming.api.watermark.Watermark;

/**
 * Plays the script of a test: records and watermarks in order (test kit).
 *
 * <p>A step is {@code E} and a record, {@code W} and a watermark of 8 bytes, or {@code P} and the name of a pause: it makes the file {@code name.reached} in
 * the folder and waits for {@code name.go}, which nothing makes when the job is to be stopped there. After the last step the input ends.
 */
public class ScriptSource implements SourceFunction<byte[]> {
    private static final long serialVersionUID = 1L;

    private final ArrayList<byte[]> steps;
    private final String folder;
    private volatile boolean running = true;

    public ScriptSource(List<byte[]> steps, String folder) {
        this.steps = new ArrayList<>(steps);
        this.folder = folder;
    }

    @Override
    public void run(SourceContext<byte[]> context) throws Exception {
        for (byte[] step : steps) {
            byte[] rest = Arrays.copyOfRange(step, 1, step.length);
            if (step[0] == 'P') {
                pause(new String(rest, java.nio.charset.StandardCharsets.UTF_8));
            }
            if (!running) {
                return;
            }
            synchronized (context.getCheckpointLock()) {
                if (step[0] == 'E') {
                    context.collect(rest);
                } else if (step[0] == 'W') {
                    context.emitWatermark(new Watermark(ByteBuffer.wrap(rest).getLong()));
                }
            }
        }
    }

    private void pause(String name) throws Exception {
        Files.createFile(Path.of(folder, name + ".reached"));
        Path go = Path.of(folder, name + ".go");
        while (running && !Files.exists(go)) {
            Thread.sleep(10);
        }
    }

    @Override
    public void cancel() {
        running = false;
    }
}
