package org.streamml.flink;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.types.Row;
import org.apache.flink.util.OutputTag;

/**
 * Splits what Python emitted for a batch into records again, each with its own event time, and sends them to the main output or to a side output.
 *
 * <p>A batch is: number of its output (1 byte, 0: main, 1: the first side output), number of records n (4 bytes), n lengths of records (4 bytes each), n lengths of keys (-1: none), n event times (8 bytes,
 * Long.MIN_VALUE: none), the records, the keys; big-endian. Output {@link PythonMetrics#OUTPUT} holds no records but figures.
 */
public class UnbatchOperator extends AbstractStreamOperator<Object> implements OneInputStreamOperator<byte[], Object> {
    private static final long serialVersionUID = 1L;

    /** What a record becomes. */
    public enum Form {
        /** A {@code byte[]}. */
        BYTES,
        /** A {@code String}. */
        TEXT,
        /** A {@code Row(key or null, record)} of two {@code byte[]}. */
        KEYED
    }

    private final Form mainForm;
    private final Form sideForm;
    private final List<OutputTag<Object>> sides;

    private transient PythonMetrics metrics;

    /** @param sides tags of the side outputs, in the order of their numbers. */
    public UnbatchOperator(Form mainForm, Form sideForm, List<OutputTag<Object>> sides) {
        this.mainForm = mainForm;
        this.sideForm = sideForm;
        this.sides = new ArrayList<>(sides);
    }

    @Override
    public void open() throws Exception {
        super.open();
        metrics = new PythonMetrics(getMetricGroup());
    }

    @Override
    public void processElement(StreamRecord<byte[]> element) {
        ByteBuffer in = ByteBuffer.wrap(element.getValue());
        int number = in.get();
        if (number == PythonMetrics.OUTPUT) {
            metrics.update(element.getValue());
            return;
        }
        OutputTag<Object> side = number == 0 ? null : sides.get(number - 1);
        Form form = side == null ? mainForm : sideForm;
        int count = in.getInt();
        int keyLengths = 5 + 4 * count;
        int times = keyLengths + 4 * count;
        int at = times + 8 * count;
        int keyAt = at;
        for (int i = 0; i < count; i++) {
            keyAt += in.getInt(5 + 4 * i);
        }
        byte[] all = in.array();
        for (int i = 0; i < count; i++) {
            int length = in.getInt(5 + 4 * i);
            int keyLength = in.getInt(keyLengths + 4 * i);
            Object value;
            if (form == Form.TEXT) {
                value = new String(all, at, length, StandardCharsets.UTF_8);
            } else {
                byte[] record = new byte[length];
                System.arraycopy(all, at, record, 0, length);
                value = record;
                if (form == Form.KEYED) {
                    byte[] key = null;
                    if (keyLength >= 0) {
                        key = new byte[keyLength];
                        System.arraycopy(all, keyAt, key, 0, keyLength);
                    }
                    value = Row.of(key, record);
                }
            }
            at += length;
            keyAt += Math.max(keyLength, 0);
            long time = in.getLong(times + 8 * i);
            StreamRecord<Object> record = time == Long.MIN_VALUE ? new StreamRecord<>(value) : new StreamRecord<>(value, time);
            if (side == null) {
                output.collect(record);
            } else {
                output.collect(side, record);
            }
        }
    }
}
