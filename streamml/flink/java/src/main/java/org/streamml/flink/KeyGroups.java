package org.streamml.flink;

import java.util.HashSet;
import java.util.Set;
import java.util.zip.CRC32;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.types.Row;

/** Key groups of a streamml pipeline, and the numbers under which Flink sees them. */
public final class KeyGroups {
    private KeyGroups() {}

    /** Returns the group of an encoded key; the same hash as {@code key_group} in Python. */
    public static int of(byte[] encoded, int groups) {
        CRC32 crc = new CRC32();
        crc.update(encoded, 0, encoded.length);
        return (int) (crc.getValue() % groups);
    }

    /**
     * Returns the number by which each group is known to Flink. Flink hashes keys once more, so numbers 0, 1, 2, ... would
     * pile up on some subtasks. These are chosen by its own hash: group g lands in Flink's key group g * maxParallelism / groups, so the
     * subtasks share the groups evenly at any parallelism.
     */
    public static int[] numbers(int groups, int maxParallelism) {
        int[] numbers = new int[groups];
        Set<Integer> used = new HashSet<>();
        for (int group = 0; group < groups; group++) {
            int wanted = (int) ((long) group * maxParallelism / groups);
            int number = 0;
            while (used.contains(number)
                    || KeyGroupRangeAssignment.assignToKeyGroup(Row.of(number), maxParallelism) != wanted) {
                number++;
            }
            numbers[group] = number;
            used.add(number);
        }
        return numbers;
    }
}
