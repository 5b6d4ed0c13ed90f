"""What direct preference optimisation found out, as `manners.results` holds it of the other stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manners.facts import NULL
from manners.results import Learnt
from manners.types import Interval


@dataclass(frozen=True, kw_only=True)
class DirectResult(Learnt):
    """A policy that DPO trained, measured on the pairs set aside by its implicit reward.

    That is beta log(p / p_ref) of a response: what the policy would be the best one for.
    """

    method: str | None = None
    """`dpo`."""
    begun_as: str | None = None
    """The version that the policy began as, which is its reference."""
    tokens: int | None = None
    """Tokens that the policy has learnt from, of all passes: of each distinct response, and of its prompt once where
    responses share it."""
    loss_before: float | None = None
    """On the pairs set aside, in nats a verdict: log 2, since the policy begins as its reference."""
    loss_after: float | None = None
    reward_chosen: float | None = None
    """Mean implicit reward of the sides that verdicts set aside chose, in log-odds: below 0 they have become less
    likely, though less so than the others."""
    reward_rejected: float | None = None
    """The same of the other sides."""
    prompts: int | None = None
    """Prompts that the policy was looked at with."""
    prompts_set_aside: bool | None = None
    """Whether these are of pairs set aside, since there are none for validation."""
    kl: Interval | None = None
    """Of the policy to its reference, by fresh answers, in nats per response."""
    kl_by_step: Mapping[str, float] | None = None
    """Its estimate at every look."""
    length_before: float | None = None
    """Of fresh answers, in tokens."""
    length_after: float | None = None
    length_change: Interval | None = None
    finished_before: float | None = None
    """Share of fresh answers that the version ended itself."""
    finished_after: float | None = None
    stopped: str | None = field(default=None, metadata=NULL)
    """Why the run ended early; null where it did not."""
