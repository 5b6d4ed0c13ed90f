"""How far a step of training on comparisons goes: a share of the spread that the weights themselves have."""

from __future__ import annotations

from torch import Tensor

from manners.models.branches import Branch, ScalarBranch
from manners.models.lowrank import LowRank

STEP = 0.01
"""Peak of a step, as a share of a tensor's own spread, where `reward.learning_rate` names none: 0.002 for weights of
0.2, as SmolLM2 has them, and 0.0002 for weights of 0.02, which is usual."""


def units(branch: Branch) -> list[float]:
    """Return what each trained parameter of a branch is measured in, in their order: its root mean square at the start.

    A model can be written down in other numbers: with a matrix doubled and the next one halved it computes the same. A
    rate in absolute numbers then means something else; one in these units does not. What starts at zero has no spread
    of its own: an adapter's second matrix takes that of the weight it adds to, other tensors the mean of all. The new
    head takes that of the language model's head, which reads the same states, and is drawn small.
    Source: the relative step of Adafactor, Shazeer and Stern 2018, section 8; here of the start, so that it stays.
    """
    adapted = {id(module.b): module.base.weight for module in branch.modules() if isinstance(module, LowRank)}
    if isinstance(branch, ScalarBranch):
        adapted[id(branch.scalar.weight)] = branch.model.get_output_embeddings().weight
    trained = [p for p in branch.parameters() if p.requires_grad]
    found = [_spread(adapted.get(id(p), p)) for p in trained]
    usual = sum(found) / len(found)
    return [spread or usual or 1.0 for spread in found]


def _spread(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().mean().sqrt())
