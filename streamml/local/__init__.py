"""The embedded engine: one process, state on RocksDB, exactly once between files."""

from streamml.local.engine import LocalEngine, RunResult
from streamml.local.metering import Meter
from streamml.local.options import LocalOptions

__all__ = ["LocalEngine", "LocalOptions", "Meter", "RunResult"]
