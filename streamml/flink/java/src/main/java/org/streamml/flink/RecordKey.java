package org.streamml.flink;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** A record and the key that its transport carried, in one array: length of the key (4 bytes, -1: none), key, record. */
final class RecordKey {
    private RecordKey() {}

    static byte[] join(byte[] key, byte[] record) {
        int keyLength = key == null ? 0 : key.length;
        int length = record == null ? 0 : record.length;
        ByteBuffer out = ByteBuffer.allocate(4 + keyLength + length).putInt(key == null ? -1 : keyLength);
        if (key != null) {
            out.put(key);
        }
        if (record != null) {
            out.put(record);
        }
        return out.array();
    }

    /** Returns the record alone. */
    static byte[] record(byte[] joined) {
        return Arrays.copyOfRange(joined, 4 + Math.max(ByteBuffer.wrap(joined).getInt(), 0), joined.length);
    }

    /** Returns the encoded key, as Python's {@code record_key} has it: text where it is UTF-8, else bytes; null for none. */
    static byte[] key(byte[] joined) {
        int length = ByteBuffer.wrap(joined).getInt();
        if (length < 0) {
            return null;
        }
        try {
            StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(joined, 4, length));
        } catch (CharacterCodingException notText) {
            return KeyEncoding.bytes(Arrays.copyOfRange(joined, 4, 4 + length));
        }
        return KeyEncoding.text(Arrays.copyOfRange(joined, 4, 4 + length));
    }
}
