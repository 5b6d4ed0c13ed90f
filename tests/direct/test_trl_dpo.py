"""Ours against TRL 1.16's own statements, and against its trainer, run by `benchmarks/peers/dpo_formulas.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from manners.direct.learner import Speaker
from manners.direct.loss import dpo
from manners.models.branches import Branch, set_trainable
from manners.models.packing import pack
from manners.models.trunk import grow_trunk
from manners.text import Rendered

FOUND: dict[str, Any] = json.loads((Path(__file__).parent / "trl_dpo.json").read_text())
NAMES = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@pytest.mark.parametrize("case", FOUND["cases"])
def test_the_formula(case: dict[str, Any]) -> None:
    a, b, c, d = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in NAMES)
    loss, _ = dpo(a, b, c, d, case["beta"])
    assert float(loss) == pytest.approx(case["outputs"]["sigmoid"], rel=1e-9)
    # Robust DPO is linear in the same two logarithms: with e, ((1 - e) for and -e against) / (1 - 2 e).
    e = case["label_smoothing"]
    counts = torch.tensor([(1 - e) / (1 - 2 * e), -e / (1 - 2 * e), 0.0], dtype=torch.float64).expand(len(a), 3)
    loss, _ = dpo(a, b, c, d, case["beta"], counts)
    assert float(loss) == pytest.approx(case["outputs"]["robust"], rel=1e-9)


def model(seed: int) -> PreTrainedModel:
    """The model that the peer makes of a seed."""
    made: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **FOUND["batch"]["shape"]))
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(made.named_parameters())):
            same, own = (torch.Generator().manual_seed(at) for at in (number, 1000 * seed + number))
            drawn = 0.3 * torch.randn(parameter.shape, generator=same)
            parameter.copy_(drawn + 0.1 * torch.randn(parameter.shape, generator=own))
    made.eval()
    return made


@pytest.mark.parametrize("share", [True, False])
def test_the_loss_and_the_gradient_of_a_batch_with_all_layers_trained(share: bool) -> None:
    batch = FOUND["batch"]
    trunk = grow_trunk(model(0), "all")
    policy = Branch(trunk, trainable=True)
    other = dict(model(1).named_parameters())
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            parameter.copy_(other[name])
    said = [
        Rendered(tuple(prompt), tuple(side))
        for prompt, *sides in zip(batch["prompt_ids"], batch["chosen_ids"], batch["rejected_ids"], strict=True)
        for side in sides
    ]
    packed = pack(said, share, 0)
    states = trunk.states(packed)
    reference = Speaker(Branch(trunk, trainable=False), 1.0).scores(states, packed).detach()
    own = Speaker(policy, 1.0).scores(states, packed)
    loss, _ = dpo(own[0::2], own[1::2], reference[0::2], reference[1::2], batch["beta"])
    assert float(loss.detach()) == pytest.approx(batch["loss"], abs=1e-4)
    assert abs(batch["loss"] - 0.6931) > 0.05, "the two models differ"
    torch.autograd.backward(loss)
    assert len(set_trainable([policy])) == len(batch["gradient_norms"])
    for name, parameter in policy.model.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) == pytest.approx(batch["gradient_norms"][name], rel=1e-3, abs=1e-5)
