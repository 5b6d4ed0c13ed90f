"""The checks at start-up: silent in a sound world, and each of them loud where one thing is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from manners.errors import MannersError
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import States, grow_trunk
from manners.ppo import guard
from manners.ppo.course import Roles
from manners.ppo.curves import Metrics
from manners.ppo.guard import Act, Warned
from manners.ppo.rollout import Rollout, collect
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings
from manners.text import Batch, Packed, Renderer
from tests.ppo.scripted import PROMPTS, SAMPLE, Likes, likes, roles
from tests.worlds import END, END_IDS, START, tiny_model, tiny_pretrained, tiny_renderer


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def rolled_out(players: Roles) -> Rollout:
    return collect(players, PROMPTS, PPOSettings(), SAMPLE, 0.05, torch.Generator().manual_seed(1))


def test_a_sound_world_passes(world: Pretrained) -> None:
    players = roles(world, likes(world))
    checks = guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)
    assert checks.keys() == {"check/drift", "check/ratio", "check/ratio_max", "check/kl", "check/score"}
    assert all(abs(value) < 1e-4 for value in checks.values())


@pytest.mark.parametrize("temperature", [0.9, 1.1])
def test_sampling_at_another_temperature_than_scoring(world: Pretrained, temperature: float) -> None:
    players = roles(world, likes(world))
    with pytest.raises(MannersError, match=r"log-probability of a drawn token is off by .* different distributions"):
        guard.check_first_rollout(rolled_out(players), players, temperature)


def rounding_world() -> tuple[Roles, Rollout]:
    """A model in bfloat16, wide enough and on prompts of lengths so different that rounding shows."""
    model = tiny_model(hidden_size=256, intermediate_size=256, head_dim=64)
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    trunk = proved(grow_trunk(model, 2), 256)
    players = roles(Pretrained("rounding", trunk, tiny_renderer(), ""), RewardModel((Likes(trunk),), (0.0,), (1.0,)))
    prompts = [(START, *range(40, 41 + 9 * i % 150), END) for i in range(24)]
    long = replace(SAMPLE, max_new_tokens=24)
    return players, collect(players, prompts, PPOSettings(), long, 0.05, torch.Generator().manual_seed(1))


@pytest.mark.long
def test_bfloat16_is_given_what_it_rounds_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    players, rollout = rounding_world()
    checks = guard.check_first_rollout(rollout, players, 1.0)
    assert guard.DRIFT_TOLERANCE[torch.float32] < checks["check/drift"] < 0.1
    assert checks["check/ratio"] <= checks["check/ratio_max"] < 0.05
    with pytest.raises(MannersError, match="sampling and scoring use different distributions"):
        guard.check_first_rollout(rollout, players, 0.25)
    monkeypatch.setitem(guard.DRIFT_TOLERANCE, torch.bfloat16, guard.DRIFT_TOLERANCE[torch.float32])
    with pytest.raises(MannersError, match="sampling and scoring use different distributions"):
        guard.check_first_rollout(rollout, players, 1.0)


def test_a_token_whose_probability_depends_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every second row is read again without the others; in bfloat16 a drift that large may be rounding.
    players, rollout = rounding_world()
    logprobs = players.policy.logprobs

    def in_company(hidden: Tensor, batch: Batch, temperature: float) -> Tensor:
        return logprobs(hidden, batch, temperature) + 0.06

    monkeypatch.setattr(players.policy, "logprobs", in_company)
    with pytest.raises(MannersError, match=r"one ratio in a hundred is off 1 by 0\.06.* other rows of its batch"):
        guard.check_first_rollout(rollout, players, 1.0)


def test_what_is_in_no_table_rounds_like_bfloat16() -> None:
    for table in (guard.RATIO_TOLERANCE, guard.DRIFT_TOLERANCE, guard.SCORE_TOLERANCE):
        assert guard.tolerated(table, torch.float16) == guard.tolerated(table, torch.bfloat16) > table[torch.float32]


def test_a_policy_that_is_not_the_reference(world: Pretrained) -> None:
    players = roles(world, likes(world))
    with torch.no_grad():
        for parameter in players.policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    with pytest.raises(MannersError, match=r"KL to the start version is .* before any training"):
        guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)


class Neighbourly(Likes):
    """A member whose score depends on who else is in the batch."""

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        return super().scores(states, batch) + 0.05 * len(batch.ids)


class Indifferent(Likes):
    """A member that scores everything alike."""

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        return torch.ones(len(batch.ids))


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (Neighbourly, r"score changes by 1\.1 units with the batch"),
        (Indifferent, "every response has the same score"),
    ],
)
def test_a_reward_that_cannot_be_used(world: Pretrained, member: type[Likes], says: str) -> None:
    players = roles(world, RewardModel((member(world.trunk),), (0.0,), (1.0,)))
    with pytest.raises(MannersError, match=says):
        guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)


def test_a_pad_token_that_ends_turns(world: Pretrained) -> None:
    renderer = Renderer(world.tokenizer, END_IDS, 256)
    renderer.pad_id = min(END_IDS)
    players = roles(replace(world, renderer=renderer), likes(world))
    with pytest.raises(MannersError, match="pad token also ends turns"):
        guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)


def test_scores_that_are_not_finite_are_named(world: Pretrained) -> None:
    rollout = rolled_out(roles(world, likes(world)))
    guard.check_scores(rollout, 3)
    scores = rollout.scores.clone()
    scores[[2, 5]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(guard.Unsound, match=r"reward is not finite at update 3, episodes \[2, 5\] of the batch"):
        guard.check_scores(replace(rollout, scores=scores), 3)


# What the curves show, oldest first: a run in which all is well, and one sign at a time.
WELL: Metrics = {
    "objective/kl": 1.0,
    "val/explained_variance": 0.3,
    "response/distinct_2": 0.8,
    "response/most_common": 0.05,
    "response/length": 20.0,
    "response/finished": 0.8,
    "response/retokenised": 0.1,
}


def run_of(*points: Metrics) -> list[Metrics]:
    return [
        {"validate/mean": 0.0, "validate/pessimistic": 0.0, "validate/forgotten": 0.0},
        WELL,
        *(WELL | point for point in points),
    ]


def warnings(*points: Metrics, warned: Sequence[Warned] = ()) -> list[tuple[str, Act]]:
    history = run_of(*points)
    return [(w.sign, w.act) for w in guard.look(history, len(history) - 1, warned, PPOSettings(kl_stop=10.0))]


@pytest.mark.parametrize("length", range(6))
def test_nothing_is_said_while_all_is_well(length: int) -> None:
    assert warnings(*[WELL] * length) == []


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"val/explained_variance": -5.1}, ("value", Act.HALVE)),
        ({"response/distinct_2": 0.079}, ("collapse", Act.STOP)),
        ({"response/most_common": 0.51}, ("collapse", Act.STOP)),
        ({"response/length": 40.1}, ("length", Act.HALVE)),
        ({"response/length": 9.9}, ("length", Act.HALVE)),
        ({"response/length": 30.0, "response/finished": 0.39}, ("length", Act.HALVE)),
        ({"response/retokenised": 0.31}, ("retokenised", Act.GO_ON)),
    ],
)
def test_a_sign_must_last(point: Metrics, expected: tuple[str, Act]) -> None:
    assert warnings(*[point] * 2) == []
    assert warnings(point, WELL, point, point) == []
    assert warnings(*[point] * 3) == [expected]


@pytest.mark.parametrize(
    "point",
    [
        {"val/explained_variance": -4.9},
        {"response/distinct_2": 0.081},
        {"response/most_common": 0.5},
        {"response/length": 39.9},
        {"response/length": 10.1},
        {"response/length": 30.0, "response/finished": 0.41},
        {"response/retokenised": 0.3},
    ],
)
def test_and_pass_its_limit(point: Metrics) -> None:
    assert warnings(*[point] * 5) == []


def test_where_next_to_none_ended_at_the_start_none_is_no_sign() -> None:
    begun, now = WELL | {"response/finished": 0.19}, WELL | {"response/finished": 0.0}
    history = [begun, now, now, now]
    assert guard.look(history, 4, [], PPOSettings()) == ()
    history[0] = WELL | {"response/finished": 0.2}
    assert [w.sign for w in guard.look(history, 4, [], PPOSettings())] == ["length"]


@pytest.mark.parametrize(("kl", "stops"), [(9.9, False), (-0.1, False), (10.1, True), (float("nan"), True)])
def test_a_kl_too_far_stops_at_once(kl: float, stops: bool) -> None:
    assert warnings({"objective/kl": kl}) == ([("kl", Act.STOP)] if stops else [])
    assert guard.kl_runaway({"objective/kl": 10.1}, 10, 20) == (
        "KL to the start version reached 10.1 nats per response, above ppo.kl_stop = 10"
    )


@pytest.mark.parametrize(("length", "allowed"), [(8.0, 10), (32.0, 10), (64.0, 20), (256.0, 80)])
def test_longer_answers_may_go_further(length: float, allowed: float) -> None:
    assert guard.kl_runaway({"objective/kl": allowed - 0.1}, 10, length) is None
    said = guard.kl_runaway({"objective/kl": allowed + 0.1}, 10, length)
    assert said is not None and said.startswith(f"KL to the start version reached {allowed + 0.1:.1f} nats")
    assert (f"which is {allowed:.1f} for answers of {length:.0f} tokens" in said) == (length > 32)
    # It is the length at the start that counts: who has drifted to longer answers may not go further for it.
    drifted = {"objective/kl": 10.1, "response/length": length}
    assert warnings(drifted) == [("kl", Act.STOP)]


@pytest.mark.parametrize(
    ("mean", "pessimistic", "stops"),
    [(0.6, 0.2, True), (0.6, 0.35, False), (0.45, 0.2, False), (0.2, 0.1, False), (0.9, 0.9, False)],
)
def test_over_optimisation_is_a_mean_that_rises_while_the_least_convinced_falls(
    mean: float, pessimistic: float, stops: bool
) -> None:
    good = {"validate/mean": 0.4, "validate/pessimistic": 0.4, "validate/forgotten": 0.0}
    now = {"validate/mean": mean, "validate/pessimistic": pessimistic, "validate/forgotten": 0.0}
    assert warnings(good, WELL, now, WELL) == ([("over-optimisation", Act.STOP)] if stops else [])


@pytest.mark.parametrize(("forgotten", "halves"), [(0.03, False), (0.031, True), (-0.5, False)])
def test_forgetting_is_perplexity_past_its_limit_at_the_last_validation(forgotten: float, halves: bool) -> None:
    then = {"validate/mean": 0.0, "validate/pessimistic": 0.0, "validate/forgotten": 0.2}
    assert warnings(then, then | {"validate/forgotten": forgotten}, WELL) == (
        [("forgetting", Act.HALVE)] if halves else []
    )


@pytest.mark.parametrize(
    ("validations", "halved"), [((2, 9), [3, 10]), ((2, 3), [3, 6]), ((2, 4, 8), [3, 6, 9]), ((2,), [3])]
)
def test_one_measurement_of_forgetting_halves_the_step_once(validations: tuple[int, ...], halved: list[int]) -> None:
    worse: Metrics = {"validate/mean": 0.0, "validate/pessimistic": 0.0, "validate/forgotten": 0.2}
    warned: list[Warned] = []
    for update in range(2, 16):
        history = run_of(*(worse if number in validations else {} for number in range(2, update)), {})
        assert len(history) == update + 1, "the start, and every update"
        warned += guard.look(history, update, warned, PPOSettings())
    assert [(w.sign, w.update) for w in warned] == [("forgetting", update) for update in halved]


def test_what_lasts_is_acted_upon_again_but_not_every_time() -> None:
    long = {"response/length": 50.0}
    warned: list[Warned] = []
    for update in range(1, 9):
        warned += guard.look(run_of(*[long] * update), update + 1, warned, PPOSettings(kl_stop=10.0))
    assert [w.update for w in warned] == [4, 7]
    assert str(warned[0]) == ("update 4: responses have drifted to 50 tokens from 20 at the start; the step was halved")


def test_a_first_ratio_off_one_is_named() -> None:
    guard.check_first_ratio(0.079, 4, torch.float32)
    guard.check_first_ratio(0.19, 4, torch.bfloat16)
    for deviation, dtype in ((0.081, torch.float32), (0.21, torch.bfloat16), (torch.nan, torch.bfloat16)):
        says = rf"before the first step of update 4 one ratio in a hundred is off 1 by {deviation:.2g} or more"
        with pytest.raises(guard.Unsound, match=says):
            guard.check_first_ratio(deviation, 4, dtype)
