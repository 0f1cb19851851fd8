"""streamml: stream-processing operators with model inference, in keyed, checkpointed pipelines, on any engine."""

from streamml.contract import Context, KeyedOperator, Operator, Timer
from streamml.errors import StreamMLError
from streamml.events import Event
from streamml.pipeline import JobConfig, Pipeline
from streamml.records import Batch, Record
from streamml.state import ListState, MapState, SetState, ValueState
from streamml.times import Duration

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Context",
    "Duration",
    "Event",
    "JobConfig",
    "KeyedOperator",
    "ListState",
    "MapState",
    "Operator",
    "Pipeline",
    "Record",
    "SetState",
    "StreamMLError",
    "Timer",
    "ValueState",
]
