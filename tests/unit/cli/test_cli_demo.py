"""`streamml run JOB --demo`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamml.jobs.payments_demo import auc

pytestmark = pytest.mark.slow


def test_the_payments_demo_scores_its_stream_again_and_again(cli: Any, home: Path) -> None:
    pytest.importorskip("onnxruntime")
    first = cli("run", "payments", "--demo", "--demo-events", "20000", "--json")
    assert (first.code, first.err) == (0, "")
    found = first.json
    assert found["figures"]["events_in"] == 20_000
    assert float(found["report"]["AUC"].split()[0]) > 0.9
    output = (home / "build/demo/payments/output.jsonl").read_bytes()
    second = cli("run", "payments", "--demo", "--demo-events", "20000")
    assert second.code == 0
    assert "AUC" in second.out and "Try next" in second.out
    assert (home / "build/demo/payments/output.jsonl").read_bytes() == output


def test_a_jobs_own_demo_lies_beside_it(cli: Any, home: Path) -> None:
    (home / "clicks_demo.py").write_text(
        "def demo_source(folder, events):\n"
        '    lines = [\'{"id":"%d","user":"u","ts":%d}\' % (i, i) for i in range(events)]\n'
        "    (folder / 'in.jsonl').write_text('\\n'.join(lines))\n"
        "    return f'file:{folder}/in.jsonl'\n"
        "def demo_report(folder, output):\n"
        "    return {'last': output.read_text().splitlines()[-1]}\n"
    )
    done = cli("run", "clicks.py", "--demo", "--demo-events", "30", "--json")
    assert json.loads(done.json["report"]["last"])["n"] == 30


def test_a_folder_that_no_demo_made_is_not_replaced(cli: Any, home: Path) -> None:
    (home / "build/demo/payments").mkdir(parents=True)
    (home / "build/demo/payments/mine").touch()
    done = cli("run", "payments", "--demo", "--demo-events", "10")
    assert (done.code, "did not make it" in done.err) == (3, True)
    assert (home / "build/demo/payments/mine").exists()


def test_a_job_without_a_demo_says_so(cli: Any, home: Path) -> None:
    done = cli("run", "clicks.py", "--demo")
    assert (done.code, "no clicks_demo.py beside it" in done.err) == (2, True)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        scores = random.integers(0, 8, 40) / 8
        labels = np.r_[0, 1, random.integers(0, 2, 38)]
        pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
        assert auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))


def test_the_command_that_goes_on_after_a_stopped_demo_is_complete(home: Path) -> None:
    from streamml.cli.run import _command

    text = _command("payments", ("file:a b.jsonl",), "file:o.jsonl", Path("st"))
    assert re.fullmatch(r"streamml run payments --source 'file:a b.jsonl' --sink file:o.jsonl --state-dir st", text)
