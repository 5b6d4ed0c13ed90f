"""People go on judging while a file comes in: nothing is lost, and nobody is turned away."""

from __future__ import annotations

import json
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from manners.cli import main
from manners.errors import Unavailable
from manners.store import Store, schema
from manners.store.files.transfer import import_comparisons
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.workspace import Workspace

VERDICTS = 60
PROCESS = """
import sys
from manners.store import Store
from manners.types import Annotator, AnnotatorKind, Choice, Verdict

store = Store.open(sys.argv[1])
for _ in range(int(sys.argv[4])):
    store.add_verdicts([(int(sys.argv[3]), Verdict(Choice.TIE, Annotator(sys.argv[2], AnnotatorKind.HUMAN)))])
"""


def judge(store: Store, comparison: int, name: str) -> None:
    for number in range(VERDICTS):
        choice = Choice.LEFT if number % 2 else Choice.RIGHT
        store.add_verdicts([(comparison, Verdict(choice, Annotator(name, AnnotatorKind.HUMAN)))])
        store.add_prompts([(Turn(Role.USER, f"{name} {number}"),)], PromptUse.TRAIN, "chat")


def test_who_writes_for_longer_than_others_wait_costs_them_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program holds the file: reading goes on, nothing is written by half, and later all goes on."""
    monkeypatch.setattr(schema, "WAIT_SECONDS", 0.05)
    workspace = Workspace.create(tmp_path / "ws")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n", encoding="utf-8")
    command = ["prompts", "import", str(prompts), "--use", "train", "--workspace", str(workspace.root)]
    tie = Verdict(Choice.TIE, Annotator("anna", AnnotatorKind.HUMAN))
    first = Comparison((Turn(Role.USER, "Hi"),), Response("a", "v1"), Response("b", "v1"), AskedHow.RANDOM)
    with closing(Store.create(workspace.database)) as store:
        [comparison] = store.add_comparisons([first])
        with closing(sqlite3.connect(workspace.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told = (
                r"^The database .*store\.db refused \(database is locked\); check that .* no other program holds it\.$"
            )
            for write in (
                lambda: store.add_verdicts([(comparison, tie)]),
                lambda: store.add_prompts([first.prompt], PromptUse.TRAIN, "mine"),
                lambda: store.merge_comparisons([first]),
            ):
                with pytest.raises(Unavailable, match=told):
                    write()
            assert main(command) == 1
            assert capsys.readouterr().err.count("database is locked") == 1
            assert [len(one.verdicts) for one in store.comparisons()] == [0] and len(store.prompts()) == 1
            other.execute("ROLLBACK")
        store.add_verdicts([(comparison, tie)])
        assert main(command) == 0
        assert [len(one.verdicts) for one in store.comparisons()] == [1] and len(store.prompts()) == 3


@pytest.mark.long
def test_labelling_goes_on_while_two_files_come_in(database: str, tmp_path: Path) -> None:
    store = Store.create(database)
    first = Comparison((Turn(Role.USER, "Hi"),), Response("a", "v1"), Response("b", "v1"), AskedHow.RANDOM)
    [comparison] = store.add_comparisons([first])
    row = {"left": "a", "right": "b", "verdict": "left", "annotator": "file"}
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": str(number)}) + "\n" for number in range(1500)))
    arguments = [database, "process", str(comparison), str(VERDICTS)]
    process = Popen([sys.executable, "-c", PROCESS, *arguments], stderr=PIPE, cwd=Path(__file__).parents[2])
    with ThreadPoolExecutor(5) as pool:
        judges = [pool.submit(judge, store, comparison, f"thread {number}") for number in range(3)]
        imports = [pool.submit(import_comparisons, store, path, {}, False) for _ in range(2)]
        for future in judges:
            future.result()
        results = [future.result() for future in imports]
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint.decode()
    # Both go in slices, and whoever comes first with a row has added it.
    assert sum(result.verdicts for result in results) == sum(result.duplicates for result in results) == 1500
    assert all(result.verdicts + result.duplicates == 1500 for result in results)
    stored = store.comparisons()
    assert len(stored) == 1501 and len(stored[0].verdicts) == 4 * VERDICTS
    for number in range(3):
        own = [v.choice for v in stored[0].verdicts if v.annotator.name == f"thread {number}"]
        assert own == [Choice.RIGHT, Choice.LEFT] * (VERDICTS // 2)
    assert store.counts().prompts[PromptUse.TRAIN] == 1501 + 3 * VERDICTS
    store.close()
