"""How far bfloat16 rounds: `python -m benchmarks.rounding`, ratios off 1 before anything is learnt.

Of answers that the model drew itself: between drawing and training, and in training between rows beside others and rows
alone, with logits in the model's format and in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from torch import Tensor

from benchmarks.prepare import prompt_texts
from manners.maths import token_logprobs
from manners.models.answer import streams
from manners.models.branches import Branch
from manners.models.generate import Decoding, Generated, generate
from manners.models.pretrained import Pretrained, load
from manners.models.trunk import States
from manners.ppo.rollout import micro_batches, sliced
from manners.settings import ModelSettings, SampleSettings
from manners.text import Batch
from manners.types import Role, Turn

Read = Callable[[States, Batch], Tensor]
"""Log-probabilities of the tokens of some answers."""


@dataclass(frozen=True)
class Options:
    """What to draw."""

    model: str = "smollm2-135m"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    prompts: int = 48
    tokens: int = 32


@torch.no_grad()
def main(options: Options) -> None:
    """Draw, read again in several ways, and print what differs."""
    pretrained = load(ModelSettings(options.model, dtype=options.dtype))
    policy = Branch(pretrained.trunk, trainable=False)
    draws = _drawn(pretrained, policy, options)
    words = policy.model.get_output_embeddings()

    def wide(states: States, batch: Batch) -> Tensor:
        return policy.logprobs(policy.hidden(states, batch), batch, 1.0)

    def as_it_is(states: States, batch: Batch) -> Tensor:
        keep = batch.keep
        said = pretrained.trunk.vocabulary.at(words(policy.hidden(states, batch)[:, :-1][keep]), 1.0)
        return torch.zeros(keep.shape).masked_scatter(keep, token_logprobs(said, batch.response_ids[keep]).cpu())

    print(f"{options.model} in {options.dtype}: {int(draws.batch.keep.sum()):,} tokens; ratio off 1")
    for name, read in (("float32", wide), (options.dtype, as_it_is)):
        rows = range(len(draws.finish))
        beside = _read(draws, read, micro_batches(draws.batch, rows))
        alone = _read(draws, read, [[row] for row in rows])
        _say(f"drawing and training, logits in {name}", beside - draws.logprobs.cpu(), draws)
        _say(f"rows beside others and alone, logits in {name}", alone - beside, draws)


def _drawn(pretrained: Pretrained, policy: Branch, options: Options) -> Generated:
    texts = prompt_texts()[: options.prompts]
    prompts = [pretrained.renderer.prompt_ids((Turn(Role.USER, text),), options.tokens)[0] for text in texts]
    uniform = streams(0, range(len(prompts)), [0] * len(prompts), options.tokens)
    sample = SampleSettings(temperature=1.0, max_new_tokens=options.tokens)
    decoding = Decoding.of(pretrained.renderer, sample, want_states=True)
    trunk = pretrained.trunk
    return generate(policy.assembled(trunk), trunk, prompts, uniform.to(trunk.compute.uniform), decoding)


def _read(draws: Generated, read: Read, groups: list[list[int]]) -> Tensor:
    assert draws.states is not None
    found = torch.zeros(draws.batch.keep.shape)
    for rows in groups:
        states, batch = sliced(draws.states, draws.batch, rows)
        found[rows, : batch.keep.shape[1]] = read(states, batch).cpu()
    return found


def _say(what: str, drift: Tensor, draws: Generated) -> None:
    off = (drift.exp() - 1)[draws.batch.keep.cpu()].abs()
    half, most = off.quantile(torch.tensor([0.5, 0.99])).tolist()
    print(f"  {what}: median {half:.3f}, 99th percentile {most:.3f}, largest {float(off.max()):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
