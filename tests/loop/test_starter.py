"""Who starts a run is kept with what it makes: an account by its number, and never a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from manners.audit import gate
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.loop import history, rounds, stages
from manners.loop.round import EVERY
from manners.loop.session import Session
from manners.loop.starter import VARIABLE, starter
from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.types import AccountRole
from manners.workspace import Workspace


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with two accounts, of which one is disabled; nobody has said who they are."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with closing(Store.create(Workspace.create(tmp_path / "ws").database)) as store:
        for name, role in (("olga", AccountRole.OWNER), ("Zoë", AccountRole.OWNER), ("otto", AccountRole.OWNER)):
            Accounts(store).add(name, role, None)
        Accounts(store).disable("otto")
        yield store


def test_an_account_is_its_number_and_whoever_names_none_is_this_machine(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "ws"
    assert starter(store, root) == "this machine"
    for name, number in (("olga", 1), ("Zoë", 2), ("Zoe\u0308", 2)):
        monkeypatch.setenv(VARIABLE, name)
        assert starter(store, root) == f"account {number}"
    for name in ("nobody", "otto"):
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(MannersError, match=f"{name}, and there is no such account"):
            starter(store, root)


def test_where_two_people_are_asked_for_nobody_starts_without_a_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ws" / "gate.toml").write_text("version = 1\ntwo_person = true\n", encoding="utf-8")
    with pytest.raises(MannersError, match="nobody says who starts this run"):
        starter(store, tmp_path / "ws")
    monkeypatch.setenv(VARIABLE, "olga")
    assert starter(store, tmp_path / "ws") == "account 1"


def test_a_run_stays_that_of_whoever_began_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Workspace.open(tmp_path / "ws"), Settings())
    monkeypatch.setenv(VARIABLE, "olga")
    begun = Run(session.workspace.runs / "ppo", "manners ppo", {}, 0.0)
    session.begin_as(begun)
    begun.save()
    monkeypatch.setenv(VARIABLE, "Zoë")
    resumed = Run(session.workspace.runs / "ppo", "manners ppo", {}, 0.0)
    assert resumed.go_on()
    session.begin_as(resumed)
    assert session.started_by == "account 1"
    session.begin_as(Run(session.workspace.runs / "dpo", "manners dpo", {}, 0.0))
    assert session.started_by == "account 2", "the next run is somebody else's"
    session.store.close()


def test_a_loop_is_that_of_whoever_began_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zoë goes on with Olga's loop, and PPO begins in her hands: the policy is Olga's, who must not approve it."""

    def goes_on(name: str) -> str:
        """Begin, or go on, as `manners loop` does, up to where its PPO begins; return whose that is."""
        monkeypatch.setenv(VARIABLE, name)
        session = Session(workspace, Settings())
        vars(session)["pretrained"] = SimpleNamespace(trunk=SimpleNamespace(compute=SimpleNamespace(lays_out=False)))
        begun = rounds._begin(session, rounds.Asked(rounds=3))
        following = session.at(1, begun.started_by).at(2)
        following.begin_as(Run(workspace.runs / "ppo", "manners ppo", {}, 0.0))
        session.store.close()
        return following.started_by

    workspace = Workspace.open(tmp_path / "ws")
    assert goes_on("olga") == "account 1"
    assert goes_on("Zoë") == "account 1"
    begun = history.read_begun(workspace)
    assert begun is not None and begun.started_by == "account 1"
    history.write_begun(workspace, replace(begun, started_by="this machine"))
    assert goes_on("Zoë") == "account 2", "nobody was named for it"


def test_a_single_step_is_that_of_whoever_takes_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zoë takes a step of Olga's loop: what begins in it is hers, and she must not approve it."""
    workspace, whose = Workspace.open(tmp_path / "ws"), list[str]()

    def teach(session: Session, *_: object, **__: object) -> None:
        run = Run(workspace.runs / "ppo", "manners ppo", {}, 0.0)
        session.begin_as(run)
        whose.append(session.started_by)
        raise rounds.Stepped("ppo")

    monkeypatch.setattr(rounds, "_round", teach)
    history.write_begun(workspace, history.Begun(rounds=3, created_at="2030-01-31", lays_out=False))
    for name in ("olga", "Zoë", ""):
        monkeypatch.setenv(VARIABLE, name)
        assert rounds.play(Session(workspace, Settings()), rounds.Asked(rounds=3, one=True))["step"] == "ppo"
    assert whose == ["account 1", "account 2", "account 1"], "where nobody is named it is the loop's"


def test_what_makes_a_policy_is_what_asks() -> None:
    assert {stage.name for stage in EVERY if stage.teaches} == {"ppo", "dpo"}


def test_a_policy_says_who_started_it_and_an_evaluation_waits_for_an_approval(
    copy: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: account 1 trains, nobody has approved, and the round is told why it promotes nothing."""
    assert gate.read(copy, "policy-1").started_by == "this machine", "the demo, which nobody named themselves for"
    with closing(Store.open(copy.database)) as store:
        Accounts(store).add("olga", AccountRole.OWNER, None)
    monkeypatch.setenv(VARIABLE, "olga")
    made = stages.train_policy(copy, settings, plan=False)
    assert gate.read(copy, made["version"]).started_by == "account 1"
    (copy.root / "gate.toml").write_text("version = 1\nreview = true\n", encoding="utf-8")
    said = stages.evaluate(copy, settings, ask=None, plan=False)
    assert said["promoted"] is False and "no reviewer has approved it (`/review`)" in said["verdict"]
    worst = (copy.runs / "evaluation.json").read_text(encoding="utf-8")
    assert '"worst"' in worst and "worst" not in said, "only the report shows answers"
