"""The operators, one per file."""

from streamml.operators.dedupe import Dedupe
from streamml.operators.filter import Filter
from streamml.operators.flat_map import FlatMap
from streamml.operators.map import Map

__all__ = ["Dedupe", "Filter", "FlatMap", "Map"]
