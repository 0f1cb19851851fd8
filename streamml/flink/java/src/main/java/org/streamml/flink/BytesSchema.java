package org.streamml.flink;

import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.types.Row;

/** Records of a topic as they are. */
public final class BytesSchema implements DeserializationSchema<byte[]> {
    private static final long serialVersionUID = 1L;

    @Override
    public byte[] deserialize(byte[] message) {
        return message == null ? new byte[0] : message;
    }

    @Override
    public boolean isEndOfStream(byte[] next) {
        return false;
    }

    @Override
    public TypeInformation<byte[]> getProducedType() {
        return PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO;
    }

    /** One field of a row of bytes: 0 the key, 1 the record. */
    public static final class Part implements SerializationSchema<Row> {
        private static final long serialVersionUID = 1L;

        private final int field;

        public Part(int field) {
            this.field = field;
        }

        @Override
        public byte[] serialize(Row element) {
            return (byte[]) element.getField(field);
        }
    }
}
