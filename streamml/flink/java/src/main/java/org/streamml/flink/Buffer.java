package org.streamml.flink;

import java.nio.ByteBuffer;
import java.util.Arrays;

/** The waiting records of one key group: their lengths, the watermark before each, and their bytes. */
final class Buffer {
    private int[] lengths = new int[16];
    private long[] watermarks = new long[16];
    private byte[] bytes = new byte[2048];
    private int used;
    private int count;
    private long startedAt;

    /** Notes when the first of the waiting records came. */
    void startedAt(long time) {
        startedAt = time;
    }

    long startedAt() {
        return startedAt;
    }

    void add(byte[] record, long watermark) {
        if (count == lengths.length) {
            lengths = Arrays.copyOf(lengths, count * 2);
            watermarks = Arrays.copyOf(watermarks, count * 2);
        }
        if (used + record.length > bytes.length) {
            bytes = Arrays.copyOf(bytes, Math.max(bytes.length * 2, used + record.length));
        }
        watermarks[count] = watermark;
        lengths[count++] = record.length;
        System.arraycopy(record, 0, bytes, used, record.length);
        used += record.length;
    }

    int count() {
        return count;
    }

    int size() {
        return used;
    }

    /** Returns the lengths (4 bytes each), the watermarks (8 bytes), the records, big-endian; and empties the buffer. */
    byte[] take() {
        ByteBuffer out = ByteBuffer.allocate(12 * count + used);
        for (int i = 0; i < count; i++) {
            out.putInt(lengths[i]);
        }
        for (int i = 0; i < count; i++) {
            out.putLong(watermarks[i]);
        }
        out.put(bytes, 0, used);
        used = 0;
        count = 0;
        if (bytes.length > 1 << 20) {
            bytes = new byte[2048];
        }
        return out.array();
    }
}
