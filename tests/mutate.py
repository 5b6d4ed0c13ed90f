"""Would the tests notice? `python tests/mutate.py --n 60 --seed 0`: change one operator at a time, and see who fails.

A mutant is the package with one operator, comparison, constant or condition changed. It is noticed if one of the test
files of its module (`TESTS`) fails, or takes far longer than without the change. Tests marked `long` and those on
PostgreSQL are left out. Which mutants are tried follows from the seed; a larger N goes on where a smaller one ended.
What was found out stays in `.mutate_cache`, and is found out anew only when the files that it rests on have changed.

`mutate_known.jsonl` holds the survivors that no test can notice, each with its reason: they are counted apart.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
# Run as a file, too, it finds what lies beside it, and takes no test file for a library.
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry) != Path(__file__).parent)]

from tests.mutants import Mutant, mutants  # noqa: E402

TESTS = {
    "maths": "test_maths.py",
    "ppo/objective": "ppo/test_objective.py ppo/test_trl_formulas.py",
    "reward/loss": "reward/test_loss.py",
    "reward/augment": "reward/test_augment.py",
    "reward/length": "reward/test_length_head.py",
    "reward/noise": "reward/test_noise.py",
    "feedback/statistics": "feedback/test_statistics.py feedback/test_agreement.py evaluate/test_tried.py",
    "feedback/davidson": "feedback/test_davidson.py",
    "evaluate/compare": "evaluate/test_compare.py",
    "reward/pairs": "reward/test_pairs.py reward/test_shares.py reward/test_train.py",
    "reward/calibrate": "reward/test_calibrate.py",
    "ppo/train": "ppo/test_train.py ppo/test_learner.py",
    "ppo/rollout": "ppo/test_rollout.py ppo/test_pessimism.py ppo/test_train.py",
    "text": "test_text.py test_shorten.py test_families.py",
    "store/files/formats": "store/test_transfer.py store/test_round_trip.py",
    "feedback/queue": "feedback/test_queue.py",
    "evaluate/ask": "evaluate/test_ask.py",
    "web/desk": "web/test_desk.py",
}
"""The test files of each module that can be mutated, cheapest first: the only place that says so."""
COPIED = ("manners", "tests", "benchmarks", "pyproject.toml")
SLOWER, LEAST_SECONDS = 5, 20.0
"""A mutant that takes so many times as long as the unchanged tests, and at least so many seconds, does not end."""
Outcome = Literal["killed", "survived", "without effect"]
Name = tuple[str, str, int, str]
"""Module, text of the line, column in it, change: what a known survivor goes by."""
Judged = tuple[Mutant, Outcome, str]
"""A mutant, what became of it, and the reason of a known survivor."""


class FirstFailure:
    """A plugin of pytest: the file of the first test that failed, and what was loaded at the end."""

    def __init__(self, report: Path) -> None:
        """Write to a file, since the process ends."""
        self.report = report
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Remember the first."""
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot even be read has failed too."""
        self._note(report)

    def pytest_sessionfinish(self) -> None:
        """Say it."""
        loaded = [name for name in sys.modules if name.partition(".")[0] not in COPIED]
        self.report.write_text(json.dumps({"failed": self.failed, "loaded": loaded}), encoding="utf-8")

    def _note(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


@dataclass(frozen=True)
class Ran:
    """What came of a module's tests."""

    passed: bool
    failed: str
    """The first test that did, or `time`."""
    seconds: float
    loaded: tuple[str, ...]


