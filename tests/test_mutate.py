"""Changing the code to see who notices: which changes there are, and what becomes of them in a planted project."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import mutate
from tests.mutants import mutants

ROOT = Path(__file__).parents[1]
SOURCE = '''
"""A docstring stays, and so do 3 words of it."""

@dataclass(frozen=True)
def f(x: "int | None" = 1, *, on: bool = True) -> "int | float":
    """Stay."""
    assert x, "at least 1"
    return -x + 2.0 if x > 0 and on else 0


def g(rows: list[int]) -> list[int]:
    return [n for n in rows if n] if not rows == [] else rows[:1]
'''
CHANGES = [
    (5, "1 -> 0"),
    (5, "1 -> 2"),
    (5, "True -> False"),
    (8, "-x -> (x)"),
    (8, "-x + 2.0 -> (-x - 2.0)"),
    (8, "2.0 -> 1.0"),
    (8, "2.0 -> 4.0"),
    (8, "x > 0 -> (x <= 0)"),
    (8, "x > 0 -> (x >= 0)"),
    (8, "x > 0 and on -> (not (x > 0 and on))"),
    (8, "x > 0 and on -> (x > 0 or on)"),
    (8, "0 -> 1"),
    (8, "0 -> 1"),
    (12, "n -> (not (n))"),
    (12, "not rows == [] -> (rows == [])"),
    (12, "rows == [] -> (rows != [])"),
    (12, "1 -> 0"),
    (12, "1 -> 2"),
]
MODULE = """LIMIT = 3


def few(count: int) -> bool:
    return count < LIMIT
"""
WEAK = """from manners.maths import few


def test_one_is_few_and_ten_are_not() -> None:
    assert few(1) and not few(10)
"""
STRONG = (
    WEAK
    + """

def test_two_are_few_and_three_are_not() -> None:
    assert few(2) and not few(3)
"""
)


def test_every_change_is_found_and_annotations_and_texts_stay() -> None:
    found = mutants("maths", SOURCE.encode())
    assert sorted((one.line, one.change) for one in found) == sorted(CHANGES)
    for one in found:
        changed = one.applied(SOURCE.encode())
        ast.parse(changed)
        assert changed != SOURCE.encode()
        assert one.text[one.column :].startswith(one.old)


def test_a_change_stands_where_it_belongs_behind_letters_of_several_bytes() -> None:
    (one,) = mutants("maths", 'name = "für", not x\n'.encode())
    assert one.applied('name = "für", not x\n'.encode()).decode() == 'name = "für", (x)\n'


def test_every_module_has_its_tests_and_known_survivors_are_still_there() -> None:
    for module, files in mutate.TESTS.items():
        assert (ROOT / "manners" / f"{module}.py").is_file(), module
        assert all((ROOT / "tests" / name).is_file() for name in files.split()), module
    there = {
        (module, one.text, one.column, one.change)
        for module in mutate.TESTS
        for one in mutants(module, (ROOT / "manners" / f"{module}.py").read_bytes())
    }
    known = mutate.reasons(ROOT)
    assert set(known) <= there, "remove those whose line is gone"
    assert all(len(reason) > 10 for reason in known.values())


def test_a_smaller_draw_is_the_beginning_of_a_larger_one() -> None:
    small, large = (set(mutate.drawn(ROOT, ["maths", "reward/loss"], count, 3)) for count in (20, 40))
    assert small < large and len(large) == 40
    assert set(mutate.drawn(ROOT, ["maths", "reward/loss"], 20, 4)) != small


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A project of one module, whose tests leave two of its borders open."""
    for name, text in (("manners/__init__.py", ""), ("manners/maths.py", MODULE), ("tests/test_maths.py", WEAK)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["long: takes long"]\n', encoding="utf-8"
    )
    return tmp_path


def run(root: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(ROOT / "tests" / "mutate.py"), "--json", "--root", str(root), *options]
    done = subprocess.run([*command, "--modules", "maths"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, facts


@pytest.mark.long
def test_what_weak_tests_let_through_survives_and_strong_ones_notice_it(planted: Path) -> None:
    code, weak = run(planted)
    assert (code, weak["n"], weak["killed"], weak["survived"], weak["noticed"]) == (1, 4, 1, 3, 0.25)
    survivors = {(one["line"], one["change"], one["outcome"]) for one in weak["survivors"]}
    border = (5, "count < LIMIT -> (count <= LIMIT)", "survived")
    assert survivors == {(1, "3 -> 2", "survived"), (1, "3 -> 4", "survived"), border}
    (planted / "tests" / "test_maths.py").write_text(STRONG, encoding="utf-8")
    code, strong = run(planted)
    assert (code, strong["killed"], strong["survivors"]) == (0, 4, [])


@pytest.mark.long
def test_what_is_known_is_not_tried_again_and_known_survivors_are_counted_apart(planted: Path) -> None:
    found = planted / ".mutate_cache" / "found.jsonl"
    _, first = run(planted, "--n", "2", "--seed", "1")
    lines = found.read_text(encoding="utf-8").splitlines()
    assert len(lines) == first["n"] == 2
    assert run(planted, "--n", "2", "--seed", "1")[1] == first
    code, more = run(planted, "--seed", "1")
    assert found.read_text(encoding="utf-8").splitlines()[:2] == lines
    assert (code, more["n"], more["survived"]) == (1, 4, 3)
    known = [{**one, "reason": "nobody asks"} for one in more["survivors"]]
    (planted / "tests" / "mutate_known.jsonl").write_text("".join(json.dumps(one) + "\n" for one in known))
    code, told = run(planted, "--seed", "1")
    assert (code, told["survived"], told["without_effect"], told["noticed"]) == (0, 0, 3, 1.0)
    assert {one["reason"] for one in told["survivors"]} == {"nobody asks"}
    assert len(found.read_text(encoding="utf-8").splitlines()) == 4


def test_tests_that_fail_anyway_are_no_measure(planted: Path) -> None:
    (planted / "tests" / "test_maths.py").write_text("def test_no() -> None:\n    assert False\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tests" / "mutate.py"), "--root", str(planted), "--modules", "maths"]
    done = subprocess.run(command, cwd=planted, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "fail without any change: tests/test_maths.py::test_no" in done.stderr


def test_a_survivor_is_tried_again_where_its_module_has_another_test_file(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, *_] = mutants("maths", MODULE.encode())
    mutate.Found(planted).put(first, mutate.Ran(passed=True, failed="", seconds=1.0, loaded=()), planted)
    assert mutate.Found(planted).get(first) is False
    (planted / "tests" / "test_more.py").write_text(STRONG, encoding="utf-8")
    monkeypatch.setitem(mutate.TESTS, "maths", "test_maths.py test_more.py")
    assert mutate.Found(planted).get(first) is None
