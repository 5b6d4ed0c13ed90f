"""What stops a run before it wastes hours, or slows it down: checks at start-up, and warnings after every rollout.

A warning is a pure function of the curves so far: a sentence, or None. What is done about it is a rule, the same for
every run: the step is halved, again every PATIENCE updates as long as it lasts, or the run stops, or it goes on; for
forgetting, which is measured now and then, once a measurement. The best version is kept in any case, and the report
says what happened and when.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from manners import ranks
from manners.errors import MannersError
from manners.ppo.course import Roles
from manners.ppo.curves import RETOKENISED, Metrics, most_and_all
from manners.ppo.rollout import Rollout, micro_batches, sliced
from manners.settings import PPOSettings
from manners.text import collate

RATIO_TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.05}
"""99th percentile of |ratio - 1| before the first step that rounding explains: the same policy and the same forward, on
rows in other company. In float32 it comes to 1e-5; in bfloat16 to 0.03 for the default model."""
FAR_OFF = 4
"""Times the tolerance beyond which a run stops also later on: in bfloat16 that is the clip."""
DRIFT_TOLERANCE = {torch.float32: 0.005, torch.bfloat16: 0.1}
"""Mean |log ratio| between drawing and training that rounding explains, in nats a token. In float32 it comes to 1e-5;
in bfloat16, on a processor without arithmetic for it, to 0.03 for the default model."""
SCORE_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.25}
"""Largest change of a score, in units of the reward, from other neighbours in the batch; in bfloat16 rounding comes to
0.1."""
KL_TOLERANCE = 0.02
"""Largest KL to the start version before any training, in nats a token: both go through the same forward."""

PATIENCE = 3
"""Updates in a row that must show a sign, where one batch alone may show it by chance."""
VALUE_FLOOR = -5.0
"""Explained variance below which the baseline makes advantages worse, not better: its errors have six times the
variance of what it predicts. Between 0 and this, early values and small returns go up and down harmlessly."""
COLLAPSED_SHARE = 0.1
"""Of the start version's distinct-2. A policy that learns a manner of speaking keeps a half; one that says a handful of
things to everyone keeps less than this."""
SAME_ANSWER = 0.5
"""Share of a batch that is the same response, token for token."""
OTHER_TOKENS = 0.2
"""Rise of the share of responses that are read in other tokens than were drawn that other words do not explain."""
LENGTH_FACTOR = 2.0
"""Times longer or shorter than the answers at the start, or times fewer that end by themselves: more than a taste for
brevity explains. The last is what is left to see where the limit leaves no room to become twice as long."""
FINISHED_FLOOR = 0.2
"""Share of the answers at the start that must end by themselves for fewer to be a sign: of next to none, a batch has
none by chance."""
KL_STOP_TOKENS = 32
"""Length of the answers that `ppo.kl_stop` is meant for; longer ones may go further, in proportion."""
OVER_OPTIMISED = 0.16
"""Fall of the score that versions are judged by, and rise of the mean, in units of the reward;
on the same prompts with the same random numbers, less than this is noise."""


class Unsound(MannersError):
    """Numbers of a run that cannot be learnt from: not finite, or of another distribution than the policy's."""


