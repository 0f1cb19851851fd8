"""The embedded engine."""

__all__: list[str] = []
