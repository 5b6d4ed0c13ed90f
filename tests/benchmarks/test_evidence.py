"""What docs/evidence.md names is there; experiments go on where they were stopped, and are done anew for new code."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.evidence import __main__ as runner

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| claim", "| **"))]
NAMED = re.compile(r"`((?:tests|benchmarks)/[\w/.]+)(?:::(\w+))?`|`python -m (benchmarks[\w.]*)")


def named(text: str) -> list[tuple[Path, str]]:
    """Files that a text names, each with the function in it, if one is named."""
    found = []
    for file, function, module in NAMED.findall(text):
        path = ROOT / (file or f"{module.replace('.', '/')}.py")
        found.append((path if path.exists() else path.with_suffix("") / "__main__.py", function))
    return found


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=[row[2:50].strip() for row in ROWS])
def test_every_claim_names_tests_or_scripts_that_are_there(row: str) -> None:
    claim, tested, result, assumption = (cell.strip() for cell in row[1:-1].split("|"))
    assert claim and result and assumption
    assert named(tested), "say what tests it"
    for path, function in named(tested):
        assert path.is_file(), path
        assert not function or function in functions(path), f"{path.name} has no {function}"


def test_a_name_that_is_not_there_is_found() -> None:
    [(path, function)] = named("`tests/test_maths.py::test_of_nothing`")
    assert path.is_file() and function not in functions(path)
    assert [path.is_file() for path, _ in named("`tests/none.py` and `python -m benchmarks.evidence`")] == [False, True]


def test_experiments_are_found_and_each_can_be_run() -> None:
    for name in runner.names():
        assert "main" in functions(evidence.FOLDER / f"{name}.py"), name


def test_a_part_is_done_once_for_its_settings_and_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def work() -> dict[str, int]:
        done.append(1)
        return {"times": len(done)}

    for _ in range(2):
        results = evidence.Results("made_up", tmp_path)
        assert results.part("one", {"n": 10}, work) == {"times": 1}
    assert results.part("one", {"n": 30}, work) == {"times": 2}
    with pytest.raises(ZeroDivisionError):  # stopped in the second part: the first is kept
        results.part("two", {}, lambda: 1 / 0)
    assert evidence.Results("made_up", tmp_path).part("one", {"n": 30}, work) == {"times": 2}
    written = json.loads((tmp_path / "made_up.json").read_text(encoding="utf-8"))["parts"]["one"]
    assert written["settings"] == {"n": 30} and written["cpu"] and written["seconds"] >= 0
    monkeypatch.setattr(evidence, "digest", lambda *_: "other code")
    assert evidence.Results("made_up", tmp_path).part("one", {"n": 30}, work) == {"times": 3}


def test_the_digest_is_of_the_code_and_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    code, script = tmp_path / "manners" / "a.py", tmp_path / "script.py"
    code.parent.mkdir()
    digests = set()
    for text, other in (("1", "1"), ("2", "1"), ("2", "2")):
        code.write_text(text, encoding="utf-8")
        script.write_text(other, encoding="utf-8")
        digests.add(evidence.digest(script))
    assert len(digests) == 3
    (tmp_path / "page.md").write_text("no code", encoding="utf-8")
    assert evidence.digest(script) in digests
