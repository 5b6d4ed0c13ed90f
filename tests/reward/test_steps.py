"""How far and how long the reward model is trained: in units of the model, until a slice says that it is enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.evidence.steps import rewritten
from manners.models.branches import ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from manners.reward.groups import slice_off
from manners.reward.passes import PASSES, READ, candidates
from manners.reward.steps import units
from manners.reward.train import Trained, train
from manners.settings import RewardSettings
from tests.conftest import some
from tests.reward.killed import killed
from tests.reward.planted import comparisons
from tests.worlds import tiny_model, tiny_pretrained, tiny_renderer

SETTINGS = RewardSettings(members=1, epochs=2, batch=8, set_aside=0.35, curve=False)
PLANTED = comparisons(60, agreement=0.95)


def pretrained(by: float) -> Pretrained:
    trunk = proved(grow_trunk(rewritten(tiny_model("llama", initializer_range=0.2), by), 2, None), 256)
    return Pretrained("rewritten", trunk, tiny_renderer(), note="")


@pytest.mark.parametrize(("rate", "same"), [(None, True), (0.003, False)])
def test_the_numbers_that_a_model_is_written_in_decide_nothing(rate: float | None, same: bool) -> None:
    settings = replace(SETTINGS, learning_rate=rate)
    plain, other = (train(settings, 0, pretrained(by), PLANTED).margins for by in (1.0, 8.0))
    assert float(plain.std()) > 0.1
    assert torch.allclose(plain, other, atol=0.02 * float(plain.std()), rtol=0) is same  # 8 rounds nothing


@pytest.mark.parametrize("rank", [None, 3])
def test_every_tensor_is_measured_in_a_spread_of_its_own(rank: int | None) -> None:
    branch = ScalarBranch(tiny_pretrained(lora_rank=rank).trunk, torch.Generator().manual_seed(0))
    found = dict(zip((n for n, p in branch.named_parameters() if p.requires_grad), units(branch), strict=True))
    named = dict(branch.named_parameters())
    head = float(branch.model.get_output_embeddings().weight.square().mean().sqrt())
    assert found["scalar.weight"] == pytest.approx(head) and head > 5 * float(named["scalar.weight"].detach().std())
    for name, unit in found.items():
        of = named[name.removesuffix(".b") + ".base.weight"] if name.endswith(".b") else named[name]
        if name != "scalar.weight":
            assert unit == pytest.approx(float(of.detach().square().mean().sqrt())) and unit > 0.01


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def held_out_loss(trained: Trained) -> float:
    """In nats a verdict; nobody says tie here."""
    counts = torch.tensor([pair.counts for pair in trained.split.held_out])
    losses = torch.nn.functional.softplus(torch.stack([-trained.margins, trained.margins], dim=1))
    return float((counts[:, :2] * losses).sum() / counts.sum())


@pytest.mark.parametrize("agreement", some([0.5, 0.95], 1))
def test_passes_are_those_that_a_dense_sweep_would_choose_or_nearly(world: Pretrained, agreement: float) -> None:
    said = comparisons(60, agreement=agreement)
    found = train(replace(SETTINGS, epochs=None), 0, world, said)
    assert [passes for passes, _ in found.tried] == list(PASSES[: len(found.tried)])
    assert found.passes == min(found.tried, key=lambda one: one[1])[0]
    sweep = {passes: held_out_loss(train(replace(SETTINGS, epochs=passes), 0, world, said)) for passes in PASSES}
    assert held_out_loss(found) == pytest.approx(sweep[found.passes], abs=1e-6)
    assert sweep[found.passes] < min(sweep.values()) + 0.05
    if agreement > 0.9:
        assert found.passes > 1, "so few pairs must be read more than once"


def test_who_has_many_pairs_reads_them_once() -> None:
    free = RewardSettings()
    assert candidates(free, 10) == PASSES and candidates(free, READ // 4) == (1, 2, 4)
    assert candidates(free, READ // 2 + 1) == candidates(free, 10**6) == (1,)
    assert candidates(RewardSettings(epochs=3), 10) == ()


def test_the_slice_is_of_whole_groups(world: Pretrained) -> None:
    pairs = train(replace(SETTINGS, epochs=1), 0, world, PLANTED).split.train
    pairs = tuple(replace(pair, group=pair.group[:10]) for pair in pairs)
    fit, off = slice_off(pairs, 0.2, 0)
    assert sorted(fit + off) == list(range(len(pairs))) and fit and off
    assert not {pairs[i].group for i in fit} & {pairs[i].group for i in off}
    one = [replace(pair, group="the same") for pair in pairs]
    assert slice_off(one, 0.2, 0) == (list(range(len(pairs))), [])


@pytest.mark.long
def test_a_run_that_was_killed_while_it_scouted_ends_as_one_that_never_was(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, epochs=None)
    whole = train(settings, 0, world, PLANTED)
    run = killed(lambda run: train(settings, 0, world, PLANTED, run), 9, tmp_path / "run", monkeypatch)
    again = train(settings, 0, world, PLANTED, run)
    assert (again.tried, again.passes, again.optimizer_steps) == (whole.tried, whole.passes, whole.optimizer_steps)
    assert torch.equal(again.member_scores, whole.member_scores)
