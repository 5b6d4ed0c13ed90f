"""What an answer can consist of: the one place where tokens are shut out that nobody would see.

    p(token) = softmax(logits / temperature) over the tokens that can be seen, with one end for all that end an answer

Judges read text, and special tokens leave none. A policy that may draw them can move the reward by what nobody has seen
and nobody has judged. So they have probability 0, and drawing, training, the reference and served answers all take
their distribution from here: ratios stay 1. An export names the same tokens (`suppress_tokens`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from manners.text import Renderer


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens an answer may consist of, and how it ends."""

    unseen: Int[Tensor, " U"]
    """Tokens without text, other than those that end an answer."""
    ends: Int[Tensor, " E"]
    """Tokens that end an answer. Which of them was drawn is not to be seen either: they count as one."""
    end: int
    """The one that stands for them, and that stored answers are rendered with."""

    @classmethod
    def of(cls, renderer: Renderer, model: PreTrainedModel) -> Vocabulary:
        """Shut out what the renderer's text does not show, and what the model has more tokens than the tokenizer."""
        every = range(int(model.config.get_text_config().vocab_size))
        shown = set(renderer.tokenizer.get_vocab().values()) - renderer.special_ids
        ends = sorted(renderer.end_ids.intersection(every))
        unseen = sorted(set(every) - shown - renderer.end_ids)
        tensors = [torch.tensor(ids, dtype=torch.long, device=model.device) for ids in (unseen, ends)]
        return cls(tensors[0], tensors[1], renderer.end_id)

    @property
    def shut_out(self) -> frozenset[int]:
        """Tokens whose probability is 0: the unseen ones, and the ends that another one stands for."""
        return frozenset({*self.unseen.tolist(), *self.ends.tolist()} - {self.end})

    def seen(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Return a copy of the logits, in float32, that is -inf at tokens without text."""
        return logits.float().index_fill(1, self.unseen, -torch.inf)

    def at(self, logits: Float[Tensor, "N V"], temperature: float | Float[Tensor, "N 1"]) -> Float[Tensor, "N V"]:
        """Return logits of what can be said at a temperature, in float32: their softmax is what is drawn from.

        The probabilities of all ends are one's; the other ends are at -inf.
        """
        said = self.seen(logits).div_(temperature)
        if len(self.ends) > 1:
            end = said[:, self.ends].logsumexp(dim=1)
            said[:, self.ends] = -torch.inf
            said[:, self.end] = end
        return said

    def likeliest(self, logits: Float[Tensor, "N V"]) -> Int[Tensor, " N"]:
        """Return the likeliest token of each row, as temperatures near 0 would draw it."""
        token = self.seen(logits).argmax(dim=1)
        return token.masked_fill(torch.isin(token, self.ends), self.end)


def everything(device: torch.device) -> Vocabulary:
    """Return the vocabulary of a model without a tokenizer: no token is shut out."""
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    return Vocabulary(nothing, nothing, -1)
