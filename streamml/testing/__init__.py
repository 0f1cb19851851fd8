"""The test kit: scripts of events, time and faults, run on any engine; for your operators as for ours."""

from streamml.testing.case import Capability, Case, Expected, row
from streamml.testing.engines import ENGINES, Engine, RunOptions, run
from streamml.testing.result import Result
from streamml.testing.script import (
    Script,
    advance,
    checkpoint,
    crash,
    event,
    idle,
    processing_time,
    rescale,
    restart,
)

__all__ = [
    "ENGINES",
    "Capability",
    "Case",
    "Engine",
    "Expected",
    "Result",
    "RunOptions",
    "Script",
    "advance",
    "checkpoint",
    "crash",
    "event",
    "idle",
    "processing_time",
    "rescale",
    "restart",
    "row",
    "run",
]
