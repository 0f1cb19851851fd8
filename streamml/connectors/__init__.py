"""Sources and sinks."""

from streamml.connectors.encode import Encoder
from streamml.connectors.memory import MemorySink, MemorySource, NullSink
from streamml.connectors.uris import open_sink, open_source, side_uri

__all__ = ["Encoder", "MemorySink", "MemorySource", "NullSink", "open_sink", "open_source", "side_uri"]
