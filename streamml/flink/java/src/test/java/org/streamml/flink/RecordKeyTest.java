package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import org.junit.jupiter.api.Test;

class RecordKeyTest {
    private static final byte[] JSON = "{\"t\":7}".getBytes(StandardCharsets.UTF_8);

    @Test
    void textIsAKeyOfTextAndOtherBytesAreAKeyOfBytes() {
        byte[] text = RecordKey.join("cä".getBytes(StandardCharsets.UTF_8), JSON);
        assertArrayEquals(KeyEncoding.text("cä"), RecordKey.key(text));
        assertArrayEquals(new byte[] {(byte) 0xc4, 2, (byte) 0xff, 1}, RecordKey.key(RecordKey.join(new byte[] {-1, 1}, JSON)));
        // A surrogate in three bytes is no UTF-8, in Python neither.
        assertEquals((byte) 0xc4, RecordKey.key(RecordKey.join(new byte[] {(byte) 0xed, (byte) 0xa0, (byte) 0x80}, JSON))[0]);
        assertArrayEquals(KeyEncoding.text(""), RecordKey.key(RecordKey.join(new byte[0], JSON)));
        assertNull(RecordKey.key(RecordKey.join(null, JSON)));
    }

    @Test
    void theRecordIsWhatItWasAndItsTimeIsFound() {
        for (byte[] key : new byte[][] {null, {}, {1, 2, 3}}) {
            byte[] joined = RecordKey.join(key, JSON);
            assertArrayEquals(JSON, RecordKey.record(joined));
            assertEquals(7, new EventTime.Assigner(new JsonField("t"), BigDecimal.ONE, true).extractTimestamp(joined, 0));
        }
        assertArrayEquals(new byte[0], RecordKey.record(RecordKey.join(new byte[] {1}, null)));
    }
}
