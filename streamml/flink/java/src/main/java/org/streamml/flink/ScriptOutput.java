package org.streamml.flink;

import java.io.BufferedOutputStream;
import java.io.DataOutputStream;
import java.io.FileOutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/** Writes what a stage gave back to a file of its subtask, each array with its length; at the end of the input it makes another file (test kit). */
public class ScriptOutput extends AbstractStreamOperator<byte[]> implements OneInputStreamOperator<byte[], byte[]> {
    private static final long serialVersionUID = 1L;

    private final String path;
    private transient DataOutputStream out;

    public ScriptOutput(String path) {
        this.path = path;
    }

    @Override
    public void open() throws Exception {
        super.open();
        int subtask = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
        out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(path + "." + subtask)));
    }

    @Override
    public void processElement(StreamRecord<byte[]> element) throws Exception {
        out.writeInt(element.getValue().length);
        out.write(element.getValue());
    }

    @Override
    public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
        out.flush();
        super.prepareSnapshotPreBarrier(checkpointId);
    }

    @Override
    public void finish() throws Exception {
        out.flush();
        Files.createFile(Path.of(path + ".finished." + getRuntimeContext().getTaskInfo().getIndexOfThisSubtask()));
        super.finish();
    }

    @Override
    public void close() throws Exception {
        if (out != null) {
            out.close();
        }
        super.close();
    }
}
