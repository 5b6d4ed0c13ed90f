"""A judge's verdicts beside people's: what they add, what they may weigh, and what they never touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from manners.audit.forms import FORMS
from manners.audit.probes import probes
from manners.models.pretrained import Pretrained
from manners.reward.assisted import Assisted, assisted
from manners.reward.augment import Texts, made_of
from manners.reward.groups import Split, divided
from manners.reward.labelled import LeftOut
from manners.reward.pairs import read
from manners.reward.train import train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.types import (
    JUDGE,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
    opening,
)
from tests.reward.planted import comparisons
from tests.worlds import tiny_pretrained

WHO = Annotator(f"{JUDGE}planted", AnnotatorKind.AI)
OTHER = Annotator(f"{JUDGE}other", AnnotatorKind.AI)
SETTINGS = RewardSettings(members=1, epochs=2, batch=8, learning_rate=0.01, set_aside=0.35, curve=False)


def by_judge(one: Comparison, who: Annotator = WHO, choice: Choice | None = None) -> Comparison:
    """Let a judge say what is planted, in place of whoever did."""
    better = Choice.LEFT if "thank" in one.left.text else Choice.RIGHT
    return replace(one, verdicts=(Verdict(choice or better, who),))


HUMAN = comparisons(40, agreement=0.95)
JUDGED = [
    replace(by_judge(one), id=1000 + n, prompt=(Turn(Role.USER, f"{one.prompt[-1].text} again {n}"),))
    for n, one in enumerate(comparisons(80, agreement=0.95))
]


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def beside(
    world: Pretrained,
    some: Sequence[Comparison],
    share: float = 0.5,
    judges: frozenset[Annotator] = frozenset({WHO}),
    shut_out: frozenset[int] = frozenset(),
) -> tuple[Assisted, Split]:
    labelled, _ = read(world.renderer, label(some, "human+ai"))
    split = divided(labelled.pairs, SETTINGS, 0)
    return assisted(world.renderer, some, labelled, split, judges, share, shut_out), split


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 1.0])
def test_people_keep_their_share(world: Pretrained, share: float) -> None:
    found, split = beside(world, [*HUMAN, *JUDGED], share)
    human = sum(sum(pair.weights) for pair in split.train)
    judged = sum(sum(pair.weights) for pair in found.pairs)
    assert human / (human + judged) >= share - 1e-9
    assert found.weight == pytest.approx(judged / (human + judged))
    if share == 0.1:  # there is no need to weigh less: each verdict weighs what one of a person does
        assert judged == len(found.pairs) == 80
    if share == 1.0:
        assert not found.pairs


def test_people_keep_their_share_with_what_is_made_of_both(world: Pretrained) -> None:
    found, split = beside(world, [*HUMAN, *JUDGED], 0.8)
    made = made_of((*split.train, *found.pairs), 0.5, 0, Texts(probes, FORMS))
    judged = {pair.prompt for pair in found.pairs}
    assert sum(pair.prompt in judged for pair in made) > len(made) / 2
    weights = [(sum(pair.weights), pair.prompt in judged) for pair in (*split.train, *found.pairs, *made)]
    assert sum(w for w, theirs in weights if theirs) / sum(w for w, _ in weights) == pytest.approx(0.2, abs=0.02)


def test_nothing_is_measured_on_it_and_nothing_set_aside_is_learned(world: Pretrained) -> None:
    _, alone = beside(world, HUMAN)
    held = alone.held_out[0]
    shared = replace(JUDGED[0], id=5000, prompt=held.prompt)
    found, split = beside(world, [*HUMAN, *JUDGED, shared])
    assert [pair.comparison_id for pair in split.held_out] == [pair.comparison_id for pair in alone.held_out]
    assert all(sum(pair.counts) == 0 and pair.drawn is None for pair in found.pairs)
    openings = {opening(pair.prompt) for pair in found.pairs}
    assert openings.isdisjoint(opening(pair.prompt) for pair in split.held_out)
    assert 5000 not in {pair.comparison_id for pair in found.pairs} and len(found.pairs) == 80


@pytest.mark.parametrize(
    "one",
    [
        by_judge(JUDGED[0], OTHER),
        by_judge(JUDGED[0], Annotator("gpt", AnnotatorKind.AI)),
        by_judge(JUDGED[0], choice=Choice.SKIP),
        replace(JUDGED[0], kept=True),
        replace(JUDGED[0], reported=True),
        replace(JUDGED[0], asked_how=AskedHow.EVALUATION),
        replace(JUDGED[0], asked_how=AskedHow.CHAT),
        replace(JUDGED[0], right=replace(JUDGED[0].right, text=JUDGED[0].left.text)),
        replace(JUDGED[0], verdicts=(*JUDGED[0].verdicts, Verdict(Choice.LEFT, Annotator("ann", AnnotatorKind.HUMAN)))),
    ],
    ids=["not admitted", "of a file", "no verdict", "kept", "reported", "evaluation", "chat", "alike", "people's"],
)
def test_what_a_judge_adds_nothing_to(world: Pretrained, one: Comparison) -> None:
    assert not beside(world, [*HUMAN, one])[0].pairs


def test_without_admission_a_judge_counts_for_nothing(world: Pretrained) -> None:
    plain = label(HUMAN, "human")
    with_judge = label([*HUMAN, *JUDGED])  # whose verdicts need not be named: a judge is not asked for here
    assert with_judge.pairs == plain.pairs and with_judge.kind is AnnotatorKind.HUMAN
    assert with_judge.left_out[LeftOut.JUDGE] == 80 and LeftOut.NO_VERDICT not in with_judge.left_out
    assert not beside(world, [*HUMAN, *JUDGED], judges=frozenset())[0].pairs
    found, _ = beside(world, [*HUMAN, *JUDGED])
    assert found.left_out(with_judge).get(LeftOut.JUDGE, 0) == 0


def test_what_no_policy_can_say_is_not_added(world: Pretrained) -> None:
    [token] = world.renderer.text_ids("z")
    odd = [replace(one, left=replace(one.left, text=f"{one.left.text} z")) for one in JUDGED[:2]]
    found, split = beside(world, [*HUMAN, *odd, *JUDGED[2:]], shut_out=frozenset({token}))
    assert {pair.comparison_id for pair in found.pairs} == {one.id for one in JUDGED[2:]}
    human, judged = (sum(sum(pair.weights) for pair in some) for some in (split.train, found.pairs))
    assert found.weight == pytest.approx(judged / (human + judged))


def test_a_judge_changes_what_is_learned_and_not_what_it_is_measured_on(world: Pretrained) -> None:
    alone = train(SETTINGS, 0, world, HUMAN)
    same = train(SETTINGS, 0, world, [*HUMAN, *JUDGED])
    more = train(SETTINGS, 0, world, [*HUMAN, *JUDGED], judges=frozenset({WHO}))
    assert np.array_equal(alone.margins, same.margins) and not np.array_equal(alone.margins, more.margins)
    assert more.split == alone.split and len(more.assisted.pairs) == 80
    assert 0.4 < more.assisted.weight <= 0.5 and more.steps > alone.steps


def test_what_people_and_a_judge_compared_on_a_prompt_is_read_behind_the_same_of_it() -> None:
    """Answer B of people's pair A, B and C of a judge's A, C: C is long, and leaves the prompt less room."""
    narrow = tiny_pretrained(context=64)
    long = " and the oven is warm," * 20
    people = [replace(one, prompt=(Turn(Role.USER, one.prompt[-1].text + long),)) for one in HUMAN]
    c = Response("the train to the sea leaves at noon. " * 3, "initial", FinishReason.STOP)
    judged = [replace(by_judge(replace(one, right=c)), id=1000 + one.id) for one in people if one.id is not None]
    some = [*people, *judged]
    labelled, before = read(narrow.renderer, label(some, "human+ai"))
    split = divided(labelled.pairs, SETTINGS, 0)
    found = assisted(narrow.renderer, some, labelled, split, {WHO}, 0.5)
    rendered = before | found.rendered
    assert found.pairs and {pair.prompt for pair in found.pairs} <= {pair.prompt for pair in split.train}
    for pair in (*split.train, *found.pairs):
        on_it = [one for one in (*split.train, *found.pairs) if one.prompt == pair.prompt]
        prompts = {rendered[one.prompt, side].prompt_ids for one in on_it for side in (one.left, one.right)}
        assert len(prompts) == 1
    taken = {pair.prompt for pair in found.pairs}
    answers = [(p.prompt, side) for p in split.train if p.prompt in taken for side in (p.left, p.right)]
    assert all(len(rendered[one].prompt_ids) < len(before[one].prompt_ids) for one in answers), "shorter for C"
    assert all(rendered[one].response_ids == before[one].response_ids for one in answers), "no answer reads otherwise"
