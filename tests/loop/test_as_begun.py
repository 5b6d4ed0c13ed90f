"""A run that was stopped ends by the queue as it was when it was begun, and by the server's settings of then."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manners.checkpoint import PAIRS, Changed
from manners.errors import MannersError
from manners.loop.round import REWARD
from manners.loop.session import Session
from manners.loop.stage import NEWEST
from manners.loop.verdicts import named
from manners.reward.verdicts import label
from manners.settings import DPOSettings, ServeSettings, Settings, SFTSettings
from manners.store import Store, bets, flags
from manners.store.chats import Chats
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Bet,
    Choice,
    Comparison,
    DrawnHow,
    PromptUse,
    Response,
    Verdict,
)
from manners.unfinished import unfinished
from manners.workspace import Workspace
from tests.loop import calls, tiny
from tests.loop.test_restart import STAGES, killed_at_a_checkpoint, learned

ANNA, BEN = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))
BY_OLDER_CODE = {
    True: "24 verdicts on 16 comparisons (18dd60df95fc8308)",
    False: "24 verdicts on 16 comparisons (ec19f5b08194992f)",
}
"""The labelled pairs of `judged`, beside `opened`, as manners named them when what verdicts weigh was in the digest."""


@pytest.fixture(scope="module")
def chosen(model: Path) -> Settings:
    """A checkpoint at every occasion."""
    direct = DPOSettings(beta=0.5, passes=1, batch=8, learning_rate=0.003, kl_stop=1000.0, validation_prompts=4)
    examples = SFTSettings(epochs=1, batch=4, set_aside=0.2)
    found = tiny.settings(model, checkpoint_every=0.0, sft=examples, dpo=direct)
    reward = replace(found.reward, members=1, epochs=1)
    return replace(found, reward=reward, audit=replace(found.audit, cases=5, tokens=2))


def judged(given_out: bool) -> list[Comparison]:
    """Return 24 comparisons: eight have both verdicts that they get, eight one, and eight none.

    They were on what a queue gave to somebody out of 24 that they could have been given, or came by themselves.
    """
    draw = random.Random(1)
    made = []
    for number, prompt in enumerate(tiny.PROMPTS[PromptUse.TRAIN]):
        said = []
        for who in (ANNA, BEN)[: 2 - number // 8]:
            verdict = Verdict(draw.choice((Choice.LEFT, Choice.RIGHT)), who, exchanged=draw.random() < 0.5)
            chance = draw.choice((0.02, 0.2))
            by_queue = replace(verdict, drawn=DrawnHow.DISAGREEMENT, draw_probability=chance, draw_pool=24)
            said.append(by_queue if given_out else verdict)
        left, right = Response(f"Yes, {number}.", "initial"), Response("No, thank you.", "initial")
        made.append(Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, tuple(said), id=number + 1))
    return made


def opened() -> list[Comparison]:
    """Return ten comparisons of an evaluation that may still be given out."""
    sides = Response("a", "initial"), Response("b", "policy-1")
    some = enumerate(tiny.PROMPTS[PromptUse.EVALUATE][:10], start=25)
    return [Comparison(prompt, *sides, AskedHow.EVALUATION, 1.0, id=number) for number, prompt in some]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A workspace in which people judged by the queue, who could still be given ten comparisons of an evaluation."""
    session = tiny.project(tmp_path_factory.mktemp("asked") / "project", model)
    session.store.add_comparisons([*judged(given_out=True), *opened()])
    session.store.close()
    return session.workspace.root


def evaluated(store: Store) -> list[int]:
    """The comparisons of the evaluation."""
    return [one.id or 0 for one in store.comparisons(AskedHow.EVALUATION)]


def bet_on(store: Store) -> None:
    """Place the bets of an evaluation, after which nobody is given its comparisons any more."""
    with store.write() as connection:
        bets.place(connection, [(key, Bet(AnnotatorKind.HUMAN, 1.0, 2)) for key in evaluated(store)])


def report(store: Store) -> None:
    """Uphold a report on what is not learned from."""
    with store.write() as connection:
        flags.raise_flag(connection, BEN, flags.FlagReason.OTHER, "", comparison=evaluated(store)[0])
    flags.decide(store, flags.undecided(store)[0].id, upheld=True)


