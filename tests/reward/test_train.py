"""Reward training on a tiny world with a planted preference, and on one with none."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manners.errors import MannersError
from manners.models.branches import ScalarBranch
from manners.models.pretrained import Pretrained
from manners.reward import train as module
from manners.reward.ensemble import RewardModel, score_exchanges
from manners.reward.pairs import ReadPairs, read
from manners.reward.train import Trained, train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.types import Choice, Comparison
from tests.reward.as_facts import measure
from tests.reward.planted import comparisons, turned
from tests.worlds import tiny_pretrained, with_compute

SETTINGS = RewardSettings(members=2, epochs=3, batch=8, learning_rate=0.01, set_aside=0.35, curve=False)
PLANTED = comparisons(80, agreement=0.95)


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def trained(world: Pretrained) -> Trained:
    return train(replace(SETTINGS, curve=True), 0, world, PLANTED)


def facts(trained: Trained) -> dict[str, Any]:
    return measure(np.asarray(trained.margins.double()), trained.split.train, trained.split.held_out, seed=0)


def weights(trained: Trained) -> list[torch.Tensor]:
    return [tensor for member in trained.reward.members for tensor in member.own_tensors().values()]


def test_it_finds_what_annotators_like(trained: Trained) -> None:
    found = facts(trained)
    low, high = found["interval"]
    assert 0.6 < low < high <= 1
    polite = np.array(["thank" in pair.left.text for pair in trained.split.held_out])
    assert np.mean((np.asarray(trained.margins) > 0) == polite) > 0.9


def test_a_crowd_that_tosses_coins_teaches_nothing(world: Pretrained) -> None:
    found = facts(train(SETTINGS, 0, world, comparisons(80, agreement=0.5)))
    low, high = found["interval"]
    assert low < 0.5 < high
    assert "not shown to beat the best trivial rule" in found["sentence"]


def test_what_is_set_aside_is_not_trained_on(world: Pretrained, trained: Trained) -> None:
    # Turning round every verdict that was set aside must not move a single weight; turning one trained on must.
    held_out = {pair.comparison_id for pair in trained.split.held_out}
    assert 10 < len(held_out) < 50
    settings = replace(SETTINGS, epochs=1, members=1)
    before = weights(train(settings, 0, world, PLANTED))
    lying = weights(train(settings, 0, world, [turned(c) if c.id in held_out else c for c in PLANTED]))
    assert all(torch.equal(a, b) for a, b in zip(before, lying, strict=True))
    taught = next(c.id for c in PLANTED if c.id not in held_out)
    other = weights(train(settings, 0, world, [turned(c) if c.id == taught else c for c in PLANTED]))
    assert not all(torch.equal(a, b) for a, b in zip(before, other, strict=True))


def test_members_differ_but_share_the_trunk(world: Pretrained, trained: Trained) -> None:
    first, second = trained.reward.members
    assert not torch.equal(first.scalar.weight, second.scalar.weight)
    assert not torch.allclose(trained.member_scores[0], trained.member_scores[1])
    below = {p.data_ptr() for p in world.trunk.whole.parameters() if id(p) not in world.trunk.own}
    for member in (first, second):
        owned = {tensor.data_ptr() for tensor in member.own_tensors().values()}
        assert not owned & {p.data_ptr() for p in world.trunk.whole.parameters()}
        assert below & {p.data_ptr() for p in member.parameters()}, "the embedding is the trunk's own"
    whole = tiny_pretrained().trunk.whole.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in world.trunk.whole.state_dict().items())


def test_the_same_seed_gives_the_same_weights(world: Pretrained) -> None:
    settings = replace(SETTINGS, epochs=1, members=1)
    first, again, other = (weights(train(settings, seed, world, PLANTED)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_micro_batches_change_nothing(world: Pretrained) -> None:
    settings = replace(SETTINGS, epochs=1, members=1, learning_rate=1e-3)
    whole = weights(train(settings, 0, world, PLANTED[:30]))
    narrow = replace(world, trunk=with_compute(world.trunk, bucket_tokens=100))
    for a, b in zip(weights(train(settings, 0, narrow, PLANTED[:30])), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shares", [True, False])
def test_the_tokens_of_a_pass_are_counted_by_hand(world: Pretrained, tmp_path: Path, shares: bool) -> None:
    first, second = PLANTED[:2]
    third = replace(first.left, text="bake it at noon")
    labelled, rendered = read(world.renderer, label([first, replace(first, right=third), second]))
    sized = replace(world, trunk=with_compute(world.trunk, shares_prompts=shares))
    data = ReadPairs(sized, labelled.pairs, rendered, tmp_path / "states", "reading")
    prompts = [len(world.renderer.prompt_ids(c.prompt)[0]) for c in (first, second)]
    responses = [first.left, first.right, third, second.left, second.right]
    read_once = sum(len(world.renderer.response_ids(response)) for response in responses)
    assert data.tokens == read_once + (sum(prompts) if shares else 3 * prompts[0] + 2 * prompts[1])


def test_a_response_in_several_pairs_is_scored_once_and_in_one_batch(world: Pretrained, tmp_path: Path) -> None:
    # Three answers to each of six prompts make three pairs a prompt.
    triples = []
    for c in PLANTED[:6]:
        third = replace(c.left, text="bake it at noon")
        triples += [c, replace(c, right=third), replace(c, left=third)]
    labelled, rendered = read(world.renderer, label(triples))
    data = ReadPairs(world, labelled.pairs, rendered, tmp_path / "states", "reading")
    assert len(data.rendered) == 6 * 3
    batches = data.batches(range(18), 6, random.Random(0))
    assert [len(batch) for batch in batches] == [6, 6, 6]
    assert all(len({data.pairs[i].prompt for i in batch}) == 2 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(18))

    member = ScalarBranch(world.trunk, torch.Generator().manual_seed(0))
    exchanges = [(pair.prompt, side) for pair in data.pairs for side in (pair.left, pair.right)]
    (alone,) = score_exchanges(RewardModel((member,), (0.0,), (1.0,)), world, exchanges)
    torch.testing.assert_close(data.all_scores(member).flatten(), alone.mean, atol=1e-4, rtol=1e-4)


def test_steps_and_the_limit(world: Pretrained, trained: Trained) -> None:
    settings = replace(SETTINGS, limit=20, epochs=2)
    limited = train(settings, 0, world, PLANTED)
    assert len(limited.split.train) == 20
    assert limited.split.held_out == trained.split.held_out
    assert set(limited.split.train) < set(trained.split.train)
    assert limited.optimizer_steps == 2 * 2 * 3  # members, passes, batches of 8, 8 and 4


def test_fewer_verdicts_on_the_curve_are_not_fewer_steps(trained: Trained) -> None:
    of_the_curve = trained.optimizer_steps - SETTINGS.members * trained.steps
    assert of_the_curve == pytest.approx(2 * trained.steps, rel=0.2)


def test_the_curve_measures_on_the_same_pairs(trained: Trained) -> None:
    verdicts = [point.verdicts for point in trained.curve]
    assert verdicts == sorted(verdicts)
    assert verdicts[-1] == sum(round(sum(pair.counts)) for pair in trained.split.train)
    assert verdicts[0] == pytest.approx(verdicts[-1] / 4, abs=3)
    assert trained.curve[-1].accuracy.estimate > 0.8


def test_with_all_layers_trained(world: Pretrained) -> None:
    found = facts(train(replace(SETTINGS, members=1), 0, tiny_pretrained(trainable_layers="all"), PLANTED))
    low, _ = found["interval"]
    assert low > 0.6


def one_way(comparison: Comparison) -> Comparison:
    return replace(comparison, verdicts=tuple(replace(v, choice=Choice.LEFT) for v in comparison.verdicts))


def test_nothing_to_learn_from(world: Pretrained) -> None:
    with pytest.raises(MannersError, match="no comparisons to learn from; run `manners sample`"):
        train(SETTINGS, 0, world, [])
    with pytest.raises(MannersError, match="all 240 verdicts that choose a side say `left`"):
        train(SETTINGS, 0, world, [one_way(c) for c in PLANTED])


def test_a_gradient_that_is_not_finite_stops(world: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "preference_loss", lambda left, *_: (left.sum() * torch.nan, {}))
    with pytest.raises(MannersError, match=r"gradient is not finite at step 1 of \d+; lower reward.learning_rate"):
        train(SETTINGS, 0, world, PLANTED[:20])
