"""`streamml generate`: streams to try things on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from streamml.cli.errors import Debug

__all__ = ["app", "paced"]

app = typer.Typer(help="Make a seeded stream: the same options give the same bytes.", no_args_is_help=True)

_STREAM, _FAULTS, _OUT = "Stream", "What is wrong with it", "Output"
_TICK = 0.02


@app.callback()
def _generate() -> None:
    """Make a seeded stream: the same options give the same bytes."""


@app.command()
def payments(
    events: Annotated[int, typer.Option(min=0, help="Number of lines.", rich_help_panel=_STREAM)] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another stream.", rich_help_panel=_STREAM)] = 7,
    rate: Annotated[
        str,
        typer.Option(
            metavar="N|max",
            help="Lines per second of event time, with --live of real time too; max is 1000 of event time.",
            rich_help_panel=_STREAM,
        ),
    ] = "max",
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Write in real time, with timestamps from now on.",
            show_default="off",
            rich_help_panel=_STREAM,
        ),
    ] = False,
    cards: Annotated[int, typer.Option(min=1, help="Number of cards.", rich_help_panel=_STREAM)] = 20_000,
    zipf: Annotated[
        float,
        typer.Option(min=0.0, help="Exponent of the cards' popularity; 0 makes all equal.", rich_help_panel=_STREAM),
    ] = 1.1,
    fraud: Annotated[float, typer.Option(help="Share of fraud.", rich_help_panel=_STREAM)] = 0.02,
    drift_at: Annotated[
        float | None,
        typer.Option(
            help="Part of the stream (0 to 1) after which it drifts.", show_default="never", rich_help_panel=_FAULTS
        ),
    ] = None,
    duplicates: Annotated[float, typer.Option(help="Share of repeated lines.", rich_help_panel=_FAULTS)] = 0.03,
    out_of_order: Annotated[
        float, typer.Option(help="Share that arrives up to 5 s late.", rich_help_panel=_FAULTS)
    ] = 0.10,
    late: Annotated[float, typer.Option(help="Share that arrives 10 minutes late.", rich_help_panel=_FAULTS)] = 0.01,
    malformed: Annotated[float, typer.Option(help="Share of broken lines.", rich_help_panel=_FAULTS)] = 0.002,
    to: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="A file of JSON lines (.jsonl, .jsonl.gz), or - for standard output.",
            rich_help_panel=_OUT,
        ),
    ] = "-",
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write here what each line is: tx_id, kind, fraud.",
            show_default="none",
            rich_help_panel=_OUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.", show_default="no", rich_help_panel=_OUT)
    ] = False,
    debug: Debug = False,
) -> None:
    """Make a stream of card payments with fraud, disorder, duplicates, late and broken lines."""
    from streamml.generate import Payments

    per_second = _rate(rate, live)
    options: dict[str, Any] = {"start_ms": time.time_ns() // 1_000_000} if live else {}
    stream = Payments(
        events, seed, cards=cards, zipf=zipf, rate=per_second, duplicates=duplicates, out_of_order=out_of_order,
        late=late, malformed=malformed, fraud=fraud, drift_at=drift_at, **options,
    )  # fmt: skip
    with ExitStack() as stack:
        out = stack.enter_context(_open(to, overwrite))
        if truth is None:
            lines: Iterable[bytes] = stream
        else:
            lines = _with_truth(stream, stack.enter_context(_open(str(truth), overwrite)))
        if live:
            lines = paced(lines, per_second, out.flush)
        _write(lines, out)


def paced(
    lines: Iterable[bytes],
    rate: float,
    flush: Callable[[], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bytes]:
    """Yield each line when it is due, `rate` of them a second from the first call on.

    >>> slept = []
    >>> lines = paced([b"a", b"b"], 10.0, lambda: None, clock=lambda: sum(slept), sleep=slept.append)
    >>> [(line, round(sum(slept), 2)) for line in lines]
    [(b'a', 0), (b'b', 0.1)]
    """
    start = clock()
    for i, line in enumerate(lines):
        while (wait := start + i / rate - clock()) > 1e-9:
            flush()
            sleep(max(wait, _TICK))  # several lines at once at a high rate
        yield line


def _write(lines: Iterable[bytes], out: BinaryIO) -> None:
    write = out.write
    for line in lines:
        write(line)
        write(b"\n")
    out.flush()


def _with_truth(stream: Any, file: BinaryIO) -> Iterator[bytes]:
    import msgspec

    encode = msgspec.json.encode
    for row in stream.rows():
        file.write(encode({"tx_id": row.tx_id, "kind": row.kind, "fraud": row.label}) + b"\n")
        yield row.line


def _rate(text: str, live: bool) -> float:
    from streamml.errors import PlanError

    if text == "max":
        if live:
            msg = "--live: say how many lines a second, such as --rate 500"
            raise PlanError(msg)
        return 1000.0
    try:
        return float(text)
    except ValueError as exc:
        msg = f"--rate {text}: wanted lines per second, such as 2000, or max"
        raise PlanError(msg) from exc


@contextmanager
def _open(uri: str, overwrite: bool) -> Iterator[Any]:
    """Open a file or standard output for writing.

    Raises:
        ConnectorError: it is there already, or can't be written.
        UnsupportedError: it is no file.
    """
    from streamml.cli.sides import file_of
    from streamml.errors import ConnectorError, UnsupportedError

    if uri in ("-", "stdout:"):
        try:
            with os.fdopen(os.dup(1), "wb", buffering=1 << 20) as out:
                yield out
        except BrokenPipeError as exc:
            msg = "standard output: its reader has gone"
            raise ConnectorError(msg) from exc
        return
    path = file_of(uri)
    if path is None or path.suffix in (".parquet", ".arrow", ".feather"):
        msg = f"--to {uri}: a stream is written as JSON lines (its broken lines fit nowhere else): to a file, or to -"
        raise UnsupportedError(msg)
    if path.exists() and not overwrite:
        msg = f"{path}: the file is there already; name another one, or pass --overwrite"
        raise ConnectorError(msg)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.open("wb", buffering=1 << 20)
    except OSError as exc:
        msg = f"{path}: it can't be written: {exc.strerror}"
        raise ConnectorError(msg) from exc
    with raw:
        if path.suffix == ".gz":
            import gzip

            # Without name and time in its header, so that the same stream gives the same bytes.
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                yield packed
        else:
            yield raw
