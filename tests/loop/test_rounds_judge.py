"""The judge in the loop: whoever was asked last judges what came since, and one that fails keeps nobody waiting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from manners.loop import rounds, stages
from manners.loop.history import Begun
from manners.loop.round import JUDGE
from manners.loop.session import Session
from manners.results.judge import JUDGED_BY
from manners.settings import JudgeSettings, RewardSettings
from manners.types import Response
from tests.loop import judging, tiny
from tests.loop.judging import Server, serving

BEGUN = Begun(rounds=9, lays_out=False)


@dataclass
class World:
    """A project whose judge is a server that was asked once, about answers of policy-1."""

    session: Session
    server: Server

    def policy_writes(self, number: int) -> None:
        """People judge four comparisons of another policy's answers."""
        new = judging.comparisons(4, start=100 * number)
        store = self.session.store
        store.add_comparisons([replace(c, left=Response(c.left.text, f"policy-{number}")) for c in new])

    def judged(self) -> int:
        return sum(v.annotator.is_judge for c in self.session.store.comparisons() for v in c.verdicts)

    def panel(self) -> dict[str, int]:
        """How many answers of each version it was asked about, as its last run has it."""
        facts = self.session.read_facts("judge") or {}
        return {row["version"]: row["asked"] for row in facts["panel"]}


@pytest.fixture
def world(tmp_path: Path, empty_file: Path, model: Path) -> Iterator[World]:
    with serving(Server()) as server:
        made = judging.project(tmp_path / "project", empty_file, server.url, judging.comparisons(6), probes=0)
        reward = RewardSettings(annotators="human+ai")
        chosen = replace(made.settings, model=tiny.settings(model).model, reward=reward)
        made.store.close()
        session = Session(made.workspace, chosen)
        stages.perform(session.workspace, chosen, JUDGE)
        yield World(session, server)


def test_each_round_has_its_row_in_the_panel(world: World) -> None:
    assert world.panel() == {"policy-1": 6}
    for turn, expected in ((2, {"policy-1": 6, "policy-2": 4}), (3, {"policy-1": 6, "policy-2": 4, "policy-3": 4})):
        world.policy_writes(turn)
        rounds._ask_the_judge(world.session.at(turn), BEGUN)
        assert world.panel() == expected and world.judged() == sum(expected.values())
    asked = len(world.server.asked)
    rounds._ask_the_judge(world.session.at(3), BEGUN)
    assert len(world.server.asked) == asked, "a round asks it once"


def test_a_judge_that_fails_ends_no_loop_and_goes_on_in_the_next_round(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.policy_writes(2)
    world.server.answer = lambda asked, number: (500, b"oh no")
    rounds._ask_the_judge(world.session.at(2), BEGUN)
    assert "round 2 goes on without the judge: the judge at http://127.0.0.1" in capsys.readouterr().err
    assert world.judged() == 6 and world.panel() == {"policy-1": 6}
    world.server.answer = lambda asked, number: None
    rounds._ask_the_judge(world.session.at(3), BEGUN)
    assert world.panel() == {"policy-1": 6, "policy-2": 4}


@pytest.mark.parametrize("why", ["people alone train", "none was asked", "another one is named now"])
def test_nobody_is_asked_where(why: str, world: World) -> None:
    session, asked = world.session, len(world.server.asked)
    if why == "people alone train":
        session = Session(session.workspace, replace(session.settings, reward=RewardSettings(annotators="human")))
    elif why == "none was asked":
        (session.workspace.runs / "judge.json").unlink()
    else:
        session = Session(session.workspace, replace(session.settings, judge=JudgeSettings()))
    world.policy_writes(2)
    rounds._ask_the_judge(session.at(2), BEGUN)
    assert len(world.server.asked) == asked and world.judged() == 6


def test_a_version_that_judges_is_the_one_that_did(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not `initial`, which a run takes that names none."""
    chosen = replace(world.session.settings, judge=JudgeSettings())
    session, asked = Session(world.session.workspace, chosen), list[Any]()
    session.save_facts("judge", {"begun_with": {JUDGED_BY: "policy-7"}})
    monkeypatch.setattr(rounds, "_do", lambda *given: asked.append(given[-1]))
    rounds._ask_the_judge(session.at(2), BEGUN)
    assert [options.version for options in asked] == ["policy-7"]
