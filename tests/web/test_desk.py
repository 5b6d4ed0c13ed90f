"""What the desk hands out, without a page in front of it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from manners.settings import ServeSettings
from manners.store import Store, bets
from manners.types import Annotator, AnnotatorKind, AskedHow, Bet, Choice, Comparison, Response, Role, Turn, Verdict
from manners.web.desk import Desk
from manners.workspace import Workspace

ANNA, BEN = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))


def asked(number: int) -> Comparison:
    both = Response(f"{number} a", "initial"), Response(f"{number} b", "policy-1")
    said = (Verdict(Choice.LEFT, ANNA),)
    return Comparison((Turn(Role.USER, str(number)),), *both, AskedHow.EVALUATION, 1.0, said)


@pytest.mark.parametrize(("kind", "left"), [(AnnotatorKind.HUMAN, 1), (AnnotatorKind.AI, 2)])
def test_nobody_is_asked_for_a_verdict_that_would_come_after_the_bet(
    tmp_path: Path, kind: AnnotatorKind, left: int
) -> None:
    """A study that was closed with one verdict each, of which one comparison has been opened since."""
    with closing(Store.create(tmp_path / "store.db")) as store:
        counted, _ = store.add_comparisons([asked(1), asked(2)])
        with store.write() as connection:
            bets.place(connection, [(counted, Bet(kind, 1.0, 1))])
        desk = Desk(Workspace(tmp_path), store, ServeSettings(), seed=0)
        assert desk.tally(BEN).left == left
        shown = [found.left[0] for _ in range(2) if (found := desk.next(BEN)) is not None]
        assert sorted(shown) == ["1", "2"][-left:]
