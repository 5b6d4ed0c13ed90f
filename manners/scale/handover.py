"""Weights on their way to those who draw with them, and the proof that they arrived.

Of whoever holds weights three things are asked: which hand-over they are of, the hash of the branch as it is in the
model, and the log-probabilities that the model gives an answer to one prompt. The hash says that the branch is the
trainer's, to the bit; the log-probabilities, that the whole model computes what the trainer's does: trunk, masks and
arithmetic of another machine among it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manners.models.branches import Branch
from manners.models.generate import Decoding, generate
from manners.models.pretrained import Pretrained
from manners.text import Rendered, collate

Parcel = Mapping[str, NDArray[np.uint8]]
"""Tensors by name, each as its bytes: no number format that a network's arrays lack is lost on the way."""
PROBE_TOKENS = 16
"""Length of the answer whose log-probabilities are compared."""


@dataclass(frozen=True)
class Held:
    """What somebody says of the weights that they hold."""

    number: int
    """Of the hand-over that they are of; 0 before the first."""
    digest: str
    """Of the branch's parameters, as they are in the model."""
    logprobs: tuple[float, ...]
    """Of the tokens of the probe's answer, in nats."""


def parcel(branch: Branch) -> Parcel:
    """Pack a branch's own parameters: what a version stores of it."""
    return {name: _bytes(tensor) for name, tensor in branch.own_tensors().items()}


def unpack(contents: Parcel, branch: Branch) -> None:
    """Load what was packed into a branch; raises KeyError or RuntimeError where it does not fit."""
    own = branch.own_tensors()
    branch.load_tensors(
        {
            name: torch.from_numpy(np.array(data)).view(own[name].dtype) if name in own else torch.empty(0)
            for name, data in contents.items()
        }
    )


def digest(branch: Branch) -> str:
    """Hash a branch's own parameters with their names."""
    found = hashlib.sha256()
    for name, data in sorted(parcel(branch).items()):
        found.update(name.encode())
        found.update(data.data)
    return found.hexdigest()


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return found


def probe_of(policy: Branch, pretrained: Pretrained, prompt: tuple[int, ...]) -> Rendered:
    """Answer a prompt greedily: the answer that is read from then on, whatever the policy would say later."""
    decoding = Decoding(pretrained.renderer.end_ids, pretrained.renderer.pad_id).greedy()
    uniform = torch.zeros((1, PROBE_TOKENS), dtype=pretrained.trunk.compute.uniform)
    whole = policy.assembled(pretrained.trunk)
    return generate(whole, pretrained.trunk, [prompt], uniform, decoding).rendered[0]


@torch.no_grad()
def held(number: int, policy: Branch, pretrained: Pretrained, probe: Rendered) -> Held:
    """Look at the weights that a policy has now."""
    batch = collate([probe], pretrained.renderer.pad_id).to(pretrained.trunk.device)
    hidden = policy.hidden(pretrained.trunk.states(batch), batch)
    return Held(number, digest(policy), tuple(policy.logprobs(hidden, batch, 1.0)[0].tolist()))


def apart(ours: Held, theirs: Held) -> float:
    """Mean difference of the log-probabilities of the probe's tokens, in nats; NaN where they cannot be compared."""
    if len(ours.logprobs) != len(theirs.logprobs):
        return float("nan")
    return float(np.mean(np.abs(np.subtract(ours.logprobs, theirs.logprobs))))


def fault(ours: Held, theirs: Held, tolerance: float) -> str | None:
    """Say what is wrong with weights that were handed over, or None: stale, corrupted, or computing something else."""
    if theirs.number != ours.number:
        return f"its weights are stale: those of hand-over {theirs.number}, and this is number {ours.number}"
    if theirs.digest != ours.digest:
        return f"its weights are not the trainer's ({theirs.digest[:8]}, and should be {ours.digest[:8]})"
    if not (off := apart(ours, theirs)) <= tolerance:
        return f"with the trainer's weights its log-probabilities are off by {off:.2g} nats a token"
    return None
