"""The test kit: scripts of events, faults and time, for any engine."""

__all__: list[str] = []
