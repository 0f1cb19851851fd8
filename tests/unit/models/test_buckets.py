from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamml.errors import ModelError
from streamml.models.buckets import Buckets
from streamml.models.signature import Array


def masked_sums(batch: Array, lengths: Array) -> Array:
    """A model that looks at no padding."""
    return np.array([row[:length].sum() for row, length in zip(batch, lengths.tolist(), strict=True)])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.lists(st.integers(0, 64), max_size=40), limits=st.sets(st.integers(1, 63), max_size=5))
def test_each_row_gets_its_own_result_in_the_order_given(rows: list[int], limits: set[int]) -> None:
    arrays = [np.arange(length) + 1000 * row for row, length in enumerate(rows)]
    buckets = Buckets(sorted({*limits, 64}), pad=-7)
    sums = buckets.run(arrays, masked_sums)
    assert [int(value) for value in sums] == [int(array.sum()) for array in arrays]
    echoed = buckets.run(arrays, lambda batch, _: batch, by_position=True)
    assert [row.tolist() for row in echoed] == [array.tolist() for array in arrays]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(st.integers(0, 64), min_size=1, max_size=40))
def test_what_a_row_is_padded_to_does_not_depend_on_its_neighbours(rows: list[int]) -> None:
    buckets = Buckets((4, 16, 64))
    arrays = [np.ones(length) for length in rows]
    together = {row: bucket.batch.shape[1] for bucket in buckets.groups(arrays) for row in bucket.rows}
    alone = {row: buckets.groups([array])[0].batch.shape[1] for row, array in enumerate(arrays)}
    assert together == alone


def test_padding_is_less_than_to_the_longest() -> None:
    rng = np.random.default_rng(1)
    arrays = [np.ones(n) for n in rng.geometric(0.05, 500).clip(1, 256).tolist()]
    padded = sum(bucket.batch.size for bucket in Buckets((16, 32, 64, 128, 256)).groups(arrays))
    assert padded < 0.3 * len(arrays) * max(map(len, arrays))


def test_further_dimensions_and_the_type_are_kept() -> None:
    arrays = [np.ones((n, 3), np.float32) for n in (1, 5, 2)]
    short, long = Buckets((2, 8), pad=np.nan).groups(arrays)
    assert (short.rows, short.batch.shape, short.batch.dtype) == ([0, 2], (2, 2, 3), np.float32)
    assert (long.rows, long.batch.shape, long.lengths.tolist()) == ([1], (1, 8, 3), [5])
    assert np.isnan(short.batch[0, 1]).all() and not np.isnan(short.batch[1]).any()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([np.ones(9)], "row 0: wanted at most 8 values, got 9; cut it, or add a longer bucket"),
        ([np.ones(2), np.ones(2, np.int64)], "row 1: wanted float64[?] as in row 0, got int64[2]"),
        ([np.ones((2, 3)), np.ones((2, 4))], "row 1: wanted float64[?, 3] as in row 0, got float64[2, 4]"),
    ],
)
def test_rows_that_do_not_fit_are_named(arrays: list[Array], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        Buckets((8,)).groups(arrays)


def test_results_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=re.escape("wanted results whose shape begins with [2], got [1]")):
        Buckets((8,)).run([np.ones(2), np.ones(3)], lambda batch, _: batch[:1, 0])


@pytest.mark.parametrize("lengths", [(), (0, 4), (4, 4), (8, 4)])
def test_lengths_that_do_not_rise_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="Buckets: wanted rising lengths"):
        Buckets(lengths)
