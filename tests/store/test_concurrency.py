"""People go on judging while a file comes in: nothing is lost, and nobody is turned away."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from manners.store import Store
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
