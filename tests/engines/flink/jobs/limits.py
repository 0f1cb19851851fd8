"""Beside the job, and sent along with it."""

LIMIT = 7