class Act(StrEnum):
    """What is done about a warning."""

    HALVE = "the step was halved"
    STOP = "the run was stopped"
    GO_ON = "the run went on"


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning that was acted upon."""

    update: int
    sign: str
    act: Act
    sentence: str

    def __str__(self) -> str:
        """What happened, when, and what was done."""
        return f"update {self.update}: {self.sentence}; {self.act}"


@torch.no_grad()
def check_first_rollout(
    rollout: Rollout, roles: Roles, temperature: float, from_reference: bool = True
) -> dict[str, float]:
    """Prove on the first batch that what is sampled from is what is scored, or stop and say what is wrong.

    Drift 0: the training forward gives the drawn tokens the log-probabilities that they were drawn with. Ratio 1: and
    gives them again in other company. KL 0: so does the reference, where the policy begins as that (`from_reference`).
    Scores do not depend on the batch or its padding, and differ between responses. The pad id ends nothing.
    """
    policy, reference = roles.policy, roles.reference
    pretrained = roles.pretrained
    dtype = pretrained.trunk.whole.dtype
    rows = micro_batches(rollout.batch, range(0, len(rollout.draws.finish), 2))[0]
    states, batch = sliced(rollout.states, rollout.batch, rows)
    width = batch.keep.shape[1]
    trained, initial = (b.logprobs(b.hidden(states, batch), batch, temperature) for b in (policy, reference))
    drift = float((trained - rollout.draws.logprobs[rows, :width])[batch.keep].abs().mean())
    if not drift <= tolerated(DRIFT_TOLERANCE, dtype):
        raise MannersError(
            f"start-up check failed: the log-probability of a drawn token is off by {drift:.2g} nats in the training"
            " forward, on average; sampling and scoring use different distributions or padding, so PPO would not learn"
        )
    ratio, largest = most_and_all(((trained - rollout.logprobs[rows, :width]).exp() - 1)[batch.keep].abs())
    if not ratio <= tolerated(RATIO_TOLERANCE, dtype):
        raise MannersError(
            f"start-up check failed: before any step one ratio in a hundred is off 1 by {ratio:.2g} or more; a token's"
            " probability depends on the other rows of its batch, so PPO would not learn"
        )
    kl = float((trained - initial)[batch.keep].mean())
    if from_reference and not abs(kl) <= KL_TOLERANCE:
        raise MannersError(
            f"start-up check failed: KL to the start version is {kl:.2g} nats a token before any training; start the"
            " policy from the reference"
        )
    alone = collate([rollout.draws.rendered[rows[0]]], pretrained.renderer.pad_id).to(pretrained.trunk.device)
    single = roles.reward.score(pretrained.trunk.states(alone), alone).mean
    change = float((single - rollout.scored.mean[rows[0]]).abs().max())
    if not change <= tolerated(SCORE_TOLERANCE, dtype):
        raise MannersError(
            f"start-up check failed: a response's score changes by {change:.2g} units with the batch it"
            " is in; the reward model's masks are wrong for this model"
        )
    if float(rollout.scored.mean.std()) == 0.0:
        raise MannersError("start-up check failed: every response has the same score; train the reward model again")
    if pretrained.renderer.pad_id in pretrained.renderer.end_ids:
        raise MannersError(
            "start-up check failed: the pad token also ends turns; give the tokenizer a pad token of its own"
        )
    return {
        "check/drift": drift,
        "check/ratio": ratio,
        "check/ratio_max": largest,
        "check/kl": kl,
        "check/score": change,
    }


def tolerated(table: Mapping[torch.dtype, float], dtype: torch.dtype) -> float:
    """Return what rounding explains in a dtype; what is not in the table rounds like bfloat16."""
    return table.get(dtype, table[torch.bfloat16])


def check_scores(rollout: Rollout, update: int) -> None:
    """Raise Unsound naming the episodes whose score is NaN or infinite."""
    bad = [row for row, score in enumerate(rollout.scores.tolist()) if not math.isfinite(score)]
    if bad:
        raise Unsound(
            f"the reward is not finite at update {update}, episodes {bad[:8]} of the batch; score their responses with"
            " `manners score`, and train the reward model again"
        )


def check_drift(rollout: Rollout, update: int, dtype: torch.dtype) -> None:
    """Raise Unsound where drawing and the training forward of one policy have come apart."""
    drift = ranks.agreed(float(rollout.drift[rollout.batch.keep].abs().mean()))
    if not drift <= FAR_OFF * tolerated(DRIFT_TOLERANCE, dtype):
        raise Unsound(
            f"the log-probability of a drawn token is off by {drift:.2g} nats in the training forward of update"
            f" {update}, on average; sampling and scoring have drifted apart, so PPO would not learn"
        )


def check_first_ratio(deviation: float, update: int, dtype: torch.dtype) -> None:
    """Raise Unsound where the policy is not what it was when the ratios of an update were set to 1.

    `deviation` is the 99th percentile of |ratio - 1| in its first minibatch, before its step.
    """
    if not deviation <= FAR_OFF * tolerated(RATIO_TOLERANCE, dtype):
        raise Unsound(
            f"before the first step of update {update} one ratio in a hundred is off 1 by {deviation:.2g} or more;"
            " the policy is not the one that was measured, so PPO would not learn"
        )


def look(
    history: Sequence[Metrics], update: int, warned: Sequence[Warned], settings: PPOSettings
) -> tuple[Warned, ...]:
    """Return what the curves so far give reason to do at this update, other than what was done of late.

    `history` is every point of the curves, oldest first, and last the rollout at hand, that is not yet optimised on.
    """
    rollouts = [point for point in history if "objective/kl" in point]
    validated = [point for point in history if "validate/mean" in point]
    # One measurement halves once: what counts was measured behind the update of the last warning, or later.
    heeded = max((w.update for w in warned if w.sign == "forgetting"), default=0)
    measured = [point for point in history[heeded - update - 1 :] if "validate/mean" in point]
    signs = (
        ("kl", Act.STOP, kl_runaway(rollouts[-1], settings.kl_stop, rollouts[0]["response/length"])),
        ("collapse", Act.STOP, collapse(rollouts)),
        ("over-optimisation", Act.STOP, over_optimisation(validated)),
        ("value", Act.HALVE, value_divergence(rollouts)),
        ("length", Act.HALVE, length_drift(rollouts)),
        ("forgetting", Act.HALVE, forgetting(measured, settings.forgetting_limit)),
        ("retokenised", Act.GO_ON, other_tokens(rollouts)),
    )
    lately = {w.sign for w in warned if update - w.update < PATIENCE}
    return tuple(Warned(update, sign, act, text) for sign, act, text in signs if text and sign not in lately)


def kl_runaway(rollout: Metrics, limit: float, length: float, setting: str = "ppo.kl_stop") -> str | None:
    """Say that a rollout's KL, in nats per response, is past its limit, or not a number.

    A KL is a sum over tokens: the limit holds for answers of up to KL_STOP_TOKENS, and grows in proportion with
    `length`, that at the start, in tokens. By the length of those now, who babbles could go further.
    """
    kl = rollout["objective/kl"]
    allowed = limit * max(1.0, length / KL_STOP_TOKENS)
    if kl <= allowed:
        return None
    stretched = f", which is {allowed:.1f} for answers of {length:.0f} tokens" if allowed > limit else ""
    return f"KL to the start version reached {kl:.1f} nats per response, above {setting} = {limit:g}{stretched}"


def value_divergence(rollouts: Sequence[Metrics]) -> str | None:
    """Say that the value function has long been worse than none."""
    explained = [point["val/explained_variance"] for point in rollouts[-PATIENCE:]]
    if len(explained) < PATIENCE or max(explained) >= VALUE_FLOOR:
        return None
    return (
        f"the value function explains {explained[-1]:.3g} of the variance of the returns, and less than {VALUE_FLOOR:g}"
        f" for {PATIENCE} updates"
    )


def collapse(rollouts: Sequence[Metrics]) -> str | None:
    """Say that the policy repeats itself: few different token pairs, or the same answer to most prompts."""
    first = rollouts[0]
    recent = rollouts[-PATIENCE:]
    if len(rollouts) <= PATIENCE:
        return None
    floor = COLLAPSED_SHARE * first["response/distinct_2"]
    if max(point["response/distinct_2"] for point in recent) < floor:
        now = recent[-1]["response/distinct_2"]
        return f"responses collapsed: distinct-2 is {now:.2g} after {first['response/distinct_2']:.2g} at the start"
    if min(point["response/most_common"] for point in recent) > SAME_ANSWER >= first["response/most_common"]:
        return f"responses collapsed: {recent[-1]['response/most_common']:.0%} of a batch are the same answer"
    return None


def length_drift(rollouts: Sequence[Metrics]) -> str | None:
    """Say that responses have become much longer or shorter than at the start, or run into the limit far more often."""
    first, ended = (rollouts[0][name] for name in ("response/length", "response/finished"))
    recent = [point["response/length"] for point in rollouts[-PATIENCE:]]
    finished = [point["response/finished"] for point in rollouts[-PATIENCE:]]
    long = min(recent) > LENGTH_FACTOR * first
    short = max(recent) < first / LENGTH_FACTOR
    if len(rollouts) <= PATIENCE:
        return None
    if long or short:
        return f"responses have drifted to {recent[-1]:.3g} tokens from {first:.3g} at the start"
    if ended >= FINISHED_FLOOR and max(finished) < ended / LENGTH_FACTOR:
        return f"only {finished[-1]:.0%} of the responses end by themselves, of {ended:.0%} at the start"
    return None


def other_tokens(rollouts: Sequence[Metrics]) -> str | None:
    """Say that many more responses than at the start are read in other tokens than were drawn."""
    shares = [point[RETOKENISED] for point in rollouts if RETOKENISED in point]  # older points of a curve have none
    if len(shares) <= PATIENCE or min(shares[-PATIENCE:]) <= shares[0] + OTHER_TOKENS:
        return None
    return (
        f"{shares[-1]:.0%} of the responses are read in other tokens than were drawn, after {shares[0]:.0%} at the"
        " start: the reward may be for how they are spelt, which no reader sees"
    )


def forgetting(validated: Sequence[Metrics], limit: float) -> str | None:
    """Say that the version validated last, if any, predicts plain text too much worse than the initial model does."""
    if not validated or validated[-1]["validate/forgotten"] <= limit:
        return None
    return (
        f"perplexity on plain text rose by {validated[-1]['validate/forgotten']:.1%}, above ppo.forgetting_limit ="
        f" {limit:g}, so this version is not kept"
    )


def over_optimisation(validated: Sequence[Metrics]) -> str | None:
    """Say that what is gained is of the reward only: the member that judges versions loses while the mean gains.

    Measured from the validation at which its score was best. Source: Gao et al. 2022; Coste et al. 2023.
    """
    if not validated:
        return None
    best = max(validated, key=lambda point: point["validate/pessimistic"])
    now = validated[-1]
    lost = best["validate/pessimistic"] - now["validate/pessimistic"]
    gained = now["validate/mean"] - best["validate/mean"]
    if lost <= OVER_OPTIMISED or gained <= OVER_OPTIMISED:
        return None
    return (
        f"over-optimisation: on the validation prompts the mean score rose by {gained:.2f} units while"
        f" that of the member that judges versions fell by {lost:.2f}"
    )
