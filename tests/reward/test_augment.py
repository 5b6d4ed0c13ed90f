"""Pairs that are made of answers: what they are, what they weigh, what they never touch, and what they teach."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manners.audit.forms import FORMS
from manners.audit.probes import probes
from manners.models.pretrained import Pretrained
from manners.reward.augment import Texts, augmented, made_of
from manners.reward.ensemble import Exchange, RewardModel, score_rendered
from manners.reward.groups import Split, divided
from manners.reward.labelled import LabelledPair
from manners.reward.pairs import read
from manners.reward.train import train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Response,
    Role,
    Turn,
    Verdict,
    opening,
)
from tests.reward.killed import killed
from tests.reward.planted import WORDS, comparisons, turned
from tests.worlds import tiny_pretrained

TEXTS = Texts(probes, FORMS)
SETTINGS = RewardSettings(members=1, epochs=4, batch=8, learning_rate=0.01, set_aside=0.35, curve=False)
PLANTED = comparisons(80, agreement=0.95)


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def parted(world: Pretrained, some: Sequence[Comparison]) -> Split:
    labelled, _ = read(world.renderer, label(some))
    return divided(labelled.pairs, SETTINGS, 0)


def kind_of(pair: LabelledPair, answers: dict[Dialogue, list[str]]) -> str:
    """Tell by its texts alone how a pair was made."""
    own = answers[pair.prompt]
    if pair.left.text not in own:
        return "foreign"
    if pair.weights.right:
        return "form"
    return "other" if any(pair.right.text in some for some in answers.values()) else "short"


def test_of_each_kind_there_are_as_many_and_they_weigh_their_share(world: Pretrained) -> None:
    split = parted(world, PLANTED)
    answers = {pair.prompt: [pair.left.text, pair.right.text] for pair in split.train}
    made = made_of(split.train, 0.5, 0, TEXTS)
    # Three people judge each pair, and each made one weighs as much.
    assert all(sum(pair.weights) == pytest.approx(3) and sum(pair.counts) == 0 and pair.made for pair in made)
    kinds = [kind_of(pair, answers) for pair in made]
    quarter = len(split.train) / 4
    for kind in ("other", "short", "foreign", "form"):
        assert quarter - 2 <= kinds.count(kind) <= quarter + 1, kind  # a pair may have no side that more people chose
    for pair, kind in zip(made, kinds, strict=True):
        undecided = kind in ("foreign", "form")
        assert tuple(pair.weights) == ((1.5, 1.5, 0) if undecided else (3, 0, 0))
        if not undecided:  # what people chose is on the left: nobody would choose what is on the right
            [of] = [one for one in split.train if one.prompt == pair.prompt]
            assert pair.left == (of.left if of.counts.left > of.counts.right else of.right)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_is_that_of_pairs_and_of_weight(world: Pretrained, share: float) -> None:
    split = parted(world, comparisons(200, agreement=0.95))
    found = augmented(world.renderer, split.train, share, 0, TEXTS)
    assert len(found.pairs) / (len(found.pairs) + len(split.train)) == pytest.approx(share, abs=0.02)
    assert found.weight == pytest.approx(share, abs=0.02)


def test_answers_to_other_prompts_are_those_of_the_training_pairs_alone(world: Pretrained) -> None:
    split = parted(world, PLANTED)
    at_hand = {side.text for pair in split.train for side in (pair.left, pair.right)}
    aside = {side.text for pair in split.held_out for side in (pair.left, pair.right)} - at_hand
    wrote = {side.text: opening(pair.prompt) for pair in split.train for side in (pair.left, pair.right)}
    answers = {pair.prompt: [pair.left.text, pair.right.text] for pair in split.train}
    found = augmented(world.renderer, split.train, 0.5, 0, TEXTS)
    for pair in found.pairs:
        assert not {pair.left.text, pair.right.text} & aside
        foreign = {"other": [pair.right], "foreign": [pair.left, pair.right]}.get(kind_of(pair, answers), [])
        assert all(wrote[side.text] != opening(pair.prompt) for side in foreign)
        assert (pair.prompt, pair.left) in found.rendered and (pair.prompt, pair.right) in found.rendered


def test_what_people_compared_is_read_once_and_as_it_was(world: Pretrained) -> None:
    labelled, rendered = read(world.renderer, label(PLANTED))
    split = divided(labelled.pairs, SETTINGS, 0)
    found = augmented(world.renderer, split.train, 0.5, 0, TEXTS)
    compared = {(pair.prompt, side) for pair in split.train for side in (pair.left, pair.right)}
    assert all(found.rendered[one] == rendered[one] for one in found.rendered.keys() & compared)
    new = {(pair.prompt, side) for pair in found.pairs for side in (pair.left, pair.right)} - compared
    assert len(new) <= 1.25 * len(found.pairs), "one text more for each pair, two where both are foreign"


def test_they_hang_on_the_seed_alone(world: Pretrained) -> None:
    train_pairs = parted(world, PLANTED).train
    assert made_of(train_pairs, 0.3, 4, TEXTS) == made_of(train_pairs, 0.3, 4, TEXTS)
    assert made_of(train_pairs, 0.3, 4, TEXTS) != made_of(train_pairs, 0.3, 5, TEXTS)
    assert made_of(train_pairs, 0.0, 4, None) == () and augmented(world.renderer, train_pairs, 0.0, 4, None).pairs == ()
    with pytest.raises(ValueError, match=r"reward\.augment takes what makes texts"):
        made_of(train_pairs, 0.3, 4, None)


def test_what_is_made_of_a_users_pairs_weighs_what_theirs_do() -> None:
    """By hand: 5 % of the whole for whoever gave 1,000 of 1,050 verdicts, and so of it with what is made of it."""
    busy = Annotator("ben", AnnotatorKind.HUMAN, 7)
    some = [talk(n, f"yes, {n}", f"no, {n}", Choice.RIGHT if n % 2 else Choice.LEFT) for n in range(1050)]
    chats = [replace(c, asked_how=AskedHow.CHAT, verdicts=(replace(c.verdicts[0], annotator=busy),)) for c in some[50:]]
    pairs = label([*some[:50], *chats], user_share=0.05).pairs
    made = made_of(pairs, 0.5, 0, TEXTS)
    theirs = {one.prompt for one in chats}
    assert len(made) > 1000 and sum(pair.prompt in theirs for pair in made) > 0.9 * len(made)
    for some_pairs in (made, (*pairs, *made)):
        weights = [(sum(pair.weights), pair.prompt in theirs) for pair in some_pairs]
        assert sum(w for w, of in weights if of) / sum(w for w, _ in weights) == pytest.approx(0.05, abs=0.005)


def test_of_a_single_prompt_nothing_foreign_is_made(world: Pretrained) -> None:
    pairs = parted(world, PLANTED).train
    alone = [replace(pair, prompt=pairs[0].prompt) for pair in pairs]
    answers = {pairs[0].prompt: [side.text for pair in pairs for side in (pair.left, pair.right)]}
    kinds = {kind_of(pair, answers) for pair in made_of(alone, 0.5, 0, TEXTS)}
    assert kinds == {"short", "form"}


def talk(number: int, left: str, right: str, liked: Choice = Choice.LEFT) -> Comparison:
    """Return a comparison on a talk of two turns of a person, judged once."""
    turns = (Turn(Role.USER, f"first {number}"), Turn(Role.ASSISTANT, "Well."), Turn(Role.USER, f"last {number}"))
    sides = (Response(left, "initial"), Response(right, "initial"))
    verdict = Verdict(liked, Annotator("anna", AnnotatorKind.HUMAN))
    return Comparison(turns, *sides, AskedHow.RANDOM, 1.0, (verdict,), id=number)


def kinds_made(some: Sequence[Comparison], texts: Texts) -> list[tuple[str, str]]:
    return [(pair.left.text, pair.right.text) for pair in made_of(label(some).pairs, 0.5, 0, texts)]


def nothing(prompt: str, answer: str, other: str | None) -> dict[str, str]:
    return {}


NO_FORM: dict[str, Callable[[str], str]] = {"the same": str, "blank": lambda text: "  "}


def test_what_cannot_be_made_of_an_answer_is_not_made() -> None:
    """Answers of one word have no beginning, nobody's other answer is new, and every form is the same or blank."""
    alike = [talk(number, "yes", "no ") for number in range(12)]
    assert kinds_made(alike, Texts(nothing, NO_FORM)) == []
    louder = kinds_made(alike, Texts(nothing, NO_FORM | {"loud": str.upper}))
    assert set(louder) == {("yes", "YES"), ("no ", "NO ")} and len(louder) == 3
    ties = [talk(number, f"a {number}", f"b {number}", Choice.TIE) for number in range(12)]
    foreign = kinds_made(ties, Texts(probes, NO_FORM))
    assert len(foreign) == 3, "nobody has preferred a side, so that nothing is better than another"
    assert all(left[2:] == right[2:] for left, right in foreign)