class Bench:
    """A copy of the repository in which one module at a time is changed and tested."""

    def __init__(self, root: Path, folder: Path) -> None:
        """Copy what the tests need."""
        self.root = root
        self.folder = folder
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".venvs"))
            elif (root / name).exists():
                shutil.copy(root / name, folder / name)
        self.limits: dict[str, float] = {}

    def prepare(self, module: str) -> None:
        """Run a module's tests unchanged, and load the libraries that they load; raises SystemExit where they fail."""
        ran = self._run(module, 3600.0, write_bytecode=True)
        if not ran.passed:
            print((self.folder / "log").read_text(encoding="utf-8"), file=sys.stderr)
            raise SystemExit(f"the tests of {module} fail without any change: {ran.failed}")
        with suppress(OSError):
            shutil.rmtree(self._path(module).parent / "__pycache__")
        for name in ran.loaded:
            with suppress(Exception):
                import_module(name)
        gc.freeze()  # a fork that collects garbage looks only at what is its own
        again = self._run(module, 3600.0)
        self.limits[module] = max(LEAST_SECONDS, SLOWER * again.seconds)
        print(f"{module}: {again.seconds:.1f} s without a change", file=sys.stderr)

    def try_out(self, mutant: Mutant) -> Ran:
        """Run a module's tests with one change in it."""
        path = self._path(mutant.module)
        source = path.read_bytes()
        try:
            path.write_bytes(mutant.applied(source))
            return self._run(mutant.module, self.limits[mutant.module])
        finally:
            path.write_bytes(source)

    def _path(self, module: str) -> Path:
        return self.folder / "manners" / f"{module}.py"

    def _run(self, module: str, limit: float, write_bytecode: bool = False) -> Ran:
        """Run them in a fork, which has the libraries already, and end it with all its children at the limit."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        begin = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            self._child(module, report, write_bytecode)
        status = _wait(pid, begin + limit)
        seconds = time.perf_counter() - begin
        said = (
            json.loads(report.read_text(encoding="utf-8"))
            if report.exists()
            else {"failed": "the process", "loaded": []}
        )
        failed = "time" if status is None else str(said["failed"])
        return Ran(status == 0, failed, seconds, tuple(said["loaded"]))

    def _child(self, module: str, report: Path, write_bytecode: bool) -> None:
        """Become a run of pytest in the copy, silent, in a group of its own."""
        os.setsid()
        os.chdir(self.folder)
        for name in [name for name in sys.modules if name.partition(".")[0] in COPIED]:
            del sys.modules[name]
        sys.dont_write_bytecode = not write_bytecode
        os.environ |= {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "" if write_bytecode else "1"}
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # no test of ours needs one, but for the seed below
        sys.path[:] = [str(self.folder), *(entry for entry in sys.path if Path(entry) != self.root)]
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 99
        try:
            import pytest

            files = _files(module)
            chosen = ["-m", "not long", "-k", "not postgresql"]
            plain = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            repeated = ["-p", "_hypothesis_pytestplugin", "--hypothesis-seed=0"]
            code = int(pytest.main([*plain, *chosen, *repeated, *files], plugins=[FirstFailure(report)]))
        finally:
            os._exit(code)


def _wait(pid: int, until: float) -> int | None:
    """Return a child's exit status, None where it had to be ended."""
    status = None
    while time.perf_counter() < until:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.waitpid(pid, 0)
    return status


class Found:
    """What is known of mutants, from earlier runs too: a line each, with the digests of the files that it rests on."""

    def __init__(self, root: Path) -> None:
        """Read what is there."""
        self.root = root
        self.path = root / ".mutate_cache" / "found.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.rows[self._key(row["module"], row["start"], row["new"])] = row

    def get(self, mutant: Mutant) -> bool | None:
        """Return whether a mutant was noticed, None where that is not known of the files as they are."""
        row = self.rows.get(self._key(mutant.module, mutant.start, mutant.new))
        if row is None or any(_digest(self.root / name) != of for name, of in row["rests_on"].items()):
            return None
        if not row["killed"] and not row["rests_on"].keys() >= set(_files(mutant.module)):
            return None
        return bool(row["killed"])

    def put(self, mutant: Mutant, ran: Ran, tested: Path) -> None:
        """Write down what became of a mutant in a copy: a kill rests on the file that noticed, a survivor on all."""
        files = _files(mutant.module)
        noticed = [name for name in files if ran.failed.startswith(name)]
        rests_on = {name: _digest(tested / name) for name in [f"manners/{mutant.module}.py", *(noticed or files)]}
        row = {**asdict(mutant), "killed": not ran.passed, "by": ran.failed, "rests_on": rests_on}
        self.rows[self._key(mutant.module, mutant.start, mutant.new)] = row
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @staticmethod
    def _key(module: str, start: int, new: str) -> str:
        return f"{module}:{start}:{new}"


