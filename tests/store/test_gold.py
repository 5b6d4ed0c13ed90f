"""Known verdicts: put in by a command, asked anew, and never learnt from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manners.cli import main
from manners.reward.labelled import LeftOut
from manners.reward.verdicts import sort_out
from manners.store import Store, gold
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from manners.workspace import Workspace


def test_a_command_puts_a_known_verdict_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    sides = Response("good", "x"), Response("bad", "y")
    with_verdict = Comparison((Turn(Role.USER, "?"),), *sides, AskedHow.RANDOM, 1.0, (Verdict(Choice.LEFT, anna),))
    store = Store.open_or_create(workspace.database)
    (key,) = store.add_comparisons([with_verdict])
    assert (
        main(["comparisons", "gold", str(key), "--choice", "left", "--workspace", str(workspace.root), "--json"]) == 0
    )
    added = json.loads(capsys.readouterr().out)
    assert added == {"comparison": added["comparison"], "choice": "left"} and added["comparison"] != key
    assert [one.choice for one in gold.known(store)] == [Choice.LEFT]
    old, new = store.comparisons()
    assert (new.left.text, new.right.text, new.asked_how) == ("good", "bad", AskedHow.GOLD) and old.verdicts
    assert sort_out([old, new], AnnotatorKind.HUMAN).left_out == {LeftOut.GOLD: 1}
    for arguments, says in (
        (["99", "--choice", "left"], "no comparison 99"),
        ([str(key), "--choice", "skip"], "skip is no"),
    ):
        assert main(["comparisons", "gold", *arguments, "--workspace", str(workspace.root)]) == 1
        assert says in capsys.readouterr().err
    of_a_program = replace(with_verdict, asked_how=AskedHow.API, verdicts=())
    (own,) = store.add_comparisons([of_a_program])
    command = ["comparisons", "gold", str(own), "--choice", "left", "--workspace", str(workspace.root)]
    assert main(command) == 1 and "share them (serve.share_chats)" in capsys.readouterr().err
    assert main([*command, "--set", "serve.share_chats=true"]) == 0
    store.close()
