"""How far a policy has gone from the reference, by answers that it draws now: verdicts say nothing of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from manners.errors import MannersError
from manners.models.branches import Branch
from manners.models.generate import Decoding, Generated, generate
from manners.models.pretrained import Pretrained
from manners.ppo.guard import DRIFT_TOLERANCE, KL_TOLERANCE, kl_runaway, tolerated
from manners.ppo.rollout import measure
from manners.settings import SampleSettings
from manners.types import FinishReason

ANSWERS = 2
"""To each prompt of a look."""


@dataclass(frozen=True)
class Look:
    """What a policy answers after so many steps; a value a prompt, always with the same random numbers."""

    step: int
    kl: tuple[float, ...]
    """Estimate of KL(policy || reference) by k1, in nats per response."""
    lengths: tuple[float, ...]
    """In tokens."""
    finished: float
    """Share of the answers that it ended itself."""


@dataclass(frozen=True)
class Watch:
    """Who is asked what."""

    reference: Branch
    pretrained: Pretrained
    prompts: Sequence[tuple[int, ...]]
    sample: SampleSettings
    seed: int

    @torch.no_grad()
    def look(self, step: int, policy: Branch) -> Look:
        """Draw answers to all prompts, and measure them; at step 0 the policy has to be the reference.

        Raises MannersError at step 0 where what is sampled from is not what is scored, or KL is not 0.
        """
        asked = [prompt for prompt in self.prompts for _ in range(ANSWERS)]
        generator = torch.Generator().manual_seed(self.seed + 1)
        uniform = torch.rand((len(asked), self.sample.max_new_tokens), generator=generator, dtype=torch.float64)
        trunk, renderer = self.pretrained.trunk, self.pretrained.renderer
        draws = generate(
            policy.assembled(trunk),
            trunk,
            asked,
            uniform.to(trunk.compute.uniform),
            Decoding.of(renderer, self.sample, want_states=True),
        )
        renderer.finishes.look(draws.finish, self.sample.max_new_tokens)
        _, (own, reference), _ = measure(draws, None, (policy, self.reference), self.sample.temperature)
        if step == 0:
            self._check(draws, own, reference)
        kl = (own - reference).sum(dim=1)
        lengths = draws.batch.keep.sum(dim=1).float()
        by_prompt = [x.view(len(self.prompts), -1).mean(dim=1).tolist() for x in (kl, lengths)]
        finished = mean(float(f is not FinishReason.LENGTH) for f in draws.finish)
        return Look(step, tuple(by_prompt[0]), tuple(by_prompt[1]), finished)

    def _check(self, draws: Generated, own: torch.Tensor, reference: torch.Tensor) -> None:
        """Prove before any step that what is sampled from is what is scored, and that KL is 0."""
        keep, dtype = draws.batch.keep, self.pretrained.trunk.whole.dtype
        drift = float((own - draws.logprobs)[keep].abs().mean())
        if not drift <= tolerated(DRIFT_TOLERANCE, dtype):
            raise MannersError(
                f"start-up check failed: the log-probability of a drawn token is off by {drift:.2g} nats in the"
                " training forward, on average; sampling and scoring use different distributions or padding"
            )
        kl = float((own - reference)[keep].mean())
        if not abs(kl) <= KL_TOLERANCE:
            raise MannersError(
                f"start-up check failed: KL to the reference is {kl:.2g} nats a token before any training; start the"
                " policy from the reference"
            )


def too_far(now: Look, first: Look, limit: float) -> str | None:
    """Say that the KL is past its limit, which grows with the length of the answers at the start as in PPO."""
    return kl_runaway({"objective/kl": mean(now.kl)}, limit, mean(first.lengths), "dpo.kl_stop")
