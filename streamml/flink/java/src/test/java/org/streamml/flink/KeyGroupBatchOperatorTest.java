package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.java.typeutils.GenericTypeInfo;
import org.apache.flink.runtime.checkpoint.OperatorSubtaskState;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.util.AbstractStreamOperatorTestHarness;
import org.apache.flink.streaming.util.OneInputStreamOperatorTestHarness;
import org.apache.flink.types.Row;
import org.junit.jupiter.api.Test;

class KeyGroupBatchOperatorTest {
    private static final int[] NUMBERS = KeyGroups.numbers(4, 4);

    private static KeyGroupBatchOperator operator(int maxCount, int maxBytes) {
        return new KeyGroupBatchOperator(KeyReader.jsonField("k"), NUMBERS, maxCount, maxBytes, 50);
    }

    private static OneInputStreamOperatorTestHarness<Object, Row> harness(KeyGroupBatchOperator operator) throws Exception {
        OneInputStreamOperatorTestHarness<Object, Row> harness = new OneInputStreamOperatorTestHarness<>(operator);
        harness.setup(new GenericTypeInfo<>(Row.class).createSerializer(harness.getExecutionConfig().getSerializerConfig()));
        return harness;
    }

    private static OneInputStreamOperatorTestHarness<Object, Row> opened(int maxCount, int maxBytes) throws Exception {
        OneInputStreamOperatorTestHarness<Object, Row> harness = harness(operator(maxCount, maxBytes));
        harness.open();
        return harness;
    }

    private static Object event(String key, int n) {
        return ("{\"n\":" + n + ",\"k\":\"" + key + "\"}").getBytes(StandardCharsets.UTF_8);
    }

    /** Returns what came out as text: "number:record|record" for a batch, "W5" for a watermark. */
    private static List<String> out(AbstractStreamOperatorTestHarness<Row> harness) {
        List<String> found = new ArrayList<>();
        for (Object each : harness.getOutput()) {
            if (each instanceof Watermark) {
                found.add("W" + ((Watermark) each).getTimestamp());
            } else if (each instanceof StreamRecord) {
                Row outer = (Row) ((StreamRecord<?>) each).getValue();
                Row inner = (Row) outer.getField(1);
                ByteBuffer in = ByteBuffer.wrap((byte[]) inner.getField(0));
                int count = (int) inner.getField(1);
                StringBuilder text = new StringBuilder(outer.getField(0) + ":");
                int at = 12 * count;
                for (int i = 0; i < count; i++) {
                    long before = in.getLong(4 * count + 8 * i);
                    text.append(i > 0 ? "|" : "").append(before > Long.MIN_VALUE ? before + "@" : "").append(new String(in.array(), at, in.getInt(4 * i), StandardCharsets.UTF_8));
                    at += in.getInt(4 * i);
                }
                assertEquals(in.array().length, at);
                found.add(text.toString());
            }
        }
        harness.getOutput().clear();
        return found;
    }

    private static String number(String key) {
        return NUMBERS[KeyGroups.of(KeyEncoding.text(key), 4)] + ":";
    }

