"""Checks that stop a run before it wastes hours: at start-up, and after every rollout."""

from __future__ import annotations

import math

import torch

from manners.errors import MannersError
from manners.ppo.rollout import Roles, Rollout, micro_batches, sliced
from manners.text import collate

RATIO_TOLERANCE = 0.02
"""Largest |ratio - 1| between drawing and training that rounding explains (float32: about 1e-4)."""
SCORE_TOLERANCE = 0.01
"""Largest change of a score, in standard deviations, from other neighbours in the batch."""


class NotFinite(MannersError):
    """A reward, loss or gradient became NaN or infinite; the message names update and episodes."""


@torch.no_grad()
def check_first_rollout(rollout: Rollout, roles: Roles, temperature: float) -> dict[str, float]:
    """Prove on the first batch that what is sampled from is what is scored, or stop and say what is wrong.

    Ratio 1: the training forward gives the drawn tokens the log-probabilities that they were drawn with. KL 0: so does
    the reference, when the policy is still the initial model. Scores do not depend on the batch or its padding, and
    differ between responses. The pad id ends nothing.
    """
    policy, reference, pretrained = roles.policy, roles.reference, roles.pretrained
    rows = micro_batches(rollout.batch, range(len(rollout.draws.finish)))[0]
    states, batch = sliced(rollout.states, rollout.batch, rows)
    width = batch.keep.shape[1]
    drawn = rollout.draws.logprobs[rows, :width]
    trained = policy.logprobs(policy.hidden(states, batch), batch, temperature)
    ratio = float(((trained - drawn).exp() - 1)[batch.keep].abs().max())
    if not ratio <= RATIO_TOLERANCE:
        raise MannersError(
            f"start-up check failed: the probability of a drawn token is off by {ratio:.2g} in the training forward"
            " (ratio should be 1); sampling and scoring use different distributions or padding, so PPO would not learn"
        )
    initial = reference.logprobs(reference.hidden(states, batch), batch, temperature)
    kl = float((trained - initial)[batch.keep].mean())
    if not abs(kl) <= RATIO_TOLERANCE:
        raise MannersError(
            f"start-up check failed: KL to the initial model is {kl:.2g} nats a token before any training; start the"
            " policy from the reference"
        )
    alone = collate([rollout.draws.rendered[rows[0]]], pretrained.renderer.pad_id).to(pretrained.trunk.device)
    single = roles.reward.score(pretrained.trunk.states(alone), alone).mean
    change = float((single - rollout.scored.mean[rows[0]]).abs().max())
    if not change <= SCORE_TOLERANCE:
        raise MannersError(
            f"start-up check failed: a response's score changes by {change:.2g} standard deviations with the batch it"
            " is in; the reward model's masks are wrong for this model"
        )
    if float(rollout.scored.mean.std()) == 0.0:
        raise MannersError("start-up check failed: every response has the same score; train the reward model again")
    if pretrained.renderer.pad_id in pretrained.renderer.end_ids:
        raise MannersError(
            "start-up check failed: the pad token also ends turns; give the tokenizer a pad token of its own"
        )
    return {"check/ratio": ratio, "check/kl": kl, "check/score": change}


def check_scores(rollout: Rollout, update: int) -> None:
    """Raise NotFinite naming the episodes whose score is NaN or infinite."""
    bad = [row for row, score in enumerate(rollout.scores.tolist()) if not math.isfinite(score)]
    if bad:
        raise NotFinite(
            f"the reward is not finite at update {update}, episodes {bad[:8]} of the batch; score their responses with"
            " `manners score`, and train the reward model again"
        )


def stop_reason(kl: float, limit: float) -> str | None:
    """Say why a run should stop after a rollout with this KL (nats per response), or None."""
    if not kl <= limit:
        return f"KL to the initial model reached {kl:.1f} nats per response, above ppo.kl_stop = {limit:g}"
    return None
