package org.streamml.flink;

import java.nio.charset.StandardCharsets;

/** MessagePack of a key, byte for byte what Python's {@code encode_key} gives, so both sides compute the same key group. */
final class KeyEncoding {
    private KeyEncoding() {}

    static byte[] bytes(byte[] key) {
        int n = key.length;
        if (n < 256) {
            return join(key, 0xc4, n);
        }
        if (n < 65536) {
            return join(key, 0xc5, n >> 8, n);
        }
        return join(key, 0xc6, n >> 24, n >> 16, n >> 8, n);
    }

    static byte[] text(String key) {
        return text(key.getBytes(StandardCharsets.UTF_8));
    }

    static byte[] text(byte[] utf8) {
        int n = utf8.length;
        if (n < 32) {
            return join(utf8, 0xa0 | n);
        }
        if (n < 256) {
            return join(utf8, 0xd9, n);
        }
        if (n < 65536) {
            return join(utf8, 0xda, n >> 8, n);
        }
        return join(utf8, 0xdb, n >> 24, n >> 16, n >> 8, n);
    }

    static byte[] integer(long v) {
        if (v >= 0) {
            return v < 128 ? tail(v, 1, -1)
                    : v < 256 ? tail(v, 1, 0xcc) : v < 65536 ? tail(v, 2, 0xcd) : v < 1L << 32 ? tail(v, 4, 0xce) : tail(v, 8, 0xcf);
        }
        return v >= -32 ? tail(v, 1, -1)
                : v >= -128 ? tail(v, 1, 0xd0) : v >= -32768 ? tail(v, 2, 0xd1) : v >= -(1L << 31) ? tail(v, 4, 0xd2) : tail(v, 8, 0xd3);
    }

    private static byte[] join(byte[] body, int... head) {
        byte[] out = new byte[head.length + body.length];
        for (int i = 0; i < head.length; i++) {
            out[i] = (byte) head[i];
        }
        System.arraycopy(body, 0, out, head.length, body.length);
        return out;
    }

    private static byte[] tail(long value, int width, int head) {
        int at = head < 0 ? 0 : 1;
        byte[] out = new byte[at + width];
        if (at == 1) {
            out[0] = (byte) head;
        }
        for (int i = 0; i < width; i++) {
            out[at + i] = (byte) (value >> 8 * (width - 1 - i));
        }
        return out;
    }
}
