"""Keys: which are legal, and what happens to rows that have none."""

from streamml.operators import Filter
from streamml.testing import Case, Expected, event, row
from streamml.testing.probes import Remember


def first(key, t, n):
    return row(key, t, n=n, before=None, known=False, recent=[n], distinct=[n], table={str(n): row(key, t).timestamp})


CASES = [
    Case(
        "a row without a key is rejected by a keyed stage",
        [Remember()],
        [event(None, t="1s", n=1), event("k", t="2s", n=2), event(None, t="3s", n=3)],
        Expected(
            [first("k", "2s", 2)],
            {"rejected": [{"id": "script/e0", "operator": "key_by.stage1"}, {"id": "script/e2", "timestamp": 3000}]},
        ),
    ),
    Case(
        "strings, numbers, bytes and tuples are keys, and no two of them are one",
        [Remember()],
        [event(k, t="1s", n=1) for k in ("1", 1, b"1", ("1",), ("1", 1), "", -1, 2**40)],
        Expected([first(k, "1s", 1) for k in ("1", 1, b"1", ("1",), ("1", 1), "", -1, 2**40)]),
    ),
    Case(
        "floats, lists and truth values are no keys",
        [Remember()],
        [
            event(1.5, n=1),
            event(["a"], n=1),
            event(True, n=1),
            event(("a", None), n=1),
            event((), n=1),
            event("k", n=1),
        ],
        Expected([first("k", 0, 1)], {"rejected": [{"id": f"script/e{i}"} for i in range(5)]}),
    ),
    Case(
        "a stage without a key takes rows without one",
        [Filter(lambda e: e.n > 1)],
        [event(None, n=1), event(None, n=2), event("k", n=3)],
        Expected([row(None, 0, n=2), row(None, 0, n=3)]),
    ),
]
