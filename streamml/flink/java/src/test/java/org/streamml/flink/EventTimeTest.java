package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.junit.jupiter.api.Test;

class EventTimeTest {
    private static long time(String json, double unit) {
        return new EventTime.Assigner(new JsonField("t"), BigDecimal.valueOf(unit), false)
                .extractTimestamp(json.getBytes(StandardCharsets.UTF_8), 0);
    }

    @Test
    void timesOfAllUnitsAreRead() {
        assertEquals(1500, time("{\"t\":1500}", 1));
        assertEquals(1500, time("{\"t\":1.5}", 1000));
        assertEquals(1, time("{\"t\":1500}", 0.001));
        assertEquals(1000, time("{\"t\":\"1970-01-01T01:00:01+01:00\"}", 1));
        for (String json : new String[] {"{}", "x", "{\"t\":null}", "{\"t\":\"soon\"}", "{\"t\":\"\"}", "{\"t\":[1]}", "{\"t\":"}) {
            assertEquals(Long.MIN_VALUE, time(json, 1), json);
        }
    }

    private static List<Long> watermarks(long bound, long maxJump, long... times) {
        EventTime.Generator generator = new EventTime.Generator(bound, maxJump, 1000);
        List<Long> found = new ArrayList<>();
        WatermarkOutput output = new WatermarkOutput() {
            @Override
            public void emitWatermark(Watermark mark) {
                found.add(mark.getTimestamp());
            }

            @Override
            public void markIdle() {}

            @Override
            public void markActive() {}
        };
        for (long time : times) {
            generator.onEvent(null, time, output);
            generator.onPeriodicEmit(output);
        }
        return found;
    }

    @Test
    void theFirstEventAndALoneJumpMoveNothing() {
        // As streamml.watermarks: t.observe("p", [10, 12, 9999, 20]) with bound 5 and max_jump 100 stands at 15; Flink's is one less.
        assertEquals(List.of(6L, 14L), watermarks(5, 100, 10, 12, 9999, 20));
    }

    @Test
    void aJumpThatASecondEventAgreesWithMovesIt() {
        assertEquals(List.of(6L, 9993L), watermarks(5, 100, 10, 12, 9990, 9999));
    }

    @Test
    void aTimeFarInTheFutureCountsForNothing() {
        long far = System.currentTimeMillis() + 1_000_000;
        assertEquals(List.of(6L), watermarks(5, 100, 10, 12, far, far));
        assertEquals(List.of(6L), watermarks(5, 100, 10, 12, Long.MIN_VALUE));
    }
}
