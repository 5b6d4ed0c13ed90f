"""A stage that does nothing takes a file, its record, and a line in the list; all else follows from the list."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import manners
from tests.loop import tiny
from tests.worlds import save_tiny

PACKAGE = Path(manners.__file__).parent
RECORD = '''
"""What it found out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Nothing:
    done: int | None = None
'''
FILE = '''
"""Nothing is done."""

from manners.loop.plan import make_plan
from manners.loop.stage import Inputs
from manners.results.noop import Nothing


def inputs(session, options, begun):
    return Inputs(decides={"nothing": 0})


def plan(session, inputs=None):
    return make_plan(session, "noop", {"steps": 0}, [])


def run(session, run, inputs):
    return Nothing(done=0)
'''
LINE = (
    '    Stage(name="noop", command="noop", summary="Do nothing.", module="manners.loop.noop", section="Nothing",'
    ' result=import_module("manners.results.noop").Nothing,'
    ' next=lambda s: None if "noop" in s.results else "manners noop"),\n'
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the file and the line."""
    root = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, root / "manners", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "manners" / "loop" / "noop.py").write_text(FILE, encoding="utf-8")
    (root / "manners" / "results" / "noop.py").write_text(RECORD, encoding="utf-8")
    listed = root / "manners" / "loop" / "round.py"
    before = listed.read_text(encoding="utf-8")
    last = "    EVALUATE,  # policy against the current version; promoted or not\n"
    assert before.count(last) == 1
    heading = "from __future__ import annotations\n"
    before = before.replace(heading, f"{heading}\nfrom importlib import import_module\n", 1)
    listed.write_text(before.replace(last, last + LINE), encoding="utf-8")
    return root


def run(package: Path, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of that package."""
    program = "import sys; from manners.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *argv]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.long
def test_a_stage_takes_a_file_its_record_and_a_line(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    tiny.project(root, save_tiny(tmp_path / "model"))

    def noop(*argv: str) -> dict[str, object]:
        done = run(package, "noop", "--json", *argv, cwd=root)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    # The command line, and its plan.
    assert "Do nothing." in run(package, "--help", cwd=root).stdout
    planned = noop("--plan")
    assert (planned["stage"], planned["steps"]) == ("noop", 0)
    assert not (root / "runs" / "noop.json").exists()
    # A run, and going on with it.
    assert noop()["done"] == 0
    again = run(package, "noop", "--resume", cwd=root)
    assert "manners noop: this run has finished; leave out --resume to begin another" in again.stderr
    # Status, and the report with its facts.
    status = json.loads(run(package, "status", "--json", cwd=root).stdout)
    assert status["next"].startswith("manners sample")
    assert run(package, "report", cwd=root).returncode == 0
    assert tiny.read_report(root)["noop"].items() >= {"done": 0}.items()
    assert "<h2>Nothing</h2>" in (root / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_a_round_runs_it_in_its_place_and_status_asks_for_it(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    model = save_tiny(tmp_path / "model")
    program = (
        "import sys, pathlib\n"
        "from tests.loop import tiny\n"
        "root, model = map(pathlib.Path, sys.argv[1:])\n"
        "tiny.demo(root, tiny.settings(model))\n"
    )
    path = os.pathsep.join([str(package), str(PACKAGE.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(root), str(model)]
    # Elsewhere than here: Python takes what stands in the folder that it is started in first.
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.index("memory for evaluate") < done.stderr.index("memory for noop")
    report = tiny.read_report(root)
    assert report["noop"]["done"] == 0 and set(report["seconds"]) == {"sample", "reward", "ppo", "evaluation", "noop"}
    (root / "runs" / "noop.json").unlink()
    status = json.loads(run(package, "status", "--json", "--workspace", str(root), cwd=tmp_path).stdout)
    assert status["next"] == "manners noop"
