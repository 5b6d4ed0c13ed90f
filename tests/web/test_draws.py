"""What is drawn cannot be worked out by whoever it is hidden from, and stays what it is over a restart."""

from __future__ import annotations

import hashlib
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.types import AccountRole
from manners.web import draws, limits
from manners.web.app import create_app
from manners.web.chat import _drawn
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place
from tests.web.scripted import Scripted
from tests.web.test_candidate import BOTH, begin, client_of, say
from tests.web.test_review import sides, waits

TALKS = 40


def test_whoever_chats_cannot_work_out_which_side_is_the_candidates(
    alone: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a hash of all that a browser knows: the conversation's key, how many turns there were, and what was said."""
    monkeypatch.setattr(limits.Limits, "take", lambda *_: 0.0)
    engine = Scripted(("Gladly.",), BOTH)
    client = client_of(alone, engine)
    keys = [begin(client) for _ in range(TALKS)]
    for key in keys:
        assert say(client, key, "Hello")["comparison"]
    told = [request.candidate for request in engine.asked]
    guessed = [hashlib.sha256(f"{key} 0 Hello".encode()).digest()[12] & 1 for key in keys]
    assert 0 < sum(side == guess for side, guess in zip(told, guessed, strict=True)) < TALKS
    secret = Site(
        Workspace.open(alone.folder), Settings(), alone.store, alone.accounts, True, "http://127.0.0.1", engine
    ).secret
    assert told == [_drawn(secret, key, 0, "Hello")[2] for key in keys], "a server that is started anew draws the same"


def test_whoever_reviews_cannot_work_out_which_side_is_the_policys(place: Place) -> None:
    workspace = waits(place)
    key = place.key("rita", AccountRole.REVIEWER)
    number = next(one.id for one in place.accounts.all() if one.name == "rita")
    digest = hashlib.sha256(workspace.report_json.read_bytes()).hexdigest()

    def shown() -> list[tuple[str, str]]:
        site = Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", Scripted())
        rita = TestClient(create_app(site), headers={"authorization": f"Bearer {key}"})
        return sides(rita.get("/review?version=policy-2").text)

    before = shown()
    assert shown() == before, "a server that is started anew shows the same"
    chance = random.Random(hashlib.sha256(f"policy-2 policy-1 {digest} account {number}".encode()).digest())
    worst, others = ([(f"old {kind} {n}", f"new {kind} {n}") for n in range(12)] for kind in ("worst", "random"))
    guessed = [*worst[:6], *chance.sample(others, 6)]
    chance.shuffle(guessed)
    assert before != [pair[::-1] if chance.random() < 0.5 else pair for pair in guessed], "by all that the page tells"
    (workspace.root / draws.FILE).write_bytes(b"7" * 2 * draws.SECRET_BYTES)
    assert shown() != before, "without the secret nobody draws them"


def test_the_secret_is_its_owners_alone_and_each_workspaces_own(
    new_workspace: Callable[[Path], Workspace], tmp_path: Path
) -> None:
    one, other = (new_workspace(tmp_path / name) for name in ("one", "other"))
    secret = draws.secret_of(one)
    assert len(secret) == 64 and draws.secret_of(one) == secret != draws.secret_of(other)
    file = one.root / draws.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    file.write_bytes(secret[:10])  # as a disk that was full leaves it
    again = draws.secret_of(one)
    assert len(again) == 64 and stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("secret", [b"", b"one"])
def test_what_is_drawn_follows_from_the_secret(secret: bytes) -> None:
    drawn, others = ([_drawn(one, f"key{n}", 0, "Hello") for n in range(2000)] for one in (secret, b"another"))
    same = sum(one[2] == other[2] for one, other in zip(drawn, others, strict=True))
    assert abs(same - 1000) < 3 * 500**0.5, "a side tells nothing of the other's"
