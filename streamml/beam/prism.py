"""Prism, Beam's local portable runner: where its binary is, and the options to run on it."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path

from streamml.errors import UnsupportedError

__all__ = ["FIRST_RIGHT", "NO_SPLIT", "find_prism", "prism_options"]

FIRST_RIGHT = (2, 77)
"""Oldest tried version that is right; 2.61 fires a key's timers with its next element, whatever the watermark."""
NO_SPLIT = "prism_disable_sdf_split"
"""Experiment that keeps Prism from splitting slow bundles; other runners ignore it.

Where Prism cuts one within the elements of a key, the two parts run at the same time, each with the state from before,
and what one of them writes is lost."""


def find_prism() -> Path:
    """Return the binary for the installed Beam: $STREAMML_PRISM, .cache/prism/VERSION/prism, or `prism` on the PATH.

    Raises:
        UnsupportedError: there is none, or this version of Beam has none that works.
    """
    beam = version("apache-beam")
    if tuple(map(int, beam.split(".")[:2])) < FIRST_RIGHT:
        wanted = ".".join(map(str, FIRST_RIGHT))
        msg = f"Prism of Beam {beam} fires timers before the watermark has reached them; wanted Beam {wanted} or newer"
        raise UnsupportedError(msg)
    places = [os.environ.get("STREAMML_PRISM"), f".cache/prism/{beam}/prism", shutil.which("prism")]
    for place in places:
        if place and Path(place).is_file():
            return Path(place).resolve()
    msg = (
        f"Prism for Beam {beam} is not here: GOBIN=$PWD/.cache/prism/{beam} go install "
        f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam}, or name it in $STREAMML_PRISM"
    )
    raise UnsupportedError(msg)


def prism_options(binary: Path) -> list[str]:
    """Return the options to run on Prism, with the workers in this process."""
    return ["--runner=PrismRunner", f"--prism_location={binary}", "--environment_type=LOOPBACK"]
