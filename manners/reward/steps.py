"""How far a step of training goes: a share of the spread that the weights themselves have."""

from __future__ import annotations

from torch import Tensor, nn

from manners.models.branches import Branch, ScalarBranch
from manners.models.lowrank import LowRank

STEP = 0.01
"""Peak of a step, as a share of a tensor's own spread, where no learning rate is named: 0.002 for weights of
0.2, as SmolLM2 has them, and 0.0002 for weights of 0.02, which is usual."""
POLICY_STEP = 0.0005
"""The same of a policy that PPO or DPO teaches: 0.0001 for weights of 0.2, as SmolLM2 has them, and 0.00001 for weights
of 0.02. A reward model's is twenty times as far: it has nothing to stay close to."""


def units(branch: Branch, *heads: nn.Linear) -> list[float]:
    """Return what each trained parameter of a branch, and of new heads on it, is measured in, in their order.

    That is its root mean square at the start. A model can be written down in other numbers: with a matrix doubled and
    the next one halved it computes the same. A rate in absolute numbers then means something else; one in these units
    does not. What starts at zero has no spread of its own: an adapter's second matrix takes that of the weight it adds
    to, other tensors the mean of all. A new head takes that of the language model's head, which reads the same states,
    and is drawn small.
    Source: the relative step of Adafactor, Shazeer and Stern 2018, section 8; here of the start, so that it stays.
    """
    like = {id(module.b): module.base.weight for module in branch.modules() if isinstance(module, LowRank)}
    for head in (*heads, *([branch.scalar] if isinstance(branch, ScalarBranch) else [])):
        like[id(head.weight)] = branch.model.get_output_embeddings().weight
    trained = [p for module in (branch, *heads) for p in module.parameters() if p.requires_grad]
    found = [_spread(like.get(id(p), p)) for p in trained]
    usual = sum(found) / len(found)
    return [spread or usual or 1.0 for spread in found]


def _spread(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().mean().sqrt())
