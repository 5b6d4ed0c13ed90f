"""What a worker does: load the initial model and the roles beside the policy, take weights, draw and score a share.

Nothing here knows Ray: an actor is an object of this class in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

import manners
from manners.models import versions, weight_files
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.models.whole import load
from manners.ppo.rollout import Drawn, draw
from manners.reward import stored
from manners.reward.ensemble import Scored
from manners.scale.handover import Held, Parcel, held, unpack
from manners.settings import ModelSettings, SampleSettings
from manners.text import Rendered
from manners.workspace import Workspace


@dataclass(frozen=True)
class Parts:
    """Where a worker finds what stays the same in a run."""

    root: Path
    """The workspace, where a worker sees it: on other machines under the same path."""
    model: ModelSettings
    sample: SampleSettings
    start: str
    """The version that is the reference."""
    reward: str
    """The version of the reward model."""
    lays_out: bool
    """Whether weights are laid out for decoding, as in the trainer (`Session.lay_out`)."""


@dataclass(frozen=True)
class Kin:
    """By what trainer and worker know that they are of one make."""

    manners: str
    torch: str
    model: str
    """Hash of the initial model and its cut."""
    template: str
    reward: str
    """Hash of the files of the reward model, whose scores nothing looks at once they are there."""
    start: str
    """Hash of those of the version that is the reference."""

    @classmethod
    def of(cls, pretrained: Pretrained, parts: Parts) -> Kin:
        """Describe this process, and what it finds in the workspace."""
        workspace = Workspace.look_at(parts.root)
        return cls(
            manners.__version__,
            torch.__version__,
            pretrained.trunk.initial_hash,
            pretrained.renderer.template_hash,
            weight_files.digest(workspace, parts.reward),
            weight_files.digest(workspace, parts.start),
        )

    def unlike(self, other: Kin) -> str:
        """Name what another differs in, with both; empty where it does in nothing."""
        pairs = ((name, mine, getattr(other, name)) for name, mine in vars(self).items())
        return ", ".join(f"{name} {theirs[:20]} and here {mine[:20]}" for name, mine, theirs in pairs if mine != theirs)


@dataclass(frozen=True)
class Share:
    """What a worker has drawn."""

    number: int
    """Of the hand-over whose weights it was drawn with."""
    drawn: Drawn


class Worker:
    """Draws and scores with the weights that it was given last."""

    def __init__(self, parts: Parts, threads: int) -> None:
        """Take note; the model is loaded by `begin`, whose exception can be told from a death."""
        self.parts = parts
        self.threads = threads
        self.number = 0

    def begin(self) -> Kin:
        """Load the model and the roles; raises MannersError where the workspace or a version is not there."""
        torch.set_num_threads(self.threads)
        parts = self.parts
        workspace = Workspace.look_at(parts.root)
        loaded = load(parts.model, workspace)
        can = loaded.trunk.compute.layout_gain is not None  # this processor, whatever the trainer's
        self.pretrained = loaded.laid_out(parts.lays_out and can)
        self.reward = replace(stored.load_reward(workspace, parts.reward, self.pretrained), witness=None)
        self.reference = versions.load_policy(workspace, parts.start, self.pretrained)
        self.policy = Branch(self.pretrained.trunk, trainable=True)
        self.policy.requires_grad_(False)
        print(f"{self.pretrained.name} is loaded, with {parts.reward} and {parts.start}", file=sys.stderr)
        return Kin.of(self.pretrained, parts)

    def take(self, number: int, contents: Parcel, probe: Rendered) -> Held:
        """Load weights, and say what is in the model then."""
        unpack(contents, self.policy)
        self.number = number
        return held(self.number, self.policy, self.pretrained, probe)

    def draw(self, prompts: Sequence[tuple[int, ...]], uniform: Float[Tensor, "B T"]) -> Share:
        """Draw a response to each prompt, and score it."""
        drawn = draw(self.policy, self.reference, self.reward, self.pretrained, self.parts.sample, prompts, uniform)
        return Share(self.number, _on_cpu(drawn))


def _on_cpu(drawn: Drawn) -> Drawn:
    draws, scored = drawn.draws, drawn.scored
    cpu = torch.device("cpu")
    draws = replace(
        draws,
        batch=draws.batch.to(cpu),
        logprobs=draws.logprobs.cpu(),
        states=None if draws.states is None else draws.states.cpu(),
    )
    camps = None if scored.camps is None else scored.camps.cpu()
    return Drawn(draws, Scored(scored.members.cpu(), camps=camps), drawn.ref_logprobs.cpu())
