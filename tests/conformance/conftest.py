"""Where the tables of cases are found."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `conformance_cases`, whatever pytest was started with