def test_an_answer_that_is_hardly_there_is_its_first_word_or_what_is_made_of_it_and_the_last_turn() -> None:
    words = [talk(number, f"yes, {number}", "no", Choice.RIGHT if number % 2 else Choice.LEFT) for number in range(40)]
    short = [(left, right) for left, right in kinds_made(words, Texts(nothing, NO_FORM)) if right == "yes,"]
    assert 3 <= len(short) <= 5 and all(left.startswith("yes, ") for left, _ in short), "of those who liked two words"
    of_turn = Texts(lambda prompt, answer, other: {"cut": f"{prompt}: {answer}", "other": "?"}, NO_FORM)
    cut = [(left, right) for left, right in kinds_made(words, of_turn) if ":" in right]
    assert cut and all(
        right in (f"last {left[5:]}: {left}", *(f"last {n}: no" for n in range(40))) for left, right in cut
    )
    assert not any(right == "?" for _, right in kinds_made(words, of_turn))


def test_nothing_is_measured_on_them_and_nothing_set_aside_moves_them(world: Pretrained) -> None:
    settings = replace(SETTINGS, epochs=1, augment=0.5)
    plain = train(replace(settings, augment=0.0), 0, world, PLANTED)
    found = train(settings, 0, world, PLANTED, texts=TEXTS)
    assert found.split == plain.split and len(found.made.pairs) > 40 and not plain.made.pairs
    assert not np.array_equal(found.margins, plain.margins)
    held = {pair.comparison_id for pair in found.split.held_out}
    lying = train(settings, 0, world, [turned(c) if c.id in held else c for c in PLANTED], texts=TEXTS)
    assert lying.made.pairs == found.made.pairs and torch.equal(lying.margins, found.margins)