    @Test
    void aFullGroupIsEmittedAndTheOthersGoOnWaiting() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(2, 1 << 20)) {
            harness.processElement(event("a", 1), 1);
            harness.processElement(event("other", 2), 1);
            assertTrue(out(harness).isEmpty());
            harness.processElement(event("a", 3), 1);
            assertEquals(List.of(number("a") + "{\"n\":1,\"k\":\"a\"}|{\"n\":3,\"k\":\"a\"}"), out(harness));
            harness.prepareSnapshotPreBarrier(1);
            assertEquals(List.of(number("other") + "{\"n\":2,\"k\":\"other\"}"), out(harness));
        }
    }

    @Test
    void bytesFillAGroupToo() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 30)) {
            harness.processElement(event("a", 1), 1);
            assertTrue(out(harness).isEmpty());
            harness.processElement(event("a", 2), 1);
            assertEquals(1, out(harness).size());
        }
    }

    @Test
    void nothingWaitsLongerThanTheLatencyTarget() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 1 << 20)) {
            harness.setProcessingTime(100);
            harness.processElement(event("a", 1), 1);
            harness.setProcessingTime(149);
            harness.processElement(event("b", 2), 1);
            assertTrue(out(harness).isEmpty());
            harness.setProcessingTime(150);
            assertEquals(2, out(harness).size());
            harness.processElement(event("a", 3), 1);
            harness.setProcessingTime(200);
            assertEquals(1, out(harness).size());
        }
    }

    @Test
    void recordsCarryTheWatermarkBeforeThemAndGoAheadOfTheLastOne() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 1 << 20)) {
            harness.setProcessingTime(100);
            harness.processElement(event("a", 1), 1);
            harness.processWatermark(5);
            harness.processElement(event("a", 2), 6);
            harness.processWatermark(3);
            harness.processWatermark(7);
            assertTrue(out(harness).isEmpty());
            harness.setProcessingTime(150);
            assertEquals(List.of(number("a") + "{\"n\":1,\"k\":\"a\"}|5@{\"n\":2,\"k\":\"a\"}", "W7"), out(harness));
            harness.processWatermark(9);
            harness.setProcessingTime(200);
            assertEquals(List.of("W9"), out(harness));
        }
    }

    @Test
    void theLastWatermarkAndABarrierWaitForNothing() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 1 << 20)) {
            harness.processElement(event("a", 1), 1);
            harness.processWatermark(5);
            harness.prepareSnapshotPreBarrier(1);
            assertEquals(List.of(number("a") + "{\"n\":1,\"k\":\"a\"}", "W5"), out(harness));
            harness.processWatermark(Long.MAX_VALUE);
            assertEquals(List.of("W" + Long.MAX_VALUE), out(harness));
        }
    }

    @Test
    void nothingWaitsWhenABarrierPassesOrTheInputEnds() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 1 << 20)) {
            harness.processElement(event("a", 1), 1);
            harness.prepareSnapshotPreBarrier(1);
            assertEquals(1, out(harness).size());
            harness.processElement(event("a", 2), 1);
            harness.endInput();
            assertEquals(1, out(harness).size());
        }
    }

    @Test
    void orderWithinAKeyIsKept() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(3, 1 << 20)) {
            for (int n = 0; n < 100; n++) {
                harness.processElement(event("k" + n % 7, n), 1);
                if (n % 11 == 0) {
                    harness.processWatermark(n);
                }
            }
            harness.endInput();
            List<String> records = new ArrayList<>();
            for (String batch : out(harness)) {
                if (!batch.startsWith("W")) {
                    for (String record : batch.substring(batch.indexOf(':') + 1).split("\\|")) {
                        records.add(record.substring(record.indexOf('{')));
                    }
                }
            }
            assertEquals(100, records.size());
            for (int key = 0; key < 7; key++) {
                int last = -1;
                for (String record : records) {
                    if (record.endsWith("\"k" + key + "\"}")) {
                        int n = Integer.parseInt(record.substring(5, record.indexOf(',')));
                        assertTrue(n > last);
                        last = n;
                    }
                }
            }
        }
    }

    @Test
    void aRecordWithoutAKeyIsForwardedForPythonToReject() throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 1 << 20)) {
            harness.processElement("no json".getBytes(StandardCharsets.UTF_8), 1);
            harness.endInput();
            assertTrue(out(harness).get(0).endsWith(":no json"));
        }
    }

    @Test
    void aRestoredJobGoesOnFromTheWatermarkOfTheCheckpoint() throws Exception {
        OperatorSubtaskState first = snapshotAt(40L);
        OperatorSubtaskState second = snapshotAt(30L);
        OperatorSubtaskState both = AbstractStreamOperatorTestHarness.repackageState(first, second);
        OperatorSubtaskState mine = AbstractStreamOperatorTestHarness.repartitionOperatorState(both, 4, 2, 1, 0);
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = harness(operator(1000, 1 << 20))) {
            harness.initializeState(mine);
            harness.open();
            harness.processElement(event("a", 1), 1);
            harness.processWatermark(10);
            harness.processWatermark(35);
            harness.endInput();
            assertEquals(List.of("W30", number("a") + "30@{\"n\":1,\"k\":\"a\"}", "W35"), out(harness));
        }
    }

    @Test
    void theRestoredWatermarkNeedsNoRecordToBeForwarded() throws Exception {
        OperatorSubtaskState state = snapshotAt(40L);
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = harness(operator(1000, 1 << 20))) {
            harness.initializeState(state);
            harness.open();
            harness.setProcessingTime(1);
            assertEquals(List.of("W40"), out(harness));
        }
    }

    private static OperatorSubtaskState snapshotAt(long watermark) throws Exception {
        try (OneInputStreamOperatorTestHarness<Object, Row> harness = opened(1000, 1 << 20)) {
            harness.processWatermark(watermark);
            harness.prepareSnapshotPreBarrier(1);
            return harness.snapshot(1, 1);
        }
    }
}
