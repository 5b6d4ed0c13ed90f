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
    results = evidence.Results("made_up", tmp_path)
    results.part("one", {"n": 30}, work)
    results.parts["elsewhere"] = {**results.parts["one"], "cpu": "another", "cores": 7, "seconds": 120.0}
    assert results.measured() == f"Measured on {written['cores']} cores of {written['cpu']}, in 0 minutes."
    results.part("elsewhere", {"n": 30}, work)
    assert results.measured().endswith("and 7 cores of another, in 2 minutes."), "wherever it is published"
    monkeypatch.setattr(evidence, "digest", lambda *_: "other code")
    assert evidence.Results("made_up", tmp_path).part("one", {"n": 30}, work) == {"times": 3}


def test_the_digest_is_of_the_script_and_of_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end, and inside functions; a commit that changes something else leaves the results as they are."""
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    script = tmp_path / "benchmarks" / "script.py"
    texts = {
        script: "from benchmarks.evidence import Results\nfrom manners.near import thing\nimport numpy",
        tmp_path / "manners" / "near.py": "def thing():\n    from manners.deep import far",
        tmp_path / "manners" / "deep" / "far.py": "from manners import near",
        tmp_path / "manners" / "apart.py": "1",
        tmp_path / "benchmarks" / "evidence" / "__init__.py": "from manners import apart",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    data = tmp_path / "manners" / "deep" / "texts.txt"
    data.write_text("words", encoding="utf-8")
    package = tmp_path / "manners" / "deep" / "__init__.py"
    package.write_text("", encoding="utf-8")
    before = evidence.digest(script)
    changing = set[Path]()
    for path, text in texts.items():
        path.write_text(text + "  # other", encoding="utf-8")
        changing |= {path} if evidence.digest(script) != before else set()
        path.write_text(text, encoding="utf-8")
    assert changing == set(list(texts)[:3])
    data.write_text("other words", encoding="utf-8")
    assert evidence.digest(script) == before, "nobody reads them"
    script.write_text(texts[script] + "\nfrom manners.deep import words", encoding="utf-8")
    before = evidence.digest(script)
    data.write_text("words", encoding="utf-8")
    assert evidence.digest(script) != before, "a package has texts, and a part may rest on them"


def test_an_experiment_of_figures_does_not_rest_on_pages_or_ppo() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in evidence.code_of(evidence.FOLDER / "coverage.py")}
    assert found >= {
        "manners/evaluate/compare.py",
        "benchmarks/evidence/_planted_queue.py",
        "manners/feedback/queue.py",
    }
    assert not [name for name in found if name.startswith(("manners/web/", "manners/ppo/", "manners/cli/"))]
