package org.streamml.flink;

import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.typeutils.base.LongSerializer;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.Histogram;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.runtime.metrics.DescriptiveStatisticsHistogram;
import org.apache.flink.runtime.state.StateInitializationContext;
import org.apache.flink.runtime.state.StateSnapshotContext;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.BoundedOneInput;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.watermarkstatus.WatermarkStatus;
import org.apache.flink.types.Row;

/**
 * Gathers records by key group, so that Python is crossed once for a batch and not once for a record.
 *
 * <p>Emits {@code Row(number of the group, Row(payload, count))} when a group has {@code maxCount} records or {@code maxBytes} bytes, when the first
 * waiting record is {@code latencyMillis} old, before a checkpoint barrier, and at the end of the input. A watermark waits with the records
 * that came before it, so it may come after each event and still leave batches whole: each record carries the watermark that was in
 * force before it. When a barrier passes nothing waits here, neither record nor watermark, and a restored job lacks nothing.
 *
 * <p>Its only state is the watermark: a restored job goes on from the watermark of the checkpoint, so what was late stays late.
 */
public class KeyGroupBatchOperator extends AbstractStreamOperator<Row>
        implements OneInputStreamOperator<Object, Row>, BoundedOneInput {
    private static final long serialVersionUID = 1L;

    /** Number of batches that percentiles are taken over. */
    private static final int WINDOW = 1000;

    private final KeyReader reader;
    private final int[] numbers;
    private final int maxCount;
    private final int maxBytes;
    private final long latencyMillis;

    private transient Buffer[] buffers;
    private transient List<Integer> waiting;
    private transient boolean timerSet;
    private transient long watermark;
    private transient long forwarded;
    private transient long restored;
    private transient boolean idle;
    private transient ListState<Long> watermarks;

    private transient Counter batchCounter;
    private transient Histogram sizes;
    private transient Histogram waits;
    private transient volatile int pending;

    /** @param numbers Flink's key of each group, see {@link KeyGroups#numbers}. */
    public KeyGroupBatchOperator(KeyReader reader, int[] numbers, int maxCount, int maxBytes, long latencyMillis) {
        this.reader = reader;
        this.numbers = numbers;
        this.maxCount = maxCount;
        this.maxBytes = maxBytes;
        this.latencyMillis = latencyMillis;
    }

    @Override
    public void initializeState(StateInitializationContext context) throws Exception {
        super.initializeState(context);
        watermarks = context.getOperatorStateStore()
                .getUnionListState(new ListStateDescriptor<>("watermark", LongSerializer.INSTANCE));
        watermark = Long.MIN_VALUE;
        forwarded = Long.MIN_VALUE;
        restored = Long.MIN_VALUE;
        if (context.isRestored()) {
            long least = Long.MAX_VALUE;
            for (long each : watermarks.get()) {
                least = Math.min(least, each);
            }
            restored = least == Long.MAX_VALUE ? Long.MIN_VALUE : least;
        }
    }

    @Override
    public void open() throws Exception {
        super.open();
        buffers = new Buffer[numbers.length];
        waiting = new ArrayList<>();
        MetricGroup metrics = getMetricGroup();
        batchCounter = metrics.counter("streamml_batches_total");
        sizes = metrics.histogram("streamml_batch_size_events", new DescriptiveStatisticsHistogram(WINDOW));
        waits = metrics.histogram("streamml_batch_wait_milliseconds", new DescriptiveStatisticsHistogram(WINDOW));
        metrics.gauge("streamml_batch_pending_events", () -> pending);
        if (restored > Long.MIN_VALUE) {
            getProcessingTimeService()
                    .registerTimer(getProcessingTimeService().getCurrentProcessingTime(), time -> catchUp());
        }
    }

    /** Forwards the watermark of the checkpoint, once. */
    private void catchUp() {
        if (restored > watermark) {
            watermark = restored;
            flush();
        }
        restored = Long.MIN_VALUE;
    }

    @Override
    public void processElement(StreamRecord<Object> element) {
        if (restored > Long.MIN_VALUE) {
            catchUp();
        }
        Object value = element.getValue();
        byte[] payload = reader.payload(value);
        byte[] key = reader.key(value);
        int group = numbers.length == 1 ? 0 : KeyGroups.of(key == null ? payload : key, numbers.length);
        Buffer buffer = buffers[group];
        if (buffer == null) {
            buffer = buffers[group] = new Buffer();
        }
        if (buffer.count() == 0) {
            waiting.add(group);
            buffer.startedAt(getProcessingTimeService().getCurrentProcessingTime());
        }
        buffer.add(payload, watermark);
        pending++;
        if (buffer.count() >= maxCount || buffer.size() >= maxBytes) {
            emit(group);
            waiting.remove((Integer) group);
        } else {
            flushLater();
        }
    }

    private void flushLater() {
        if (!timerSet) {
            timerSet = true;
            getProcessingTimeService()
                    .registerTimer(getProcessingTimeService().getCurrentProcessingTime() + latencyMillis, time -> {
                        timerSet = false;
                        flush();
                    });
        }
    }

    private void emit(int group) {
        Buffer buffer = buffers[group];
        int count = buffer.count();
        pending -= count;
        batchCounter.inc();
        sizes.update(count);
        waits.update(getProcessingTimeService().getCurrentProcessingTime() - buffer.startedAt());
        output.collect(new StreamRecord<>(Row.of(numbers[group], Row.of(buffer.take(), count))));
    }

    private void flush() {
        for (int group : waiting) {
            emit(group);
        }
        waiting.clear();
        if (watermark > forwarded) {
            forwarded = watermark;
            output.emitWatermark(new Watermark(watermark));
        }
    }

    @Override
    public void processWatermark(Watermark mark) throws Exception {
        if (restored > Long.MIN_VALUE) {
            catchUp();
        }
        if (mark.getTimestamp() > watermark) {
            watermark = mark.getTimestamp();
            if (watermark == Long.MAX_VALUE) {
                flush();
            } else {
                flushLater();
            }
        }
    }

    @Override
    public void processWatermarkStatus(WatermarkStatus status) throws Exception {
        idle = status.isIdle();
        flush();
        super.processWatermarkStatus(status);
    }

    @Override
    public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
        flush();
        super.prepareSnapshotPreBarrier(checkpointId);
    }

    @Override
    public void snapshotState(StateSnapshotContext context) throws Exception {
        super.snapshotState(context);
        watermarks.clear();
        // An idle input holds nobody back; the end of the input (MAX) is not where a savepoint's successor goes on from.
        if (!idle && watermark < Long.MAX_VALUE) {
            watermarks.add(Math.max(watermark, restored));
        }
    }

    @Override
    public void endInput() {
        flush();
    }

    @Override
    public void finish() throws Exception {
        flush();
        super.finish();
    }
}
