"""Where the output of one worker goes: files have a part for each worker, topics are shared."""

from __future__ import annotations

import re

from streamml.connectors.files import FORMATS
from streamml.errors import PlanError
from streamml.local.share import Share

__all__ = ["part_uri"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_ID = re.compile(r"(?<=[?&])transactional_id=([^&]*)")


def part_uri(uri: str, share: Share, *, all_parts: bool = False) -> str:
    """Return the address of one worker's part of an output.

    Of a job that has (or once had) several workers, a file `scores.jsonl` is the files `scores.g0001-w0000.jsonl` and
    so on: `g` for the generation (1, and 1 more each time that the number of workers changes), `w` for the worker.
    Sorted by name, the parts hold the records of each key in their order; what `scores.jsonl` itself may hold came
    before them. Side outputs and folders of Parquet parts go by the same rule. A Kafka topic is written by all
    workers, each with a transactional id of its own. Of a pipeline that changes its key, the workers of segment 1 write
    `scores.g0001-s01-w0000.jsonl` and so on.

    Args:
        uri: address of the output.
        share: which worker.
        all_parts: return the pattern that the parts of all workers of its segment fit; of segment 0, those of all.

    Raises:
        PlanError: workers can't share this output.

    >>> part_uri("file:out/scores.late.jsonl.gz", Share(1, 3, 2))
    'file:out/scores.late.g0002-w0001.jsonl.gz'
    >>> part_uri("scores", Share(1, 3, 2)), part_uri("scores.jsonl", Share()), part_uri("null:", Share(0, 3, 2))
    ('scores.g0002-w0001', 'scores.jsonl', 'null:')
    >>> part_uri("scores.jsonl", Share(1, 3, 2, 1, 2))
    'scores.g0002-s01-w0001.jsonl'
    >>> part_uri("kafka://host/scores?transactional_id=mine", Share(1, 3, 2))
    'kafka://host/scores?transactional_id=mine-2-1'
    """
    if share.generation == 0:
        return uri
    found = _SCHEME.match(uri)
    scheme = "stdout" if uri == "-" else found[1].lower() if found else "file"
    if scheme in ("stdout", "stderr"):
        msg = f"output {uri}: several workers can't write to standard output or error; name a file, a topic or null:"
        raise PlanError(msg)
    if scheme != "file":
        return _ID.sub(lambda id: f"{id[0]}{share.suffix}", uri)
    segment = f"-s{share.segment:02d}" if share.segment else "-*" if all_parts and share.segments > 1 else ""
    part = f".g{share.generation:04d}{segment}-w{'*' if all_parts else f'{share.index:04d}'}".replace("*-w*", "*w*")
    path = uri.rstrip("/")
    ending = max((suffix for suffix in FORMATS if path.lower().endswith(suffix)), key=len, default="")
    cut = len(path) - len(ending)
    return f"{path[:cut]}{part}{path[cut:]}"
