"""The semantics of streamml as scripts with their answers, written by hand; one module for each topic."""

from __future__ import annotations

from conformance_cases import clock, dedupe, keys, late, pipelines, poison, sources, timers, ttl, windows
from streamml.testing import Script
from streamml.testing.script import Idle

TOPICS = (late, ttl, timers, dedupe, poison, keys, sources, pipelines, clock, windows)
CASES = [case for topic in TOPICS for case in topic.CASES]
# Idleness is a matter of the wall clock and counts anew after a restart.
REPRODUCIBLE = [case for case in CASES if not (case.watermarks == "pipeline" and Script(case.script).has(Idle))]

assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
