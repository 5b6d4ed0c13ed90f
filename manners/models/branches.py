"""Branches: the upper layers and head that one role (policy, reference, reward member, value) owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from manners.maths import token_logprobs
from manners.models.lowrank import adapt, merge
from manners.models.surgery import head_alone, joined, opened, put_taps, recompute, shared_copy
from manners.models.trunk import Half, States, Trunk
from manners.text import Batch, Packed

HEAD_CHUNK = 512
"""Response tokens whose logits exist at one time, so that no (B, T, V) tensor ever does."""


class Branch(nn.Module):
    """The layers above a trunk's cut, through the model's own forward; its parameters are the trainable ones."""

    def __init__(self, trunk: Trunk, trainable: bool, idle: frozenset[int] = frozenset()) -> None:
        """Copy the initial model's upper part, or share it where nothing is to be trained (the reference).

        Parameters whose id is `idle` play no part in this role: they are shared, and not trained.
        """
        super().__init__()
        model = shared_copy(trunk.whole, trunk.own - idle if trainable else frozenset())
        shared = {id(p) for p in trunk.whole.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(trainable and id(parameter) not in shared)
        if trainable and trunk.lora_rank:
            adapt(model, trunk.cut, trunk.lora_rank)
        recomputes = trainable and trunk.recompute
        if recomputes:
            recompute(model, trunk.cut)
        taps = put_taps(model, range(trunk.cut), trunk.anatomy)
        self.model = model
        self.cut = trunk.cut
        self.trunk_hash = trunk.hash
        self._upper = Half(model, enter=taps[-1] if taps else None)
        self._shares = trunk.compute.shares_beginnings and not recomputes  # a cache would be written to twice
        self._vocabulary = trunk.vocabulary
        self._own = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        self._head = (head_alone(model),)  # in a tuple: it shares parameters, which must not be counted twice

    def hidden(self, states: States, batch: Batch) -> Float[Tensor, "B T1 D"]:
        """Final hidden states from the last prompt token to the last response token: T + 1 columns.

        Column t is where response token t is predicted and valued, column t + 1 where it has been read.
        """
        return self.final(states, batch)[:, batch.prompt_width - 1 :]

    def final(self, states: States, batch: Batch | Packed) -> Float[Tensor, "B L D"]:
        """Final hidden states of all columns with a token."""
        return self._upper(states, batch, self._shares)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Next-token logits for hidden states, at temperature 1."""
        head, tap = self._head[0]
        anything = torch.zeros((1, 1), dtype=torch.long, device=hidden.device)
        with opened(tap, hidden.unsqueeze(0)):
            logits: Tensor = head(input_ids=anything, use_cache=False).logits
        return logits.squeeze(0)

    def logprobs(self, hidden: Float[Tensor, "B T1 D"], batch: Batch, temperature: float) -> Float[Tensor, "B T"]:
        """Log-probability of each token of an answer, of all that can be said at a temperature; 0 where not kept.

        In nats; see `models.vocabulary`.
        """
        return self._of_tokens(hidden, batch, lambda logits: self._vocabulary.at(logits, temperature))

    def text_logprobs(self, hidden: Float[Tensor, "B T1 D"], batch: Batch) -> Float[Tensor, "B T"]:
        """Log-probability of each token of plain text, of all tokens at temperature 1; 0 where not kept. In nats."""
        return self._of_tokens(hidden, batch, Tensor.float)

    def read(
        self, hidden: Float[Tensor, "N D"], ids: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Log-probability of tokens of text where they are predicted, and whether each is the likeliest of all.

        Among all tokens at temperature 1, in nats; without gradient for the second.
        """
        likeliest = list[Tensor]()

        def seen(logits: Tensor) -> Tensor:
            likeliest.append(logits.detach().argmax(dim=1))
            return logits.float()

        logprobs = self._logprobs(hidden, ids, seen)
        return logprobs, torch.cat(likeliest) == ids

    def _of_tokens(
        self, hidden: Float[Tensor, "B T1 D"], batch: Batch, drawn_from: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B T"]:
        """Only kept positions go through the head, in chunks."""
        keep = batch.keep
        logprobs = self._logprobs(hidden[:, :-1][keep], batch.response_ids[keep], drawn_from)
        return torch.zeros(keep.shape, dtype=logprobs.dtype, device=keep.device).masked_scatter(keep, logprobs)

    def said(self, states: States, batch: Packed, temperature: float) -> Float[Tensor, " N"]:
        """Log-probability of each whole response, the token that ends it included, of all that can be said.

        In nats; the sum of what `logprobs` gives for its tokens.
        """
        rows, before, columns, response = _predicted(batch)
        final = self.final(states, batch)
        at = self._logprobs(
            final[rows, before], batch.ids[rows, columns], lambda logits: self._vocabulary.at(logits, temperature)
        )
        return at.new_zeros(len(batch.spans)).index_add(0, response, at)

    def every_logprob(self, hidden: Float[Tensor, "B T1 D"], batch: Batch) -> Float[Tensor, " N"]:
        """Log-probability of the tokens of all response columns at temperature 1, padding included.

        For what a forward costs: which tokens are kept cannot be asked of a model that is on paper only.
        """
        states, ids = hidden[:, :-1].flatten(0, 1), batch.response_ids.flatten()
        return self._logprobs(states, ids, lambda logits: self._vocabulary.at(logits, 1.0))

    def _logprobs(
        self, states: Float[Tensor, "N D"], ids: Int[Tensor, " N"], drawn_from: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, " N"]:
        parts = [
            token_logprobs(drawn_from(self.logits(h)), i)
            for h, i in zip(torch.split(states, HEAD_CHUNK), torch.split(ids, HEAD_CHUNK), strict=True)
        ]
        return torch.cat(parts)

    def assembled(self, trunk: Trunk, exact: bool = False) -> PreTrainedModel:
        """Return the whole model, trunk and branch, sharing the parameters of both; adapters are merged into copies.

        In the model's format, for drawing; or `exact`, in float32, for an export, which rounds the sum once or not at
        all: what an adapter adds below half a step of a bfloat16 weight is gone where it is merged in bfloat16.
        """
        whole = joined(self.model, trunk.whole, trunk.cut)
        merge(whole, torch.float32 if exact else None)
        return whole

    def own_tensors(self) -> dict[str, Tensor]:
        """What a version stores: the branch's own parameters by name, tied ones once."""
        return {name: p.detach() for name, p in self.named_parameters() if name in self._own}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take stored parameters back; raises KeyError when the names differ."""
        own = {name: p for name, p in self.named_parameters() if name in self._own}
        if own.keys() != tensors.keys():
            raise KeyError(f"stored parameters do not fit this branch: {sorted(own.keys() ^ tensors.keys())[:3]}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


class ScalarBranch(Branch):
    """A branch with a scalar head: a reward model's member, or a value function.

    The head is drawn from N(0, 0.01/(D + 1)) without bias, or starts at zero (value). Source: Stiennon et al. 2020;
    "The N implementation details of RLHF with PPO" (2023), details 2 and 12. A tenth of their spread: pre-trained final
    states are not of unit size, and what a few hundred comparisons teach must not drown in the head's first guess.
    """

    def __init__(self, trunk: Trunk, generator: torch.Generator | None) -> None:
        """Copy the upper part; draw the head from `generator`, or zero it when None."""
        super().__init__(trunk, trainable=True, idle=idle_head(trunk))
        self.scalar = scalar_head(trunk, generator)
        self._own = frozenset(name for name, p in self.named_parameters() if p.requires_grad)

    def scores(self, states: States, batch: Batch | Packed) -> Float[Tensor, " N"]:
        """Score of each response, at its last token."""
        return self.of_ends(self.ends(states, batch))

    def ends(self, states: States, batch: Batch | Packed) -> Float[Tensor, "N D"]:
        """Final hidden state of each response, at its last token."""
        return self.final(states, batch)[batch.ends].float()

    def of_ends(self, ends: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Score of each response from the final state of its last token."""
        score: Tensor = self.scalar(ends).squeeze(-1)
        return score

    def values(self, states: States, batch: Batch) -> Float[Tensor, "B T"]:
        """Value of the state in which each response token is chosen."""
        value: Tensor = self.scalar(self.hidden(states, batch)[:, :-1].float()).squeeze(-1)
        return value


def _predicted(batch: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, of each response token, its row, the column it is predicted in, its own, and its response's number.

    The first token of a response is predicted where its prompt ends, which may be some responses before it.
    """
    lengths = torch.tensor([stop - start for _, start, stop in batch.spans])
    response = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    rows = torch.tensor([row for row, _, _ in batch.spans])[response]
    columns = torch.cat([torch.arange(start, stop) for _, start, stop in batch.spans])
    starts = torch.tensor([start for _, start, _ in batch.spans])[response]
    rows, columns, starts, response = (x.to(batch.ids.device) for x in (rows, columns, starts, response))
    before = torch.where(columns == starts, batch.positions[rows, columns] - 1, columns - 1)
    return rows, before, columns, response


def scalar_head(trunk: Trunk, generator: torch.Generator | None) -> nn.Linear:
    """Make a head D -> 1 without bias: N(0, 0.01/(D + 1)), or zero when `generator` is None.

    It is float32 whatever the model's format is, and so are scores and values: two answers of a pair are often closer
    to each other than a bfloat16 number to the next.
    """
    head = nn.Linear(trunk.width, 1, bias=False, device=trunk.device, dtype=torch.float32)
    with torch.no_grad():
        if generator is None:
            head.weight.zero_()
        else:
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * (0.1 / (trunk.width + 1) ** 0.5))
    return head


def idle_head(trunk: Trunk) -> frozenset[int]:
    """Ids of the parameters of a language-model head that is nothing else: what a score does not need."""
    head = trunk.whole.get_output_embeddings()
    words = {id(p) for p in trunk.whole.get_input_embeddings().parameters()}
    return frozenset() if head is None else frozenset(id(p) for p in head.parameters()) - words


def set_trainable(branches: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Collect the parameters that an optimiser may change."""
    return [p for branch in branches for p in branch.parameters() if p.requires_grad]
