package org.streamml.flink;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.Gauge;
import org.apache.flink.metrics.MetricGroup;

/**
 * What a stage counts in Python, as Flink's own metrics. PyFlink's metrics hold whole numbers only, and no percentiles; ratios and seconds need more.
 *
 * <p>A frame is lines of tab-separated text. {@code counter NAME [LABEL VALUE]...} and {@code gauge NAME [LABEL VALUE]...} announce the next series, counted from 0;
 * {@code NUMBER VALUE} adds to a counter or sets a gauge. Labels become groups of key and value, as Flink's reporters know them.
 */
final class PythonMetrics {
    /** Number of the output that holds frames, as a signed byte. */
    static final int OUTPUT = -1;

    private final MetricGroup group;
    private final List<Series> series = new ArrayList<>();

    PythonMetrics(MetricGroup group) {
        this.group = group;
    }

    /** Takes over a frame, which starts at the second byte of the array. */
    void update(byte[] output) {
        for (String line : new String(output, 1, output.length - 1, StandardCharsets.UTF_8).split("\n")) {
            String[] parts = line.split("\t", -1);
            switch (parts[0]) {
                case "counter":
                    series.add(new CountedSeries(labelled(parts).counter(parts[1])));
                    break;
                case "gauge":
                    GaugedSeries gauge = new GaugedSeries();
                    labelled(parts).gauge(parts[1], gauge);
                    series.add(gauge);
                    break;
                default:
                    series.get(Integer.parseInt(parts[0])).update(parts[1]);
            }
        }
    }

    private MetricGroup labelled(String[] parts) {
        MetricGroup found = group;
        for (int at = 2; at + 1 < parts.length; at += 2) {
            found = found.addGroup(parts[at], parts[at + 1]);
        }
        return found;
    }

    private interface Series {
        void update(String value);
    }

    private static final class CountedSeries implements Series {
        private final Counter counter;

        CountedSeries(Counter counter) {
            this.counter = counter;
        }

        @Override
        public void update(String value) {
            counter.inc(Long.parseLong(value));
        }
    }

    private static final class GaugedSeries implements Series, Gauge<Double> {
        private volatile double value;

        @Override
        public void update(String text) {
            value = Double.parseDouble(text);
        }

        @Override
        public Double getValue() {
            return value;
        }
    }
}
