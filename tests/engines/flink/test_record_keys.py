"""Keys from the records' keys in Kafka, on a cluster and on the embedded engine: as counted by hand."""

from __future__ import annotations

import base64
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flink_topics import committed, wait

from streamml.cli.loading import load_job
from streamml.connectors.uris import open_sink, open_source
from streamml.errors import UnsupportedError
from streamml.flink.submit import SubmitOptions, submit
from streamml.local import LocalEngine, LocalOptions

pytestmark = [
    pytest.mark.flink,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

JOB = Path(__file__).parent / "jobs" / "bykey.py"
START = 1_700_000_000_000
KEYS = [b"dev-1", "gerät-2".encode(), b"\xff\x00raw", b"", b"\xed\xa0\x80", None, b"dev-1"]


def test_records_without_the_field_are_counted_by_their_key(
    session_cluster: Any, session_broker: str, flink: None, tmp_path: Path
) -> None:
    from confluent_kafka import Producer

    events = [(KEYS[n % len(KEYS)], msgspec.json.encode({"n": f"r{n}", "ts": START + n * 100})) for n in range(140)]
    events[10] = (b"dev-1", b"{broken")
    events[11] = (b"dev-1", None)
    where = f"kafka://{session_broker}"
    address = f"{where}/readings?create=true&retention=forever"
    jobs = {}
    for front in ("", "1"):
        job = load_job(str(JOB))
        made = job.pipeline({"front": front})
        options = SubmitOptions(jobmanager=session_cluster.rest.address, checkpoint_interval=500)
        sinks = [f"{where}/{made.name}{side}?create=true&retention=forever" for side in ("", ".rejected")]
        sides = {"late": "null:", "rejected": sinks[1]}
        jobs[made.name] = submit(made, {made.name: address}, sinks[0], sides, options, module=job.module)
    producer = Producer({"bootstrap.servers": session_broker})
    for key, value in events:
        producer.produce("readings", value, key)
    assert producer.flush(30) == 0

    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in events:
        if key is not None and value is not None and value != b"{broken":
            wanted[text(key)].append(msgspec.json.decode(value)["n"])
    total = sum(map(len, wanted.values()))
    assert len(wanted) == 5
    assert total == 118

    for name, id in jobs.items():
        wait("output", lambda name=name: len(committed(session_broker, name)) >= total)
        wait("rejected", lambda name=name: len(committed(session_broker, f"{name}.rejected")) >= 22)
        assert counted(committed(session_broker, name)) == wanted
        check_rejected(committed(session_broker, f"{name}.rejected"))
        session_cluster.rest.cancel(id)

    made = load_job(str(JOB)).pipeline({})
    out = {side: tmp_path / f"{side}.jsonl" for side in ("main", "late", "rejected")}
    main, *others = [open_sink(f"file:{path}") for path in out.values()]
    source = open_source(f"{where}/readings?until=latest")
    options = LocalOptions(state_dir=tmp_path / "state")
    LocalEngine(made, {made.name: source}, main, dict(zip(list(out)[1:], others, strict=True)), options=options).run()
    assert counted(out["main"].read_bytes().splitlines()) == wanted
    check_rejected(out["rejected"].read_bytes().splitlines())


def counted(lines: list[bytes]) -> dict[str, list[str]]:
    """Return the records of each key in the order in which they were counted."""
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in map(msgspec.json.decode, lines):
        found[row["key"]].append((row["nth"], row["n"]))
    assert all([nth for nth, _ in rows] == list(range(1, len(rows) + 1)) for rows in found.values())
    return {key: [n for _, n in rows] for key, rows in found.items()}


def check_rejected(lines: list[bytes]) -> None:
    reasons = [msgspec.json.decode(line)["reason"] for line in lines]
    assert sum("the record has no key" in reason for reason in reasons) == 20
    assert len(reasons) == 22


def text(key: bytes) -> str:
    """Return a key as it is written in JSON."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return base64.b64encode(key).decode()


def test_where_records_have_no_key_the_job_is_refused(session_cluster: Any, flink: None, tmp_path: Path) -> None:
    made = load_job(str(JOB)).pipeline({})
    options = SubmitOptions(jobmanager=session_cluster.rest.address)
    with pytest.raises(UnsupportedError, match=r"key_by\(record_key\) needs records that have a key"):
        submit(made, {"bykey": f"file:{tmp_path}"}, "null:", {"late": "null:", "rejected": "null:"}, options)
