package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.Gauge;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.metrics.groups.UnregisteredMetricsGroup;
import org.junit.jupiter.api.Test;

class PythonMetricsTest {
    /** Notes what is registered, by the path of groups. */
    private static final class Noting extends UnregisteredMetricsGroup {
        private final String path;
        private final Map<String, Object> found;

        Noting(String path, Map<String, Object> found) {
            this.path = path;
            this.found = found;
        }

        @Override
        public Counter counter(String name) {
            Counter made = super.counter(name);
            found.put(path + name, made);
            return made;
        }

        @Override
        public <T, G extends Gauge<T>> G gauge(String name, G gauge) {
            found.put(path + name, gauge);
            return gauge;
        }

        @Override
        public MetricGroup addGroup(String key, String value) {
            return new Noting(path + key + "=" + value + "/", found);
        }
    }

    private static byte[] frame(String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        byte[] made = new byte[bytes.length + 1];
        made[0] = (byte) PythonMetrics.OUTPUT;
        System.arraycopy(bytes, 0, made, 1, bytes.length);
        return made;
    }

    @Test
    void seriesAreAnnouncedOnceAndChangedByNumber() {
        Map<String, Object> found = new HashMap<>();
        PythonMetrics metrics = new PythonMetrics(new Noting("", found));
        metrics.update(frame("counter\tlate_total\n0\t3\ngauge\tpsi_ratio\tfeature\tamount\toperator\tdrift\n1\t0.25"));
        metrics.update(frame("0\t4\n1\t-1e-7\ncounter\tlate_total\toperator\t\n2\t1"));
        assertEquals(7, ((Counter) found.get("late_total")).getCount());
        assertEquals(-1e-7, ((Gauge<?>) found.get("feature=amount/operator=drift/psi_ratio")).getValue());
        assertEquals(1, ((Counter) found.get("operator=/late_total")).getCount());
    }
}