def begun_as(root: Path, stage: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the checkpoints of a run say that it was begun with."""
    for checkpoint in unfinished(root / "runs" / stage):
        file = checkpoint / "checkpoint.json"
        said = json.loads(file.read_text(encoding="utf-8"))
        change(said["begun_with"])
        file.write_text(json.dumps(said), encoding="utf-8")


def weights(root: Path) -> dict[str, Any]:
    """What was learned, without what was measured of it."""
    return {name: content for name, content in learned(root).items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def trained(asked: Path, chosen: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That workspace with a reward model whose training was never stopped."""
    root = shutil.copytree(asked, tmp_path_factory.mktemp("trained") / "whole")
    calls.train_reward(Session(Workspace.open(root), chosen))
    return root


@pytest.fixture
def stopped(asked: Path, chosen: Settings, tmp_path: Path) -> Session:
    """That workspace with a reward run that was killed after its first checkpoint."""
    root = shutil.copytree(asked, tmp_path / "stopped")
    return killed_at_a_checkpoint(REWARD.name, root, chosen, 1)


@pytest.mark.parametrize(
    "stage", ["reward", "sft", *(pytest.param(stage, marks=pytest.mark.long) for stage in ("dpo", "audit"))]
)
def test_bets_that_are_placed_while_a_run_is_stopped_are_for_the_next(
    stage: str, asked: Path, trained: Path, chosen: Settings, tmp_path: Path
) -> None:
    before = trained if stage == "audit" else asked
    whole, killed = (shutil.copytree(before, tmp_path / name) for name in ("whole", "killed"))
    STAGES[stage](Session(Workspace.open(whole), chosen), False)
    session = killed_at_a_checkpoint(stage, killed, chosen, 1)
    bet_on(session.store)
    STAGES[stage](session, True)
    assert learned(killed) == learned(whole)


def test_bets_that_were_placed_before_a_run_decide_what_it_measures(
    asked: Path, trained: Path, chosen: Settings, tmp_path: Path
) -> None:
    """Without which the test above would see nothing: what verdicts weigh here does hang on them."""
    root = shutil.copytree(asked, tmp_path / "bet on")
    session = Session(Workspace.open(root), chosen)
    bet_on(session.store)
    measured = calls.train_reward(session)
    before = json.loads((trained / "runs" / "reward.json").read_text(encoding="utf-8"))
    assert measured["effective_n"] != pytest.approx(before["effective_n"], rel=1e-3)
    assert weights(root) == weights(trained)


def test_a_report_on_what_is_not_learned_from_stops_no_run(stopped: Session, trained: Path) -> None:
    report(stopped.store)
    calls.train_reward(stopped, resume=True)
    assert weights(stopped.workspace.root) == weights(trained)


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [("overlap", 3, "2"), ("agree", 3, "2"), ("retire_after", 4, "3"), ("share_chats", True, "False")],
)
def test_a_setting_of_the_queue_that_is_another_is_named(name: str, value: Any, was: str, stopped: Session) -> None:
    other = replace(stopped.settings, serve=replace(stopped.settings.serve, **{name: value}))
    with pytest.raises(MannersError, match=rf"begun with serve\.{name} = {was}, and now it is {value}: set it"):
        calls.train_reward(Session(stopped.workspace, other), resume=True)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "name", "value"), [("dpo", "overlap", 3), ("sft", "share_chats", True)])
def test_a_setting_of_the_queue_is_named_by_other_stages_too(
    stage: str, name: str, value: Any, asked: Path, chosen: Settings, tmp_path: Path
) -> None:
    root = shutil.copytree(asked, tmp_path / "stopped")
    session = killed_at_a_checkpoint(stage, root, chosen, 1)
    other = replace(chosen, serve=replace(chosen.serve, **{name: value}))
    with pytest.raises(MannersError, match=rf"begun with serve\.{name} = "):
        STAGES[stage](Session(session.workspace, other), True)


def test_a_policy_that_learns_from_chats_goes_on_only_with_them(
    trained: Path, chosen: Settings, tmp_path: Path
) -> None:
    """Not as one whose record has changed, whose work the loop would throw away."""
    root = shutil.copytree(trained, tmp_path / "stopped")
    with closing(Store.open(root / "store.db")) as store:
        Chats(store).say(ANNA, Chats(store).begin(ANNA), [], "cheese?", [Response("Yes.", "initial")], 1.0)
    shared = replace(chosen, serve=ServeSettings(share_chats=True))
    session = killed_at_a_checkpoint("ppo", root, shared, 1)
    with pytest.raises(MannersError, match=r"begun with serve\.share_chats = True, and now it is False") as refused:
        calls.train_policy(Session(session.workspace, chosen), resume=True)
    assert not isinstance(refused.value, Changed)
    assert calls.train_policy(session, resume=True)["prompts"] == len(tiny.PROMPTS[PromptUse.TRAIN]) + 1


def test_settings_of_the_server_that_decide_nothing_may_change(stopped: Session, trained: Path) -> None:
    serve = ServeSettings(port=1, seats=2, lease=3.0, shortest_view=0)
    calls.train_reward(Session(stopped.workspace, replace(stopped.settings, serve=serve)), resume=True)
    assert weights(stopped.workspace.root) == weights(trained)


def test_a_run_that_older_code_has_begun_goes_on(stopped: Session, trained: Path) -> None:
    """It named its pairs with what they weigh, said nothing of the server's settings, and knew no newest bet."""

    def older(begun: dict[str, Any]) -> None:
        for name in [name for name in begun if name.startswith("serve.")]:
            del begun[name]
        begun[PAIRS] = BY_OLDER_CODE[True]
        begun[NEWEST] = begun[NEWEST][:2]

    begun_as(stopped.workspace.root, REWARD.name, older)
    other = replace(stopped.settings, serve=ServeSettings(overlap=3))
    calls.train_reward(Session(stopped.workspace, other), resume=True)
    assert weights(stopped.workspace.root) == weights(trained)


def test_a_run_that_older_code_has_finished_is_not_done_again(trained: Path, chosen: Settings, tmp_path: Path) -> None:
    """What the server's settings were then nobody knows, so it is compared on none of them."""
    root = shutil.copytree(trained, tmp_path / "older")
    file = root / "runs" / "reward.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    assert facts["begun_with"].pop("serve.overlap") == 2
    file.write_text(json.dumps(facts), encoding="utf-8")
    other = replace(chosen, serve=ServeSettings(overlap=3))
    calls.train_reward(Session(Workspace.open(root), other), resume=True)
    assert weights(root) == weights(trained) and len(list((root / "models").glob("reward-*"))) == 1


def test_pairs_that_no_queue_gave_out_are_named_as_older_code_named_them() -> None:
    """A demo that older code has played passes over its reward training, and does not train anew."""
    what = "24 verdicts on 16 comparisons"
    assert named(what, label(judged(given_out=False)).pairs, None) == BY_OLDER_CODE[False]
    drawn = label([*judged(given_out=True), *opened()]).pairs
    assert named(what, drawn, None) == BY_OLDER_CODE[False], "how they were drawn is in no name any more"
    assert named(what, drawn, BY_OLDER_CODE[True]) == BY_OLDER_CODE[True]
