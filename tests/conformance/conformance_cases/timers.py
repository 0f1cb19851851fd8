"""Event-time timers: one for time T fires when the watermark is at or past T, between the right rows, in order."""

from streamml.testing import Case, Expected, advance, event, row
from streamml.testing.probes import Alarm, BatchAlarm


def rang(key, t, events, watermark=None, alarm=""):
    time = t if isinstance(t, int) else row(key, t).timestamp
    watermark = time - 1 if watermark is None else watermark
    return row(key, time, id=f"{key}@{time}/{alarm}", alarm=alarm, events=events, watermark=watermark)


def both(name, script, expected, **more):
    """Make a case for the loop and one for the batch form, which must not differ."""
    return [
        Case(f"{name} ({how})", [kind(name="alarm")], script, expected, **more)
        for how, kind in (("loop", Alarm), ("batch", BatchAlarm))
    ]


CASES = [
    *both(
        "a timer fires when the watermark reaches it",
        [event("k", t="1s"), advance("10999ms"), event("k", t="2s"), advance("11s"), event("k", t="20s")],
        Expected([rang("k", "11s", 2), rang("k", "12s", 3), rang("k", "30s", 3)]),
    ),
    *both(
        "a timer fires before the first row that came after it was due",
        [event("k", t="1s"), event("k", t="2s"), advance("11s"), event("k", t="3s"), event("k", t="4s")],
        Expected([rang("k", "11s", 2), rang("k", "12s", 4), rang("k", "13s", 4), rang("k", "14s", 4)]),
    ),
    *both(
        "timers that one step of the watermark passes fire in order of time",
        [event("k", t="3s"), event("k", t="1s"), event("k", t="2s"), advance("60s")],
        Expected([rang("k", "11s", 3), rang("k", "12s", 3), rang("k", "13s", 3)]),
    ),
    *both(
        "two timers of one time and name are one",
        [event("k", t="1s"), event("k", t="1s"), advance("11s")],
        Expected([rang("k", "11s", 2)]),
    ),
    *both(
        "two timers of one time and different names are two",
        [event("k", t="1s", alarm="b"), event("k", t="1s", alarm="a"), advance("11s")],
        Expected([rang("k", "11s", 2, alarm="a"), rang("k", "11s", 2, alarm="b", watermark=10999)]),
    ),
    *both(
        "a timer that is taken back does not fire",
        [event("k", t="1s"), event("k", t="2s"), event("k", t="1s", cancel=True), advance("60s")],
        Expected([rang("k", "12s", 3)]),
    ),
    *both(
        "a timer may be set again after it fired",
        [event("k", t="1s"), advance("11s"), event("k", t="1s"), advance("12s"), event("k", t="12s")],
        Expected([rang("k", "11s", 1), rang("k", "11s", 2, watermark=11000), rang("k", "22s", 3)]),
    ),
    *both(
        "a timer belongs to its key",
        [event("k", t="1s"), event("j", t="2s"), event("k", t="3s"), advance("12s"), event("j", t="5s", cancel=True)],
        Expected([rang("k", "11s", 2), rang("k", "13s", 2), rang("j", "12s", 1)]),
    ),
    *both(
        "the end of the input fires what is pending",
        [event("k", t="1s"), event("k", t="1000d")],
        Expected([rang("k", "11s", 2), rang("k", 86_400_010_000, 2)]),
    ),
    *both(
        "while the input is open nothing fires before its time",
        [event("k", t="1s"), event("k", t="2s"), advance("11s")],
        Expected([rang("k", "11s", 2)]),
        end=False,
    ),
    *both(
        "a timer of an event that is rejected is taken back",
        [event("k", t="1s"), event("k", t="2s", poison=True), event("j", t="2s", poison=True)],
        Expected(
            [rang("k", "11s", 1)],
            {"rejected": [{"key": "k", "id": "script/e1", "reason": "poison"}, {"key": "j", "id": "script/e2"}]},
        ),
    ),
    *both(
        "a timer that raises is rejected alone",
        [event("k", t="1s"), event("k", t="2s", fatal=True), event("k", t="3s")],
        Expected(
            [rang("k", "11s", 3), rang("k", "13s", 3)],
            {"rejected": [{"key": "k", "timestamp": 12000, "error": "RuntimeError", "reason": "fatal timer"}]},
        ),
    ),
]
