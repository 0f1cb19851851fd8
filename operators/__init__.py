"""The operators, one per file."""

from streamml.models.breaker import Breaker
from streamml.operators.aggregates import (
    Aggregate,
    count,
    distinct,
    ewma,
    last,
    maximum,
    mean,
    minimum,
    quantile,
    rate,
    since_last,
    total,
    variance,
)
from streamml.operators.dedupe import Dedupe
from streamml.operators.drift_monitor import DriftMonitor
from streamml.operators.fallback import LastValue
from streamml.operators.features import Features
from streamml.operators.filter import Filter
from streamml.operators.flat_map import FlatMap
from streamml.operators.infer import Infer
from streamml.operators.infer_sequence import InferSequence
from streamml.operators.map import Map
from streamml.operators.session import Session
from streamml.operators.window import Window
from streamml.operators.windows import all_time, session, sliding, trailing, tumbling

__all__ = [
    "Aggregate",
    "Breaker",
    "Dedupe",
    "DriftMonitor",
    "Features",
    "Filter",
    "FlatMap",
    "Infer",
    "InferSequence",
    "LastValue",
    "Map",
    "Session",
    "Window",
    "all_time",
    "count",
    "distinct",
    "ewma",
    "last",
    "maximum",
    "mean",
    "minimum",
    "quantile",
    "rate",
    "session",
    "since_last",
    "sliding",
    "total",
    "trailing",
    "tumbling",
    "variance",
]
