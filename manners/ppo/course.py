"""What stays the same from update to update of PPO: settings, who plays what, and what is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from manners.models.branches import Branch
from manners.models.perplexity import PlainText
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings, SampleSettings
from manners.text import Batch

if TYPE_CHECKING:  # what draws knows the roles
    from manners.ppo.rollout import Drawer

ValueFunction = Callable[[States, Float[Tensor, "B T1 D"], Batch], Float[Tensor, "B T"]]
"""Values from trunk states and from the policy's hidden states: a shared head reads these, a separate branch those."""


@dataclass(frozen=True)
class Roles:
    """Who plays what in PPO; all of them stand on the trunk of `pretrained`."""

    policy: Branch
    reference: Branch
    """The start version, which the KL penalty is measured against."""
    value: ValueFunction
    reward: RewardModel
    pretrained: Pretrained


@dataclass(frozen=True)
class Material:
    """What PPO reads: token ids of prompts, and paragraphs of plain text."""

    prompts: Sequence[tuple[int, ...]]
    validation: Sequence[tuple[int, ...]]
    """Prompts by which the version is chosen that is kept."""
    prose: Sequence[str]
    """What the policy is held to (`ppo.prose_coefficient`), or learns again (`ppo.ptx_coefficient`)."""
    validation_prose: Sequence[str]
    """What forgetting is measured on."""


def updates_over(ppo: PPOSettings, prompts: int) -> int:
    """Return the updates of a run on so many training prompts: one at least, however many responses it takes."""
    if ppo.updates is not None:
        return ppo.updates
    wanted = math.ceil(ppo.passes * prompts / ppo.batch)
    return max(1, min(wanted, ppo.most_episodes // ppo.batch))


@dataclass(frozen=True)
class Course:
    """A run's settings, roles and material."""

    settings: PPOSettings
    updates: int
    """How many there will be."""
    from_reference: bool
    """Whether the policy begins as the reference, and not as a version that was promoted since."""
    sample: SampleSettings
    seed: int
    roles: Roles
    material: Material
    prose: PlainText
    """What the policy is held to, read by the start version."""
    unseen: PlainText
    """What forgetting is measured on, read by the initial model."""
    drawer: Drawer | None = None
    """What draws responses in other processes; None draws them here."""
