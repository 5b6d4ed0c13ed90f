"""Compares the facts of two runs to the last digit, those apart that a clock or the machine decides.

python -m benchmarks.same_report before/report.json after/report.json

Prints every fact that differs and ends with 1 if any does: a change that is not meant to change what is learnt leaves
none (on one machine, with one number of threads, from one seed).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIVELY = ("seconds", "per_second", "peak_memory", "time/", "machine", "created_at")
"""Parts of the names of facts that differ from run to run."""


def flat(facts: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each fact as its path and its text in JSON."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            if not any(part in key for part in LIVELY):
                yield from flat(value, f"{name}.{key}".lstrip("."))
    elif isinstance(facts, list):
        yield f"{name}.length", str(len(facts))
        for place, value in enumerate(facts):
            yield from flat(value, f"{name}[{place}]")
    else:
        yield name, json.dumps(facts)


def differences(before: Any, after: Any) -> list[str]:
    """Return a line for each fact that is not the same, or is in one of the two only."""
    old, new = dict(flat(before)), dict(flat(after))
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def main(argv: list[str]) -> int:
    """Compare the two files named on the command line."""
    before, after = (json.loads(Path(name).read_text(encoding="utf-8")) for name in argv)
    found = differences(before, after)
    print("\n".join(found) or f"the same: {len(dict(flat(before))):,} facts")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
