package org.streamml.flink;

import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.time.DateTimeException;
import java.time.OffsetDateTime;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;

/**
 * Event time from a top-level JSON field, and the watermark of a partition: the newest time less the bound. One event alone that is more than
 * {@code maxJump} ahead of all before it does not move it; a second one that agrees does.
 */
public final class EventTime {
    private EventTime() {}

    /**
     * Returns the strategy.
     *
     * @param field name of the field in JSON: a number, or an instant as text with its offset
     * @param millisPerUnit milliseconds in one unit of a number
     * @param bound how far an event may lag behind, ms
     * @param maxJump see above, ms
     * @param idleness after how long without records a partition holds nobody back, ms; 0: never
     * @param maxFuture a time further than this ahead of the clock does not count, ms: Python rejects such an event
     * @param keyed records come with their keys, as {@link RecordKey} joins them
     */
    public static WatermarkStrategy<Object> strategy(
            String field, double millisPerUnit, long bound, long maxJump, long idleness, long maxFuture, boolean keyed) {
        JsonField reader = new JsonField(field);
        WatermarkStrategy<Object> made = WatermarkStrategy.<Object>forGenerator(context -> new Generator(bound, maxJump, maxFuture))
                .withTimestampAssigner(context -> new Assigner(reader, BigDecimal.valueOf(millisPerUnit), keyed));
        return idleness > 0 ? made.withIdleness(java.time.Duration.ofMillis(idleness)) : made;
    }

    /** Reads the time; Long.MIN_VALUE where there is none. */
    static final class Assigner implements TimestampAssigner<Object> {
        private final JsonField field;
        private final BigDecimal millisPerUnit;
        private final boolean keyed;

        Assigner(JsonField field, BigDecimal millisPerUnit, boolean keyed) {
            this.field = field;
            this.keyed = keyed;
            this.millisPerUnit = millisPerUnit;
        }

        @Override
        public long extractTimestamp(Object element, long recordTimestamp) {
            byte[] json = keyed ? RecordKey.record((byte[]) element) : KeyReader.bytes(element);
            long place = field.find(json);
            if (place < 0) {
                return Long.MIN_VALUE;
            }
            int start = (int) (place >> 32);
            int stop = (int) place;
            try {
                if (json[start] == '"') {
                    String text = new String(json, start + 1, stop - start - 2, StandardCharsets.UTF_8);
                    return OffsetDateTime.parse(text).toInstant().toEpochMilli();
                }
                String number = new String(json, start, stop - start, StandardCharsets.US_ASCII);
                if (millisPerUnit.compareTo(BigDecimal.ONE) == 0 && number.length() < 19 && number.indexOf('.') < 0) {
                    return Long.parseLong(number);
                }
                return new BigDecimal(number).multiply(millisPerUnit).longValue();
            } catch (NumberFormatException | DateTimeException | ArrayIndexOutOfBoundsException e) {
                return Long.MIN_VALUE;
            }
        }
    }

    /** The watermark of one partition, given out after each event that moves it: the batching operator gathers them. */
    static final class Generator implements WatermarkGenerator<Object> {
        private static final long NONE = Long.MIN_VALUE / 4;

        private final long bound;
        private final long maxJump;
        private final long maxFuture;
        private long newest = NONE;
        private long suspect = NONE;
        private long emitted = NONE;

        Generator(long bound, long maxJump, long maxFuture) {
            this.bound = bound;
            this.maxJump = maxJump;
            this.maxFuture = maxFuture;
        }

        @Override
        public void onEvent(Object event, long time, WatermarkOutput output) {
            if (time <= newest || time > System.currentTimeMillis() + maxFuture) {
                return;
            }
            if (time > newest + maxJump) {
                if (Math.abs(time - suspect) > maxJump) {
                    suspect = time;
                    return;
                }
                time = Math.max(time, suspect);
            }
            newest = time;
            onPeriodicEmit(output);
        }

        @Override
        public void onPeriodicEmit(WatermarkOutput output) {
            if (newest > emitted) {
                emitted = newest;
                output.emitWatermark(new Watermark(newest - bound - 1));
            }
        }
    }
}
