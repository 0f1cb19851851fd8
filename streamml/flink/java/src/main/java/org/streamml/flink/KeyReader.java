package org.streamml.flink;

import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.flink.types.Row;

/** Where the batching operator finds the key and the payload of an input record. */
public interface KeyReader extends Serializable {
    /** Returns the encoded key, null when there is none that can be used. */
    byte[] key(Object value);

    /** Returns the payload that Python decodes. */
    byte[] payload(Object value);

    /** A top-level field of a JSON object, text or whole number; records are bytes or strings. */
    static KeyReader jsonField(String name) {
        return new OfJson(name);
    }

    /** The first field of a row of (encoded key, payload), as a Python key function makes it. */
    static KeyReader ofRow() {
        return new OfRow();
    }

    /** The key that the transport carried, of bytes that {@link RecordKeySchema} made; they are the payload, too. */
    static KeyReader recordKey() {
        return new OfRecord();
    }

    /** No key: all records are alike. */
    static KeyReader none() {
        return new Without();
    }

    /** See {@link #none}. */
    final class Without implements KeyReader {
        @Override
        public byte[] key(Object value) {
            return null;
        }

        @Override
        public byte[] payload(Object value) {
            return bytes(value);
        }
    }

    /** See {@link #jsonField}. */
    final class OfJson implements KeyReader {
        private final JsonField field;

        OfJson(String name) {
            field = new JsonField(name);
        }

        @Override
        public byte[] key(Object value) {
            return field.read(bytes(value));
        }

        @Override
        public byte[] payload(Object value) {
            return bytes(value);
        }
    }

    /** See {@link #recordKey}. */
    final class OfRecord implements KeyReader {
        @Override
        public byte[] key(Object value) {
            return RecordKey.key((byte[]) value);
        }

        @Override
        public byte[] payload(Object value) {
            return (byte[]) value;
        }
    }

    /** See {@link #ofRow}. */
    final class OfRow implements KeyReader {
        @Override
        public byte[] key(Object value) {
            byte[] key = bytes(((Row) value).getField(0));
            return key.length == 0 ? null : key;
        }

        @Override
        public byte[] payload(Object value) {
            return bytes(((Row) value).getField(1));
        }
    }

    /** Returns bytes or text as bytes. */
    static byte[] bytes(Object value) {
        if (value == null) {
            return new byte[0];
        }
        if (value instanceof byte[]) {
            return (byte[]) value;
        }
        if (value instanceof String) {
            return ((String) value).getBytes(StandardCharsets.UTF_8);
        }
        throw new IllegalArgumentException(
                "streamml: wanted records of bytes or strings, got " + value.getClass().getName()
                        + (value instanceof Object[] ? " " + Arrays.toString((Object[]) value) : "")
                        + "; declare the stream's type as Types.STRING() or Types.PRIMITIVE_ARRAY(Types.BYTE())");
    }
}
