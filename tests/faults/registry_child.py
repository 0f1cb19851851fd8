"""A writer of a registry in a process of its own: says `ready`, waits for a line, then tells each number it wrote.

`python registry_child.py append PLACE WHO COUNT`, `... add PLACE BUNDLE COUNT`; `... check PLACE` tells, as JSON, what
is in the registry, and fails when a version or the history is not whole.
"""

from __future__ import annotations

import json
import sys

from streamml.models import Bundle, Registry


def main(what: str, place: str, *rest: str) -> None:
    registry = Registry(place)
    if what == "check":
        for version in registry.versions("m"):
            bundle = Bundle.load(registry.path("m", version))
            bundle.verify()
            assert bundle.manifest.version == version
        records = [[r.number, r.who, r.why] for r in registry.records("m")]
        print(json.dumps({"versions": registry.versions("m"), "records": records}))
        return
    print("ready", flush=True)
    sys.stdin.readline()
    given, count = rest
    for n in range(int(count)):
        if what == "add":
            print(registry.add("m", given), flush=True)
        else:
            fixed = {"effective": n, "champion": 1, "at": n}
            print(registry.append("m", "prod", "promote", who=given, why=str(n), **fixed).number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
