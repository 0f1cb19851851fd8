"""A `TestStream` of rows in order of arrival."""

from __future__ import annotations

from typing import Any

from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue


def stream(rows: list[dict[str, Any]], bound: int) -> Any:
    """The rows with their `ts`; before each the watermark is as far behind the newest so far as `bound` says, in ms."""
    made: Any = TestStream()
    newest, watermark = 0, -1
    for row in rows:
        newest = max(newest, row["ts"])
        if newest - bound > watermark:
            watermark = newest - bound
            made = made.advance_watermark_to(watermark / 1000)
        made = made.add_elements([TimestampedValue(row, row["ts"] / 1000)])
    return made.advance_watermark_to_infinity()