def _files(module: str) -> list[str]:
    return [f"tests/{name}" for name in TESTS[module].split()]


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def drawn(root: Path, modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Draw mutants of some modules; the first N of a larger draw are those of a smaller one."""
    found = [m for name in modules for m in mutants(name, (root / "manners" / f"{name}.py").read_bytes())]
    random.Random(seed).shuffle(found)
    return sorted(found[:count], key=lambda one: (modules.index(one.module), one.start))


def reasons(root: Path) -> dict[Name, str]:
    """Return why known survivors survive."""
    path = root / "tests" / "mutate_known.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {(row["module"], row["text"], row["column"], row["change"]): row["reason"] for row in rows}


def judge(root: Path, chosen: Sequence[Mutant], say: Callable[[str], None]) -> list[Judged]:
    """Find out of each mutant whether it is noticed; return it with its outcome, and the reason of a known survivor."""
    found, known = Found(root), reasons(root)
    results: list[Judged] = []
    with tempfile.TemporaryDirectory(prefix="manners-mutate-") as folder:
        bench: Bench | None = None
        for number, mutant in enumerate(chosen, start=1):
            killed = found.get(mutant)
            if killed is None:
                bench = bench or Bench(root, Path(folder))
                if mutant.module not in bench.limits:
                    bench.prepare(mutant.module)
                ran = bench.try_out(mutant)
                found.put(mutant, ran, bench.folder)
                killed = not ran.passed
            why = known.get((mutant.module, mutant.text, mutant.column, mutant.change), "")
            outcome: Outcome = "killed" if killed else "without effect" if why else "survived"
            results.append((mutant, outcome, why))
            if outcome == "survived":
                where = f"{mutant.module}:{mutant.line}"
                say(f"{number}/{len(chosen)} survived: {where}: {mutant.change} in `{mutant.text}`")
    return results


def summary(results: Sequence[Judged], options: Namespace) -> dict[str, Any]:
    """Count by module, and list who survived."""

    def counts(some: Sequence[Judged]) -> dict[str, Any]:
        number = Counter(outcome for _, outcome, _ in some)
        found: dict[str, Any] = {
            name.replace(" ", "_"): number[name] for name in ("killed", "survived", "without effect")
        }
        can_be = found["killed"] + found["survived"]
        return found | {"noticed": found["killed"] / can_be if can_be else None}

    modules = dict.fromkeys(mutant.module for mutant, _, _ in results)
    listed = [
        {
            "module": m.module,
            "line": m.line,
            "change": m.change,
            "text": m.text,
            "column": m.column,
            "outcome": o,
            "reason": why,
        }
        for m, o, why in results
        if o != "killed"
    ]
    return {
        "n": len(results),
        "seed": options.seed,
        **counts(results),
        "modules": {name: counts([one for one in results if one[0].module == name]) for name in modules},
        "survivors": listed,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Try N mutants; ends with 1 where one survived without a known reason."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=60, help="mutants, drawn from all of the chosen modules")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", choices=list(TESTS), default=list(TESTS), metavar="MODULE")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout; this one if left out")
    options = parser.parse_args(arguments)
    chosen = drawn(options.root, options.modules, options.n, options.seed)
    facts = summary(judge(options.root, chosen, lambda text: print(text, file=sys.stderr, flush=True)), options)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, of in {**facts["modules"], "all": facts}.items():
            print(f"{name}: {of['killed']} killed, {of['survived']} survived, {of['without_effect']} without effect")
    return int(facts["survived"] > 0)


if __name__ == "__main__":
    sys.exit(main())
