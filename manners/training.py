"""The one training loop: terms of a loss in, steps of AdamW and Muon out. What every stage that trains has in common.

    for micro-batch in batch:
        found = training.learn(terms, part, whole)    gradients, summed in float32; what was seen on the way
    training.step(otherwise, weight)                  clipped, checked, one step; or `otherwise`, and no step

Where several processes train as one (`ranks`) each brings its micro-batches' share, and the gradients are added up.
A stage brings its terms, the order of its batches and its own sentence for a gradient that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manners import ranks
from manners.maths import warm_up
from manners.muon import Muon

Statistics = Mapping[str, Tensor]
"""What a term looked like: scalars by the names of their curves."""
Loss = tuple[Float[Tensor, ""], Statistics]
"""A term's value, and what it looked like."""


@dataclass(frozen=True, slots=True)
class Term:
    """A part of an objective, which is the sum of weight * loss over its terms."""

    name: str
    weight: float
    forward: str
    """The forward whose activations it needs. Terms of one forward go back together; terms of different ones share
    nothing, and so the activations of the one are gone before those of the next come."""
    loss: Callable[[], Loss]
    """Computes it, with gradient, when its turn has come."""
    once: bool = False
    """Whether it is taken once a step, and not as a share of every micro-batch."""


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that move alike."""

    parameters: Sequence[nn.Parameter]
    rate: float
    """The peak of their rate."""
    muon: bool = False
    """By Muon, which takes matrices; otherwise by AdamW."""
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""


class Training:
    """Parameters on their way down, by AdamW (no weight decay), on float32 whatever the model's format is.

    With `groups` some may go by Muon, and with weight decay.

    A parameter narrower than float32 has a float32 master: gradients are summed there, moments are kept there, steps
    are taken there, and the parameter is its rounding. A bfloat16 number has 8 significant bits: a step of less than
    1/512 of it would be rounded away, every time. A float32 parameter is its own master.
    Source: Micikevicius et al. 2018, section 3.1.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        rate: float,
        max_norm: float,
        units: Sequence[float] | None = None,
        groups: Sequence[Group] = (),
    ) -> None:
        """Take the parameters, the peak of the learning rate and the norm that gradients are scaled down to.

        With `units`, one a parameter, training goes as if each parameter were written in its own: rate and gradient are
        in them, and AdamW's eps is small (1e-8, otherwise 1e-5), so that the numbers a model is written in change
        nothing. With `groups`, which hold each parameter once, `rate` is a factor on theirs.
        """
        self.parameters = list(parameters)
        self.masters = [nn.Parameter(p.detach().float()) if narrow(p.dtype) else p for p in self.parameters]
        chosen: list[dict[str, Any]] = [{"params": self.masters}]
        eps = 1e-5 if units is None and not groups else 1e-8
        if units is not None:
            chosen = [{"params": [p], "unit": unit} for p, unit in zip(self.masters, units, strict=True)]
        if groups:
            chosen = [
                {"params": self._masters_of(g), "peak": g.rate, "weight_decay": g.decay, "betas": g.betas}
                for g in groups
                if not g.muon
            ]
        self.optimiser = torch.optim.AdamW(chosen, lr=rate, eps=eps, weight_decay=0.0)
        self.muon = self._muon(groups)
        self.rate = rate
        self.max_norm = max_norm
        self._steps = 0

    def lower(self, setting: str) -> str:
        """Say how a setting makes steps smaller: of a rate in units, below what it comes to, as the mean over weights.

        It is in absolute numbers, so that setting one in place of none may as well make steps larger.
        """
        found = [(g["unit"], sum(p.numel() for p in g["params"])) for g in self.optimiser.param_groups if "unit" in g]
        if not found:
            return f"lower {setting}"
        usual = self.rate * sum(unit * size for unit, size in found) / sum(size for _, size in found)
        return f"set {setting}, which is none and comes to {usual:.2g} here, to less than that"

    def schedule(self, step: int, steps: int, factor: float = 1.0) -> float:
        """Set and return the rate of a step, from 1, of so many: peak * `maths.warm_up` * factor."""
        rate = self.rate * warm_up(step, steps) * factor
        self.set(rate)
        return rate

    def set(self, rate: float) -> None:
        """Set the rate of the next step."""
        for optimiser in self._optimisers():
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("unit", 1.0) * group.get("peak", 1.0)

    def learn(self, terms: Sequence[Term], part: float = 1.0, whole: float = 1.0) -> dict[str, Tensor]:
        """Add the gradient of the sum of weight * part / whole * loss; return losses and statistics by name.

        `part / whole` is a micro-batch's share of the batch, by what its losses are means over: so that the size of
        micro-batches changes nothing.
        """
        found: dict[str, Tensor] = {}
        for forward in dict.fromkeys(term.forward for term in terms):
            losses = []
            for term in terms:
                if term.forward == forward:
                    loss, statistics = term.loss()
                    losses.append(loss * (term.weight * part / whole))
                    found |= {f"loss/{term.name}_avg": loss.detach(), **statistics}
            torch.autograd.backward(losses)
            self._gather()
        return found

    def step(self, otherwise: Exception, weight: float = 1.0) -> None:
        """Take a step on the gradients so far, their norm scaled down, and drop them.

        `weight` is what this batch counts for beside others: its gradients, of a mean over the batch, are multiplied
        by it once their norm has been limited, so that the limit does not make a light batch and a heavy one alike.
        Raises `otherwise`, and takes no step, where they are not finite.
        """
        ranks.add_up(self.masters)
        for group in self.optimiser.param_groups:
            for master in group["params"]:
                if "unit" in group and master.grad is not None:
                    master.grad.mul_(group["unit"])
        norm = nn.utils.clip_grad_norm_(self.masters, self.max_norm)
        if weight != 1:
            for gradient in (master.grad for master in self.masters if master.grad is not None):
                gradient.mul_(weight)
        sound = bool(torch.isfinite(norm))
        if sound:
            for optimiser in self._optimisers():
                optimiser.step()
            self._round()
        for optimiser in self._optimisers():
            optimiser.zero_grad(set_to_none=True)
        if not sound:
            raise otherwise
        if self._steps % ranks.LOOK_EVERY == 0:
            ranks.look(self.masters)
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; tensors are the live ones. Parameters follow from their masters."""
        muon = {} if self.muon is None else {"muon": self.muon.state_dict()}
        parameters = [master.detach() for master in self.masters]
        return {"parameters": parameters, "optimiser": self.optimiser.state_dict(), **muon}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was made from, to the bit; parameters and moments may also be in the model's format."""
        for master, stored in zip(self.masters, state["parameters"], strict=True):
            master.copy_(stored)
        self._round()
        self.optimiser.load_state_dict(state["optimiser"])
        if self.muon is not None:
            self.muon.load_state_dict(state["muon"])

    def _masters_of(self, group: Group) -> list[nn.Parameter]:
        masters = {id(p): master for p, master in zip(self.parameters, self.masters, strict=True)}
        return [masters[id(parameter)] for parameter in group.parameters]

    def _muon(self, groups: Sequence[Group]) -> Muon | None:
        """Return what moves the matrices, None where all goes by AdamW."""
        chosen = [group for group in groups if group.muon]
        if not chosen:
            return None
        [group] = chosen
        muon = Muon(self._masters_of(group), group.rate, group.decay)
        muon.param_groups[0]["peak"] = group.rate
        return muon

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [self.optimiser] if self.muon is None else [self.optimiser, self.muon]

    def _rounded(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters that are roundings, each with its master."""
        return [(p, master) for p, master in zip(self.parameters, self.masters, strict=True) if p is not master]

    def _gather(self) -> None:
        """Move the gradients of roundings to their masters, where they are summed without being rounded again."""
        for parameter, master in self._rounded():
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    @torch.no_grad()
    def _round(self) -> None:
        for parameter, master in self._rounded():
            parameter.copy_(master)


def training_bytes(nbytes: int, dtype: torch.dtype) -> int:
    """Return what gradients, moments and masters take beside so many bytes of parameters of a format.

    The gradient and two moments, each as wide as the master; where the parameter is narrower, the master too, and the
    gradient as the backward gives it.
    """
    if not narrow(dtype):
        return 3 * nbytes
    return 4 * torch.float32.itemsize * (nbytes // dtype.itemsize) + nbytes


def narrow(dtype: torch.dtype) -> bool:
    """Whether steps of a usual rate would be lost in the rounding of a format."""
    return dtype.itemsize < torch.float32.itemsize