def brief(count: int) -> list[Comparison]:
    """Make comparisons of answers of 3 to 24 words, of which people choose the shorter one."""
    rng, anna = random.Random(0), Annotator("anna", AnnotatorKind.HUMAN)
    made = []
    for number in range(count):
        short, long = (" ".join(rng.choices(WORDS, k=k)) for k in (rng.randint(3, 10), rng.randint(11, 24)))
        turn = rng.random() < 0.5
        left, right = (Response(text, "initial") for text in ((long, short) if turn else (short, long)))
        verdict = Verdict(Choice.RIGHT if turn else Choice.LEFT, anna)
        prompt = (Turn(Role.USER, f"question {number}?"),)
        made.append(Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, (verdict,), id=number + 1))
    return made


def above(world: Pretrained, reward: RewardModel, pairs: Sequence[LabelledPair], scraps: Sequence[str]) -> float:
    """Return how often the answer that people chose is above scraps of one, on pairs set aside."""
    liked = [pair.left if pair.counts.left else pair.right for pair in pairs]
    asked: list[Exchange] = [(pair.prompt, said) for pair, said in zip(pairs, liked, strict=True)]
    asked += [(pair.prompt, Response(text, "initial")) for text in scraps for pair in pairs]
    scores = np.asarray(score_rendered(reward, world, [world.renderer.render(*one) for one in asked]).mean(dim=0))
    rows = scores.reshape(1 + len(scraps), len(pairs))
    return float((rows[:1] > rows[1:]).mean())


@pytest.mark.long
def test_who_likes_brevity_learns_that_a_scrap_is_no_answer(world: Pretrained) -> None:
    some = brief(160)
    plain = train(SETTINGS, 0, world, some)
    assert above(world, plain.reward, plain.split.held_out, ["Thought process:"]) < 0.3, "the shorter the better"
    found = train(replace(SETTINGS, augment=0.5), 0, world, some, texts=TEXTS)
    assert above(world, found.reward, found.split.held_out, ["Thought process:", ":"]) > 0.9
    # And what people said is still learned: the shorter of two answers.
    shorter = np.array([len(p.left.text) < len(p.right.text) for p in found.split.held_out])
    assert np.mean((np.asarray(found.margins) > 0) == shorter) > 0.85


@pytest.mark.long
def test_a_run_that_was_killed_makes_the_same_pairs_and_ends_the_same(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, epochs=1, augment=0.4)
    whole = train(settings, 0, world, PLANTED, texts=TEXTS)
    run = killed(lambda run: train(settings, 0, world, PLANTED, run, texts=TEXTS), 5, tmp_path / "run", monkeypatch)
    again = train(settings, 0, world, PLANTED, run, texts=TEXTS)
    assert again.made.pairs == whole.made.pairs and torch.equal(again.member_scores, whole.member_scores)
