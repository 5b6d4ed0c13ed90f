"""A server goes on beside files that are damaged while it serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from manners.settings import ServeSettings
from manners.store import Store
from manners.web import address, findings
from manners.web.desk import Desk
from manners.workspace import Workspace
from tests.web.test_desk import ANNA, pairs

NOISE = (b"", b"\xff\xfe\x00", b"[]", b"null", b'{"spread": 3}', b'{"spread": {"one": "two"}}', b'"\xc3"\n{"step": }\n')


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "ws")


@pytest.mark.parametrize("noise", NOISE)
def test_pairs_are_drawn_without_what_cannot_be_read(
    workspace: Workspace, noise: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace.runs / "disagreement.json"
    file.write_bytes(noise)
    store = Store.open_or_create(workspace.database)
    store.add_comparisons(pairs(0))
    assert Desk(workspace, store, ServeSettings(), 0).next(ANNA) is not None
    assert capsys.readouterr().err.startswith(f"{file} is damaged (")
    store.close()


@pytest.mark.parametrize("noise", NOISE)
def test_curves_are_drawn_as_far_as_they_can_be_read(workspace: Workspace, noise: bytes) -> None:
    (workspace.runs / "policy-1").mkdir()
    good = b'{"step": 3, "objective/kl": 0.5}\n'
    (workspace.runs / "policy-1" / "metrics.jsonl").write_bytes(good + noise + b"\n" + good)
    assert findings.curves(workspace)["policy-1"]["objective/kl"] == [[3, 0.5], [3, 0.5]]


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"evil javascript:", bytes(30)])
def test_a_link_is_printed_without_an_address_that_is_none(workspace: Workspace, noise: bytes) -> None:
    (workspace.root / address.FILE).write_bytes(noise)
    assert address.link(workspace, "/x").keys() == {"path", "note"}
    address.remember(workspace, "https://labels.example.org")
    assert address.link(workspace, "/x")["link"] == "https://labels.example.org/x"
