"""What tests of stored versions have in common: branches that have moved, and exchanges to compare them on."""

from __future__ import annotations

import torch

from manners.models.branches import Branch, set_trainable
from manners.models.pretrained import Pretrained
from manners.models.versions import Version
from manners.text import Rendered
from manners.types import FinishReason, Response, Role, Turn, VersionKind

EXCHANGES = [
    ("Hi!", "Hello! How can I help you today?", FinishReason.STOP),
    ("How do I bake bread, and how long does it take?", "Wait!!", FinishReason.LENGTH),
    ("Why?", "", FinishReason.STOP),
]
"""A short one, one that is cut off, and an empty one."""


def version_of(pretrained: Pretrained, name: str, kind: VersionKind) -> Version:
    return Version(
        name=name,
        kind=kind,
        base=pretrained.name,
        trunk_hash=pretrained.trunk.hash,
        cut=pretrained.trunk.cut,
        template_hash=pretrained.renderer.template_hash,
        dtype="float32",
        created_at="2025-01-01T00:00:00+00:00",
        watermark=17,
        metrics={"kl": 1.5},
    )


def trained(branch: Branch, seed: int = 0) -> Branch:
    """Move every own parameter somewhere else, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in set_trainable([branch]):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return branch


def rendered(pretrained: Pretrained) -> list[Rendered]:
    return [
        pretrained.renderer.render((Turn(Role.USER, prompt),), Response(answer, "me", reason))
        for prompt, answer, reason in EXCHANGES
    ]
