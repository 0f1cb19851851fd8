package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.stream.IntStream;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.types.Row;
import org.junit.jupiter.api.Test;

class KeyGroupsTest {
    @Test
    void theHashIsThatOfPython() {
        // key_group(encode_key("card-1"), 128), from the doctest of streamml.state.table.
        assertEquals(29, KeyGroups.of(KeyEncoding.text("card-1"), 128));
    }

    @Test
    void subtasksShareTheGroupsEvenlyAtAnyParallelism() {
        int groups = 128;
        int[] numbers = KeyGroups.numbers(groups, groups);
        assertEquals(groups, IntStream.of(numbers).distinct().count());
        for (int parallelism = 1; parallelism <= groups; parallelism++) {
            int[] load = new int[parallelism];
            for (int number : numbers) {
                load[KeyGroupRangeAssignment.assignKeyToParallelOperator(Row.of(number), groups, parallelism)]++;
            }
            int most = IntStream.of(load).max().getAsInt();
            int least = IntStream.of(load).min().getAsInt();
            assertEquals((groups + parallelism - 1) / parallelism, most, "parallelism " + parallelism);
            assertEquals(groups / parallelism, least, "parallelism " + parallelism);
        }
    }

    @Test
    void moreGroupsThanFlinkHasAreSharedOutToo() {
        int[] numbers = KeyGroups.numbers(128, 64);
        int[] load = new int[64];
        for (int number : numbers) {
            load[KeyGroupRangeAssignment.assignToKeyGroup(Row.of(number), 64)]++;
        }
        for (int each : load) {
            assertEquals(2, each);
        }
    }
}
