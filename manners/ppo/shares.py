"""Responses drawn by several processes that train as one: each draws its share, and all have all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from manners import ranks
from manners.models.branches import Branch
from manners.models.generate import Generated
from manners.models.pretrained import Pretrained
from manners.ppo.course import Roles
from manners.ppo.rollout import Drawer, Drawn, draw
from manners.reward.ensemble import Scored
from manners.settings import SampleSettings
from manners.text import Batch, Rendered
from manners.types import FinishReason


def sharing(roles: Roles, sample: SampleSettings) -> Drawer | None:
    """Return what draws in shares: a row's outcome hangs on its own random numbers, not on who draws it; None alone."""
    if ranks.count() == 1:
        return None
    pretrained = roles.pretrained

    def shared(
        policy: Branch,
        prompts: Sequence[tuple[int, ...]],
        uniform: Float[Tensor, "B T"],
        on_step: Callable[[int], None],
    ) -> Drawn:
        at, shares = ranks.place(), ranks.divided(len(prompts), ranks.count())
        mine = []
        if at.number < len(shares):
            of = slice(shares[at.number].start, shares[at.number].stop)
            mine.append(
                draw(policy, roles.reference, roles.reward, pretrained, sample, prompts[of], uniform[of], on_step)
            )
        parts = [drawn(fields, pretrained) for fields in ranks.all_of([plain(one) for one in mine])]
        return Drawn.together(parts, pretrained, {})

    return shared


def plain(one: Drawn) -> dict[str, Any]:
    """Return what was drawn as tensors and Python's own types: what may go to another process."""
    draws, batch = one.draws, one.draws.batch
    return {
        "rendered": [(r.prompt_ids, r.response_ids, r.dropped) for r in draws.rendered],
        "finish": [str(reason) for reason in draws.finish],
        "batch": (batch.ids, batch.attend, batch.prompt_width, batch.common),
        "logprobs": draws.logprobs,
        "states": None if draws.states is None else draws.states.contiguous(),
        "members": one.scored.members,
        "camps": one.scored.camps,
        "ref_logprobs": one.ref_logprobs,
    }


def drawn(fields: dict[str, Any], pretrained: Pretrained) -> Drawn:
    """Return what `plain` was made from, on the device of the model."""
    device = pretrained.trunk.device
    ids, attend, prompt_width, common = fields["batch"]
    draws = Generated(
        tuple(Rendered(*one) for one in fields["rendered"]),
        tuple(map(FinishReason, fields["finish"])),
        Batch(ids, attend, prompt_width, common).to(device),
        fields["logprobs"].to(device),
        fields["states"].to(device),
    )
    camps = fields["camps"]
    scored = Scored(fields["members"].to(device), camps=None if camps is None else camps.to(device))
    return Drawn(draws, scored, fields["ref_logprobs"].to(device))
