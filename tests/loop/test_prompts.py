"""Which prompts are drawn where not all are wanted, and which are asked again of a new policy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from manners.errors import MannersError, UsageError
from manners.facts import Facts
from manners.loop import evaluate, ppo, stages
from manners.loop import sample as sample_stage
from manners.loop.options import EvaluateOptions, PPOOptions, SampleOptions
from manners.loop.prompts import draw_prompts
from manners.loop.round import SAMPLE
from manners.loop.session import Session
from manners.loop.stage import execute, to_resume
from manners.settings import Settings
from manners.store import Store
from manners.types import AnnotatorKind, PromptUse
from manners.workspace import Workspace
from tests.loop import tiny

MANY = tiny.prompts(100, "bread")


def test_as_many_as_are_wanted_in_their_order_and_all_where_there_are_no_more() -> None:
    found = draw_prompts(MANY, 30, 0)
    assert len(found) == 30 and found == [prompt for prompt in MANY if prompt in found] != MANY[:30]
    assert draw_prompts(MANY, 100, 0) == draw_prompts(MANY, 1000, 0) == MANY
    assert draw_prompts(MANY, 30, 0) == found != draw_prompts(MANY, 30, 1)


def test_neither_their_order_nor_a_few_new_ones_change_much() -> None:
    found = set(draw_prompts(MANY, 30, 0))
    assert set(draw_prompts(MANY[::-1], 30, 0)) == found
    assert set(draw_prompts([*MANY, *tiny.prompts(1, "tea")], 30, 0)) - found in (set(), {tiny.prompts(1, "tea")[0]})


def test_each_is_drawn_as_often_as_the_others() -> None:
    counts = Counter(prompt for seed in range(1000) for prompt in draw_prompts(MANY[:20], 5, seed))
    assert len(counts) == 20 and all(abs(count - 250) < 5 * (1000 * 0.25 * 0.75) ** 0.5 for count in counts.values())


def test_evaluation_draws_its_prompts(copy: Workspace, settings: Settings) -> None:
    session = Session(copy, replace(settings, evaluate=replace(settings.evaluate, prompts=4)))
    chosen = evaluate.inputs(session, EvaluateOptions(), {}).prompts
    assert chosen == draw_prompts(tiny.PROMPTS[PromptUse.EVALUATE], 4, settings.seed)
    assert chosen != tiny.PROMPTS[PromptUse.EVALUATE][:4]


def test_ppo_draws_the_prompts_that_it_chooses_a_version_by(copy: Workspace, settings: Settings) -> None:
    session = Session(copy, replace(settings, ppo=replace(settings.ppo, validation_prompts=3)))
    known = tiny.PROMPTS[PromptUse.VALIDATE]
    room = settings.sample.max_new_tokens
    ids = {prompt: session.pretrained.renderer.prompt_ids(prompt, room)[0] for prompt in known}
    chosen = ppo.inputs(session, PPOOptions(), {}).validation
    assert chosen == [ids[prompt] for prompt in draw_prompts(known, 3, settings.seed)]
    assert chosen != [ids[prompt] for prompt in known[:3]]


def test_known_prompts_are_asked_again_of_a_new_policy_and_of_no_other(copy: Workspace, settings: Settings) -> None:
    def again(limit: int | None) -> dict[str, object]:
        return stages.sample(copy, settings, crowd=False, plan=False, again=True, limit=limit)

    (copy.models / "current.json").unlink(missing_ok=True)
    with pytest.raises(MannersError, match="all were answered by initial"):
        again(None)
    stages.models_promote(copy, "policy-1", "a test")
    with pytest.raises(MannersError, match="of a new policy with --again"):
        stages.sample(copy, settings, crowd=False, plan=False)
    store = Session(copy, settings).store
    before = len(store.comparisons())
    facts = again(5)
    new = store.comparisons()[before:]
    assert facts["left_out"] == {"over --limit": 24 - 5} and facts["policy"] == "policy-1"
    assert [c.prompt for c in new] == draw_prompts(tiny.PROMPTS[PromptUse.TRAIN], 5, settings.seed)
    assert {(c.left.author, c.right.author, c.ask_probability) for c in new} == {("policy-1", "policy-1", 5 / 24)}
    again(100)
    rest = store.comparisons()[before + 5 :]
    assert {c.prompt for c in rest} == set(tiny.PROMPTS[PromptUse.TRAIN]) - {c.prompt for c in new}
    assert {c.ask_probability for c in rest} == {1.0}
    with pytest.raises(MannersError, match="all were answered by policy-1"):
        again(None)


def test_a_killed_run_is_gone_on_with_by_the_command_that_status_names(
    copy: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(options: SampleOptions, *, resume: bool) -> Facts:
        return execute(SAMPLE, Session(copy, settings), options, resume=resume).facts

    stages.models_promote(copy, "policy-1", "a test")
    begun = SampleOptions(crowd=True, again=True, limit=5)
    before = len(Session(copy, settings).store.comparisons())
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Store, "merge_comparisons", _dies)
        sample(begun, resume=False)
    assert to_resume([SAMPLE], copy) == ["manners sample --resume"]
    with pytest.raises(MannersError, match="--limit"):
        sample(SampleOptions(limit=4), resume=True)
    sample(SampleOptions(), resume=True)
    new = Session(copy, settings).store.comparisons()[before:]
    assert {c.prompt for c in new} <= set(draw_prompts(tiny.PROMPTS[PromptUse.TRAIN], 5, settings.seed))
    assert {c.left.author for c in new} == {"policy-1"}, "known prompts, of the new policy"
    assert new and all(verdict.annotator.kind is AnnotatorKind.SIMULATED for c in new for verdict in c.verdicts)
    assert all(c.verdicts for c in new)


def test_a_round_takes_no_crowd_from_a_run_that_was_begun_with_one(copy: Workspace, settings: Settings) -> None:
    """`manners loop --when ""` has people asked from there on: what was begun with the crowd is then refused."""
    begun = {"--crowd": True, "--again": True, "--limit": 5}
    session = Session(copy, settings)
    assert sample_stage.inputs(session, SampleOptions(), begun).decides == begun
    in_round = sample_stage.inputs(replace(session, turn=1), SampleOptions(), begun)
    assert in_round.decides == {"--crowd": False}


def _dies(*_: object) -> None:
    raise ZeroDivisionError


def test_a_limit_asks_somebody() -> None:
    with pytest.raises(UsageError, match="--limit N takes a number from 1 on"):
        SampleOptions(limit=0).check(plan=False, resume=False)
