package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.java.typeutils.GenericTypeInfo;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.util.OneInputStreamOperatorTestHarness;
import org.apache.flink.types.Row;
import org.apache.flink.util.OutputTag;
import org.junit.jupiter.api.Test;

class UnbatchOperatorTest {
    private static final OutputTag<Object> LATE = new OutputTag<>("late", new GenericTypeInfo<>(Object.class));

    /** Two records: "abc" with key "k" at time 7, and "" without key or time. */
    private static byte[] batch(int output) {
        return ByteBuffer.allocate(1 + 4 + 8 + 8 + 16 + 4)
                .put((byte) output).putInt(2).putInt(3).putInt(0).putInt(1).putInt(-1).putLong(7).putLong(Long.MIN_VALUE)
                .put(new byte[] {'a', 'b', 'c', 'k'}).array();
    }

    @SuppressWarnings("unchecked")
    private static List<StreamRecord<Object>> run(UnbatchOperator.Form form) throws Exception {
        try (OneInputStreamOperatorTestHarness<byte[], Object> harness =
                new OneInputStreamOperatorTestHarness<>(new UnbatchOperator(form, UnbatchOperator.Form.TEXT, List.of(LATE)))) {
            harness.open();
            harness.processElement(batch(0), 100);
            assertNull(harness.getSideOutput(LATE));
            List<StreamRecord<Object>> found = new ArrayList<>();
            harness.getOutput().forEach(each -> found.add((StreamRecord<Object>) each));
            assertEquals(2, found.size());
            return found;
        }
    }

    @Test
    void recordsComeOutInOrderWithTheirOwnTimes() throws Exception {
        List<StreamRecord<Object>> found = run(UnbatchOperator.Form.TEXT);
        assertEquals("abc", found.get(0).getValue());
        assertEquals(7, found.get(0).getTimestamp());
        assertEquals("", found.get(1).getValue());
        assertFalse(found.get(1).hasTimestamp());
    }

    @Test
    void aBatchOfASideOutputGoesThereOnly() throws Exception {
        try (OneInputStreamOperatorTestHarness<byte[], Object> harness = new OneInputStreamOperatorTestHarness<>(
                new UnbatchOperator(UnbatchOperator.Form.KEYED, UnbatchOperator.Form.TEXT, List.of(LATE)))) {
            harness.open();
            harness.processElement(batch(1), 100);
            assertEquals(0, harness.getOutput().size());
            assertEquals("abc", harness.getSideOutput(LATE).peek().getValue());
        }
    }

    @Test
    void bytesAndKeysAreThoseThatPythonWrote() throws Exception {
        assertArrayEquals(new byte[] {'a', 'b', 'c'}, (byte[]) run(UnbatchOperator.Form.BYTES).get(0).getValue());
        List<StreamRecord<Object>> found = run(UnbatchOperator.Form.KEYED);
        assertArrayEquals(new byte[] {'k'}, (byte[]) ((Row) found.get(0).getValue()).getField(0));
        assertNull(((Row) found.get(1).getValue()).getField(0));
    }
}
