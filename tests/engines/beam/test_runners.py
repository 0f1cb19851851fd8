"""What runners do with timers, shown without a line of ours: why Prism is not used with every version of Beam."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from streamml.errors import UnsupportedError

beam = pytest.importorskip("apache_beam")

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # noqa: E402
from apache_beam.testing import test_stream as streams  # noqa: E402
from apache_beam.transforms.timeutil import TimeDomain  # noqa: E402
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer  # noqa: E402
from apache_beam.transforms.window import TimestampedValue  # noqa: E402
from apache_beam.utils.timestamp import Timestamp  # noqa: E402

from streamml.beam.collect import Collect, collecting  # noqa: E402
from streamml.beam.prism import FIRST_RIGHT, NO_SPLIT, find_prism, prism_options  # noqa: E402

BEAM = version("apache-beam")
NEW = tuple(map(int, BEAM.split(".")[:2])) >= FIRST_RIGHT
BINARY = Path(__file__).parents[3] / ".cache" / "prism" / BEAM / "prism"


class TwoTimers(beam.DoFn):
    """Says which elements come and which timers fire; the first element sets one for 4 s and one for 100 s."""

    NEAR = TimerSpec("near", TimeDomain.WATERMARK)
    FAR = TimerSpec("far", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[str, str],
        near: Any = beam.DoFn.TimerParam(NEAR),  # noqa: B008
        far: Any = beam.DoFn.TimerParam(FAR),  # noqa: B008
    ) -> Any:
        if element[1] == "first":
            near.set(Timestamp(4))
            far.set(Timestamp(100))
        yield element[1]

    @on_timer(NEAR)
    def on_near(self) -> Any:
        yield "timer for 4"

    @on_timer(FAR)
    def on_far(self) -> Any:
        yield "timer for 100"


def order(options: list[str]) -> list[str]:
    script: Any = streams.TestStream()
    for text, time, watermark in (("first", 0, 3), ("at watermark 3", 3, 5), ("at watermark 5", 5, 6)):
        script = script.add_elements([TimestampedValue(("k", text), time)]).advance_watermark_to(watermark)
    chosen = PipelineOptions(options)
    chosen.view_as(StandardOptions).streaming = True
    with collecting() as (token, kept):
        with beam.Pipeline(options=chosen) as pipeline:
            events = pipeline | script.advance_watermark_to_infinity()
            typed = events | beam.Map(tuple).with_output_types(tuple[str, str])
            _ = typed | beam.ParDo(TwoTimers()) | beam.ParDo(Collect(token, ""))
        return [text for _, text in kept]


RIGHT = ["first", "at watermark 3", "timer for 4", "at watermark 5", "timer for 100"]


def test_bundle_based_fires_timers_when_the_watermark_is_there() -> None:
    assert order(["--runner=BundleBasedDirectRunner"]) == RIGHT


@pytest.mark.skipif(not BINARY.is_file(), reason="Prism for the installed Beam is not in .cache/prism")
def test_prism_is_used_only_where_it_does_so_too() -> None:
    found = order(prism_options(BINARY))
    if NEW:
        assert found == RIGHT
        assert find_prism() == BINARY.resolve()
    else:
        assert found.index("timer for 100") < found.index("at watermark 5"), "right now: lower FIRST_RIGHT"
        with pytest.raises(UnsupportedError, match="before the watermark"):
            find_prism()


class Number(beam.DoFn):
    """Numbers the elements of a key; the first one takes long."""

    SEEN = ReadModifyWriteStateSpec("seen", beam.coders.VarIntCoder())

    def process(self, element: tuple[str, int], seen: Any = beam.DoFn.StateParam(SEEN)) -> Any:  # noqa: B008
        if element[1] == 0:
            sleep(0.6)  # Prism looks twice, 100 ms apart, before it calls a bundle slow
        seen.write((seen.read() or 0) + 1)
        yield seen.read()


@pytest.mark.skipif(not (BINARY.is_file() and NEW), reason="Prism 2.77 or newer is not in .cache/prism")
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
def test_prism_loses_state_when_it_splits_a_slow_bundle_within_a_key(split: bool) -> None:
    """Why a stage turns that off (`NO_SPLIT`)."""
    chosen = PipelineOptions([*prism_options(BINARY), *([] if split else [f"--experiments={NO_SPLIT}"])])
    with collecting() as (token, kept):
        with beam.Pipeline(options=chosen) as pipeline:
            elements = [("k", number) for number in range(40)]
            keyed = pipeline | beam.Create(elements, reshuffle=False).with_output_types(tuple[str, int])
            _ = keyed | beam.ParDo(Number()) | beam.ParDo(Collect(token, ""))
        numbers = sorted(number for _, number in kept)
    assert (numbers == list(range(1, 41))) is not split, "right now: NO_SPLIT is no longer needed"
