"""What the claims of docs/evidence.md rest on, beyond the tests: a module an experiment, `python -m` runs one of them.

A module has a `main()` without arguments, which goes through its parts:

    def main() -> None:
        results = Results("coverage")
        for n in (10, 30, 130):
            results.part(f"bootstrap, n = {n}", {"n": n, "studies": 2000}, partial(simulate, n, 2000))

Every part ends in the types of JSON in `results/coverage.json`, with seconds, settings, and a digest of the code that
it ran: the module, and what that imports of ours, to the end, with the texts that lie in a package's folder. A part is
not done again until settings or that code have changed, so that a run that was stopped goes on, over commits too, and
`make evidence` (all modules, in the order of their names) is quick where nothing is new. What code reads from elsewhere
(a model that was made beforehand, a data set) has to stand in the settings.
"""

from __future__ import annotations

import ast
import json
import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.test_layers import imports

ROOT = Path(__file__).parents[2]
PACKAGES = ("manners", "benchmarks", "tests")
KEEPERS = {"benchmarks.evidence", "benchmarks.publish", "benchmarks.people_tables"}
"""What keeps results and shows them, and makes none."""
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def digest(*scripts: Path) -> str:
    """Return a digest of some scripts and of what they import: the same for every commit that changes none of it.

    With a package goes what lies in its folder and is no code: the texts of `manners.data`.
    """
    code = code_of(*scripts)
    beside = {one for path in code if path.name == "__init__.py" for one in path.parent.iterdir() if one.is_file()}
    found = sha256()
    for path in sorted({*code, *(one for one in beside if one.suffix != ".py")}):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def contents(*files: Path) -> str:
    """Return a digest of what some files hold, whatever they are called: for the settings of what rests on them."""
    return sha256(b"".join(sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


def code_of(*scripts: Path) -> list[Path]:
    """Return some scripts with all files of ours that they import, and that these import, inside functions too."""
    modules = {name: path for package in PACKAGES for path in (ROOT / package).rglob("*.py") for name in [_name(path)]}
    found, waiting = set[Path](), list(scripts)
    while waiting:
        if (path := waiting.pop()) not in found:
            found.add(path)
            named = set(imports(ast.parse(path.read_text(encoding="utf-8")), modules)) - KEEPERS
            waiting += [modules[name] for name in named if name in modules]
    return sorted(found)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Results:
    """What an experiment has found so far, in a file that is written after every part."""

    def __init__(self, name: str, folder: Path = RESULTS, *beside: Path) -> None:
        """Read the parts that are there; they rest on the script and what is named `beside`, with all they import."""
        self.path = folder / f"{name}.json"
        script = folder.parent / f"{name}.py"
        self.code = digest(*([script] if script.exists() else []), *beside)
        found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.parts: dict[str, dict[str, Any]] = found.get("parts", {})
        self.asked: list[str] = []
        """Names of the parts that were asked for: what a table that is made of them rests on."""

    def part(self, name: str, settings: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """Return what `work` finds with these settings, from the file where the same code has found it already."""
        chosen = json.loads(json.dumps(dict(settings)))
        self.asked.append(name)
        known = self.parts.get(name)
        if known is not None and (known["code"], known["settings"]) == (self.code, chosen):
            return known["value"]
        from manners.loop.session import machine  # loads torch, which whoever only runs the experiments does not need

        begin = time.perf_counter()
        value = json.loads(json.dumps(work()))
        seconds = round(time.perf_counter() - begin, 1)
        where = {"cpu": machine().cpu, "cores": machine().cores}
        self.parts[name] = {"value": value, "settings": chosen, "seconds": seconds, "code": self.code, **where}
        self._write()
        print(f"{self.path.stem}: {name}: {seconds} s", file=sys.stderr, flush=True)
        return value

    def measured(self) -> str:
        """Say on what, and in how long, the parts were done that were asked for: not where they are published."""
        parts = [self.parts[name] for name in dict.fromkeys(self.asked)]
        places = dict.fromkeys(f"{one['cores']} cores of {one['cpu']}" for one in parts)
        minutes = sum(one["seconds"] for one in parts) / 60
        return f"Measured on {' and '.join(places)}, in {minutes:.0f} minutes."

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"parts": self.parts}, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)
