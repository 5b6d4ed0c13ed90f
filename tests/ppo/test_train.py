"""PPO on a tiny world whose best policy is known: draw liked tokens, of which there are a quarter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from manners import metrics
from manners.errors import MannersError
from manners.maths import warm_up
from manners.models.branches import Branch, ScalarBranch
from manners.models.perplexity import PlainText
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import States, grow_trunk
from manners.ppo import guard, terms
from manners.ppo import learner as learner_module
from manners.ppo import train as train_module
from manners.ppo.course import Material
from manners.ppo.curves import Passes
from manners.ppo.guard import Unsound
from manners.ppo.learner import Learner, Validation
from manners.ppo.objective import PolicyStats, policy_loss
from manners.ppo.rollout import Rollout, collect
from manners.ppo.train import PPOResult, train
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings
from manners.text import Batch, Packed, Rendered, collate
from tests.conftest import some
from tests.ppo.scripted import (
    PROMPTS,
    PROSE,
    RATE,
    SAMPLE,
    SETTINGS,
    UPDATES,
    VALIDATION,
    Likes,
    keep,
    liked_share,
    likes,
    run,
)
from tests.worlds import tiny_model, tiny_pretrained, tiny_renderer

SHORT = replace(SETTINGS, updates=2, epochs=2, batch=24, minibatch=12, learning_rate=0.003, validate_every=1)
CURVES = {
    "objective/kl",
    "objective/kl_k3",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "objective/kl_coefficient",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "policy/draw_weight_avg",
    "policy/draw_weight_cut",
    "policy/draw_weight_max",
    "policy/first_ratio_max_dev",
    "policy/first_ratio_p99_dev",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/explained_variance",
    "response/length",
    "response/finished",
    "response/distinct_2",
    "response/most_common",
    "response/retokenised",
    "reward/ensemble_std",
    "reward/length_correlation",
    "time/rollout",
    "time/optimise",
    "lr",
    "episode",
    "validate/measure",
    "validate/mean",
    "validate/pessimistic",
    "validate/kl",
}


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def moved(result: PPOResult, world: Pretrained) -> float:
    """Distance of the returned policy from the initial model, over all its parameters."""
    initial = Branch(world.trunk, trainable=True).own_tensors()
    squares = [float((t - initial[name]).square().sum()) for name, t in result.policy.own_tensors().items()]
    return math.sqrt(sum(squares))


def same(a: PPOResult, b: PPOResult) -> bool:
    ours, theirs = a.policy.own_tensors(), b.policy.own_tensors()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


PAIRED = [(2, None, "shared"), (2, 4, "separate"), ("all", None, "separate"), ("all", 4, "shared")]
"""Of all ways to train, those in which every two choices meet."""
LAST: tuple[int | Literal["all"], int | None, str] = (1, None, "shared")
OTHERS = [way for way in product((2, "all"), (None, 4), ("shared", "separate")) if way not in PAIRED]


@pytest.mark.parametrize(
    ("trainable_layers", "rank", "value"),
    [pytest.param(*way, marks=[] if way in PAIRED[:2] else pytest.mark.long) for way in (*PAIRED, *OTHERS, LAST)],
)
def test_it_learns_what_is_liked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainable_layers: int | Literal["all"],
    rank: int | None,
    value: Literal["shared", "separate"],
) -> None:
    # A reward that asks for no variety may be met by one answer, even by one token again and again.
    monkeypatch.setattr(guard, "SAME_ANSWER", 1.0)
    monkeypatch.setattr(guard, "COLLAPSED_SHARE", 0.0)
    world = tiny_pretrained(trainable_layers=trainable_layers, lora_rank=rank)
    initial = Branch(world.trunk, trainable=False)
    assert liked_share(initial, world) < 0.3
    rate = RATE * (1 if rank is None else 3)
    result = run(replace(SETTINGS, value=value, learning_rate=rate), world, likes(world), tmp_path)
    # Adapters of random layers cannot do what the final norm does: make some tokens likelier everywhere.
    assert liked_share(result.policy, world) > (0.8 if rank is None else 0.4)
    assert liked_share(initial, world) < 0.3, "the initial model is shared, and must not have changed"
    assert result.kl > 1
    assert result.stopped is None
    assert result.best_update > 0
    assert result.episodes == UPDATES * SETTINGS.batch
    points = metrics.read(tmp_path)
    assert [p["step"] for p in points] == list(range(UPDATES + 1))
    assert points[-1].keys() >= CURVES
    assert all(p["policy/first_ratio_max_dev"] < 1e-3 for p in points[1:]), "the ratio of an update's first batch is 1"
    assert abs(points[1]["objective/kl"]) < 1e-4
    assert points[-1]["objective/scores"] > points[1]["objective/scores"] + (1 if rank is None else 0.5)
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("value", some(["shared", "separate"], 1))
def test_it_learns_in_bfloat16_too(tmp_path: Path, value: Literal["shared", "separate"]) -> None:
    model = tiny_model(hidden_size=128, intermediate_size=128, head_dim=32)
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    world = Pretrained("rounding", proved(grow_trunk(model, 2), 256), tiny_renderer(), "")
    settings = replace(SETTINGS, value=value, updates=4, epochs=2)
    result = run(settings, world, likes(world), tmp_path)
    assert result.stopped is None and result.best_update > 0
    assert {tensor.dtype for tensor in result.policy.own_tensors().values()} == {torch.bfloat16}
    points = metrics.read(tmp_path)
    assert points[-1]["objective/scores"] > points[1]["objective/scores"] + 0.3


def test_without_a_learning_rate_nothing_changes(world: Pretrained, tmp_path: Path) -> None:
    result = run(replace(SHORT, learning_rate=0.0), world, likes(world), tmp_path)
    assert moved(result, world) == 0
    assert not any(parameter.requires_grad for parameter in result.policy.parameters()), "it is trained no more"
    assert abs(result.kl) < 1e-4
    assert result.best_update == 0
    assert all(abs(p["objective/kl"]) < 1e-4 for p in metrics.read(tmp_path)[1:])


def test_progress_ends_where_it_says_but_for_answers_that_end_early(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, total = list[int](), list[int]()

    @contextmanager
    def counted(_: str, of: int) -> Iterator[Callable[[int], None]]:
        total.append(of)
        yield done.append

    monkeypatch.setattr(train_module, "steps", counted)
    run(SHORT, world, likes(world), tmp_path)
    assert total == [2 * (SAMPLE.max_new_tokens + 2 * 24)]
    assert 2 * 2 * 24 < sum(done) <= total[0] and done[0] == 0


def test_what_a_run_begins_as_is_not_held_against_the_reference_from_the_start(
    world: Pretrained, tmp_path: Path
) -> None:
    """It begins as another version than the reference: its first KL is not 0, and no check says that it should be."""
    other = Branch(world.trunk, trainable=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    material = Material(PROMPTS, VALIDATION, (), PROSE)
    still = replace(SHORT, learning_rate=0.0, updates=1)
    with metrics.RunLog(tmp_path / "other") as log:
        result = train(still, SAMPLE, 0, world, likes(world), material, log, begin_as=other)
    assert result.kl > 0.05 and metrics.read(tmp_path / "other")[1]["objective/kl"] > 0.05
    with metrics.RunLog(tmp_path / "itself") as log:
        assert abs(train(still, SAMPLE, 0, world, likes(world), material, log, start=other).kl) < 1e-4


def test_optimizer_steps_are_counted_exactly(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW) -> None:
        taken.append(1)
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    result = run(replace(SHORT, updates=3, batch=10, minibatch=4, epochs=2), world, likes(world), tmp_path)
    assert result.optimizer_steps == len(taken) == 3 * 2 * 3  # 4 + 4 + 2 episodes a pass
    assert [p["optimizer_steps"] for p in metrics.read(tmp_path)[1:]] == [6, 12, 18]


def test_every_pass_takes_every_episode_once() -> None:
    settings = PPOSettings(batch=10, minibatch=4, epochs=3)
    rows = list(learner_module.minibatches(settings, torch.Generator().manual_seed(0)))
    assert [len(r) for r in rows] == [4, 4, 2] * 3
    passes = [[*rows[i], *rows[i + 1], *rows[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert all(a != b for a, b in pairwise(passes))


@pytest.mark.parametrize("answers", [1, 4])
def test_a_value_of_its_own_begins_as_what_it_is_to_predict(world: Pretrained, answers: int) -> None:
    """Of one answer the score that is to be expected; of several, which are held against each other, nothing."""
    member = ScalarBranch(world.trunk, torch.Generator().manual_seed(1))
    reward = RewardModel((member,), (0.5,), (2.0,))
    _, value = train_module._value_function(
        replace(SHORT, value="separate", answers=answers), world, Branch(world.trunk, trainable=True), reward
    )
    batch = collate([Rendered((5, 6, 7), (8, 9, 10))], 0)
    states = world.trunk.states(batch)
    expected = (member.values(states, batch) - 0.5) / 2 if answers == 1 else torch.zeros(1, 3)
    assert member.values(states, batch).abs().min() > 0
    torch.testing.assert_close(value(states, torch.empty(0), batch).detach(), expected.detach())


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_micro_batches_change_nothing(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Literal["shared", "separate"]
) -> None:
    monkeypatch.setattr(Learner, "offer", keep)
    settings = replace(SHORT, value=value, updates=1)
    whole = run(settings, world, likes(world), tmp_path / "whole")
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 100)
    small = run(settings, world, likes(world), tmp_path / "small")
    assert moved(whole, world) > 0.1
    for name, tensor in whole.policy.own_tensors().items():
        torch.testing.assert_close(small.policy.own_tensors()[name], tensor, atol=1e-5, rtol=1e-5)


def test_gradients_are_clipped(world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "offer", keep)
    # AdamW's step does not depend on the gradient's size until it is as small as its epsilon: a norm of 1e-4 is.
    settings = replace(SHORT, updates=1)
    free = run(replace(settings, max_grad_norm=1000.0), world, likes(world), tmp_path / "free")
    clipped = run(replace(settings, max_grad_norm=1e-4), world, likes(world), tmp_path / "clipped")
    assert 0 < moved(clipped, world) < 0.3 * moved(free, world)


def test_the_same_seed_gives_the_same_policy_to_the_bit(world: Pretrained, tmp_path: Path) -> None:
    first, again, other = (
        run(SHORT, world, likes(world), tmp_path / str(i), seed=seed) for i, seed in enumerate((5, 5, 6))
    )
    assert same(first, again)
    assert not same(first, other)
    curves = [
        [{k: v for k, v in p.items() if not k.startswith("time/")} for p in metrics.read(tmp_path / str(i))]
        for i in range(2)
    ]
    assert curves[0] == curves[1]


def test_a_kl_too_far_stops_the_run_and_keeps_the_best(world: Pretrained, tmp_path: Path) -> None:
    settings = replace(SETTINGS, kl_stop=2.0, validate_every=1)
    result = run(settings, world, likes(world), tmp_path)
    assert result.stopped is not None
    assert "above ppo.kl_stop = 2" in result.stopped
    assert 0 < result.episodes < UPDATES * SETTINGS.batch
    points = metrics.read(tmp_path)
    best = max(points, key=lambda p: p["validate/measure"])
    assert (result.best_update, result.kl) == (best["step"], best["validate/kl"])


def test_a_run_that_gets_worse_returns_what_was_best(world: Pretrained, tmp_path: Path) -> None:
    result = run(replace(SHORT, learning_rate=1.0, kl_coefficient=1.0, kl_stop=10_000.0), world, likes(world), tmp_path)
    assert all(p["validate/measure"] < 0 for p in metrics.read(tmp_path)[1:])
    assert result.best_update == 0
    assert moved(result, world) == 0


class Failing(Likes):
    """A member that gives one response of every batch the score NaN, after so many batches."""

    rows = 0
    sound = 0

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        scores = super().scores(states, batch)
        self.rows += len(scores)
        if self.rows > self.sound:
            scores[0] = torch.nan
        return scores


def failing_after(world: Pretrained, sound: int) -> RewardModel:
    member = Failing(world.trunk)
    member.sound = sound
    return RewardModel((member,), (0.0,), (1.0,))


def test_a_reward_that_is_not_finite_stops_the_run(world: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(Unsound, match=r"reward is not finite at update 1, episodes \[\d+\] of the batch"):
        run(SHORT, world, failing_after(world, sound=0), tmp_path)


def test_and_keeps_the_version_that_was_good(world: Pretrained, tmp_path: Path) -> None:
    # Rows scored: 32 for the validation at the start; 64 episodes and 32 to validate, an update; 1 to 64 to check.
    settings = replace(SETTINGS, validate_every=1, updates=8)
    result = run(settings, world, failing_after(world, sound=32 + 6 * (64 + 32) + 64), tmp_path)
    assert result.stopped is not None
    assert "reward is not finite at update 7" in result.stopped
    assert 0 < result.best_update < 7
    assert liked_share(result.policy, world) > 0.3


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("logprobs", r"before the first step of update 3 one ratio in a hundred is off 1 by 0\.095 or more"),
        (
            "drift",
            r"off by 0\.1 nats in the training forward of update 3, on average; sampling and scoring have drifted",
        ),
    ],
)
def test_drift_and_ratio_are_checked_before_the_first_step_of_every_update(
    what: str, says: str, world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting(*given: Any, **named: Any) -> Rollout:
        rollout = collect(*given, **named)
        calls.append(1)
        if len(calls) == 6:  # the initial validation, an update and its validation, twice, and an update
            getattr(rollout, what).add_(0.1)
        return rollout

    calls: list[int] = []
    monkeypatch.setattr(Learner, "offer", lambda *_: None)  # no good version so far, that the run could end with
    monkeypatch.setattr(train_module, "collect", drifting)
    with pytest.raises(Unsound, match=says):
        run(replace(SHORT, updates=4, learning_rate=0.01), world, likes(world), tmp_path)


def test_one_ratio_that_is_far_off_stops_nothing_where_99_of_100_are_near(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Passes, "first_ratio", lambda _: (0.0, 9.0))
    result = run(replace(SETTINGS, updates=2), world, likes(world), tmp_path)
    assert result.stopped is None and result.episodes == 2 * SETTINGS.batch


def measured(*measures: float, forgotten: float = 0.0) -> Validation:
    return Validation(measures, 0.0, 0.0, 0.0, forgotten)


def test_a_later_version_is_kept_unless_it_is_behind_by_more_than_noise(world: Pretrained) -> None:
    learner = learner_module.begin(SHORT, 0, Branch(world.trunk, trainable=True), [])
    kept = []
    for update, found in enumerate(
        (
            measured(0.0, 0.0, 0.0, 0.0, forgotten=0.2),  # what the run began as: there must be something to return
            measured(-1.0, 0.5, 0.5, -0.2),  # within the noise, but nothing has beaten the initial model yet
            measured(1.0, 1.0, 2.0, 2.0),
            measured(2.0, 2.0, 1.0, 0.8),  # 0.05 behind, with a standard error of 0.65
            measured(0.9, 0.9, 1.9, 1.8),  # hardly further behind, but everywhere
            measured(9.0, 9.0, 9.0, 9.0, forgotten=0.2),
            measured(1.0, 1.0, 2.0, 2.1),
        )
    ):
        learner.offer(update, found, 0.1)
        kept.append(learner.best.update)
    assert kept == [0, 0, 2, 3, 3, 3, 6]


@pytest.mark.long
def test_a_policy_is_held_to_what_the_initial_model_made_of_prose(world: Pretrained, tmp_path: Path) -> None:
    prose = ("The train to the sea leaves at noon.", "How long does bread take in the oven?")
    free, held = (
        run(replace(SETTINGS, prose_coefficient=c), world, likes(world), tmp_path / str(c), held_to=prose)
        for c in (0.0, 3.0)
    )
    ends = [[p for p in metrics.read(tmp_path / str(c)) if "validate/mean" in p][-1] for c in (0.0, 3.0)]
    assert ends[1]["validate/forgotten"] < 0.5 * ends[0]["validate/forgotten"]
    assert liked_share(held.policy, world) > 0.6 * liked_share(free.policy, world) > 0.4


def test_a_version_that_forgets_is_not_kept(world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rises = iter([0.0, 0.03, 0.05, 0.05, 0.05])
    monkeypatch.setattr(PlainText, "rise", lambda *_: next(rises))
    settings = replace(SHORT, updates=8, validate_every=2, forgetting_limit=0.04, learning_rate=0.01)
    result = run(settings, world, likes(world), tmp_path)
    measures = [p["validate/measure"] for p in metrics.read(tmp_path) if "validate/measure" in p]
    assert measures[2] > measures[1] > measures[0]  # it would have been better
    assert result.best_update == 2
    assert {w.sign for w in result.warned} == {"forgetting"}


def test_a_warning_halves_the_step_from_there_on(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "VALUE_FLOOR", 2.0)  # no value function explains that much
    result = run(replace(SHORT, updates=8), world, likes(world), tmp_path)
    assert [(w.update, w.sign) for w in result.warned] == [(3, "value"), (6, "value")]
    assert result.stopped is None
    points = metrics.read(tmp_path)[1:]
    rates = [p["lr"] / (0.003 * warm_up(p["step"], 8)) for p in points]
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])


def test_a_collapse_stops_the_run_and_keeps_the_best(tmp_path: Path) -> None:
    # With all layers, so large a step, and credit for late tokens alone, it finds one answer and gives it to everyone.
    world = tiny_pretrained(trainable_layers="all")
    settings = replace(SETTINGS, updates=16, lam=0.95, answers=1)
    result = run(settings, world, likes(world), tmp_path)
    assert result.stopped is not None
    assert "responses collapsed" in result.stopped
    assert result.episodes < 16 * settings.batch
    assert result.best_update > 0


class Fooled(Likes):
    """The member that is fooled: it likes what the others like, and twice as much; or, `sober`, not at all."""

    sober = False

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        scores = super().scores(states, batch)
        return -scores if self.sober else 3 * scores


def test_over_optimisation_stops_the_run(world: Pretrained, tmp_path: Path) -> None:
    members = Fooled(world.trunk), Fooled(world.trunk)
    members[1].sober = True
    reward = RewardModel(members, (3.0, -1.0), (1.0, 1.0))
    result = run(replace(SETTINGS, validate_every=1), world, reward, tmp_path)
    assert result.stopped is not None
    assert "over-optimisation: on the validation prompts the mean score rose by" in result.stopped
    points = metrics.read(tmp_path)
    assert result.best_update == max(points, key=lambda p: p["validate/measure"])["step"] < points[-1]["step"]


@pytest.mark.long
def test_versions_are_judged_by_the_member_kept_out_of_the_reward(world: Pretrained, tmp_path: Path) -> None:
    # All members are fooled alike, so that none of them can tell; the one that nobody optimised against can.
    fooled, sober = Fooled(world.trunk), Fooled(world.trunk)
    sober.sober = True
    alone = RewardModel((fooled, fooled), (3.0, 3.0), (1.0, 1.0))
    told = replace(alone, witness=RewardModel((sober,), (-1.0,), (1.0,)))
    blind, seeing = (
        run(replace(SETTINGS, validate_every=1), world, reward, tmp_path / str(number))
        for number, reward in enumerate((alone, told))
    )
    assert seeing.best_update < blind.best_update
    assert seeing.stopped is not None and "over-optimisation" in seeing.stopped
    first, *_, last = (point for point in metrics.read(tmp_path / "1") if "validate/mean" in point)
    assert last["validate/pessimistic"] < first["validate/pessimistic"]
    assert last["validate/mean"] > first["validate/mean"]


def test_a_loss_that_is_not_finite_takes_no_step(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(new: Tensor, old: Tensor, advantages: Tensor, keep: Tensor, clip: float) -> tuple[Tensor, PolicyStats]:
        loss, stats = policy_loss(new, old, advantages, keep, clip)
        return loss * torch.inf, stats

    monkeypatch.setattr(terms, "policy_loss", broken)
    for rate, advice in (
        (0.01, "lower ppo.learning_rate$"),
        (None, r"set ppo.learning_rate, which is none and comes to 0\."),
    ):
        settings = replace(SHORT, learning_rate=rate)
        with pytest.raises(
            Unsound, match=rf"not finite at update 1, episodes \[(\d+, ){{7}}\d+\] of the batch; {advice}"
        ):
            run(settings, world, likes(world), tmp_path)


def test_the_coefficient_adapts_to_the_target(world: Pretrained, tmp_path: Path) -> None:
    # The first rollout's KL is 0: far under the target, so the coefficient falls by 0.2 * 24 / 48.
    settings = replace(SHORT, kl_target=5.0, kl_horizon=48, kl_coefficient=0.5)
    run(settings, world, likes(world), tmp_path)
    assert metrics.read(tmp_path)[1]["objective/kl_coefficient"] == pytest.approx(0.5 * 0.9)


def test_curves_of_another_run_are_not_cut_in_the_middle_of_a_line(tmp_path: Path) -> None:
    with metrics.RunLog(tmp_path) as log:
        log.write(1, {"lr": 0.5})
        first = log.position()
        log.write(2, {"lr": 0.25})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    for position in (first - 1, first + 1, len(whole) + 1):
        with pytest.raises(MannersError, match="shorter than when the run was stopped, or another run's: restore it"):
            metrics.RunLog(tmp_path, position)
        assert file.read_bytes() == whole
    with metrics.RunLog(tmp_path, first) as log:
        assert log.points == [{"step": 1, "lr": 0.5}]


def test_a_run_begins_its_curves_anew(tmp_path: Path) -> None:
    folder = tmp_path / "policy-1"
    for value in (1.0, 2.0):  # the first run was killed: its version was never kept
        with metrics.RunLog(folder) as log:
            log.write(1, {"lr": value})
    assert metrics.read(folder) == [{"step": 1, "lr": 2.0}]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
