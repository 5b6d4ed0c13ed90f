"""Ours against TRL 1.12's own statements, run on random ragged inputs by `benchmarks/peers/formulas.py`.

TRL's masks: `padding_mask` is False up to the last response token, `padding_mask_p1` one token further, where TRL puts
the score and keeps a value. Its formulas are compared under its own masks; where ours mean something else on purpose
is in docs/decisions.md, D076.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manners.maths import masked_mean, masked_variance, whiten
from manners.ppo.objective import gae, kl_penalty, policy_loss, shape_rewards, value_loss

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "trl_formulas.json").read_text())["cases"]


@pytest.fixture(params=CASES, ids=range(len(CASES)))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    raw: dict[str, Any] = request.param
    return {
        "args": raw["args"],
        **{part: {name: tensor(value) for name, value in raw[part].items()} for part in ("inputs", "outputs")},
    }


def tensor(value: Any) -> Tensor:
    found = torch.tensor(value)
    return found.double() if found.is_floating_point() else found


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, check_dtype=False)


def keep(case: dict[str, Any]) -> Tensor:
    mask: Tensor = ~case["outputs"]["padding_mask"]
    return mask


def keep_one_more(case: dict[str, Any]) -> Tensor:
    mask: Tensor = ~case["outputs"]["padding_mask_p1"]
    return mask


def test_the_cases_are_ragged(case: dict[str, Any]) -> None:
    lengths = keep(case).sum(dim=1).tolist()
    assert max(lengths) == keep(case).shape[1] and len(set(lengths)) > 1


def test_masked_mean_and_variance(case: dict[str, Any]) -> None:
    values = case["inputs"]["values"]
    same(masked_mean(values, keep(case)), case["outputs"]["masked_mean"])
    same(masked_variance(values, keep(case)), case["outputs"]["masked_var"])


@pytest.mark.parametrize(("shift_mean", "name"), [(True, "masked_whiten"), (False, "masked_whiten_keeping_the_mean")])
def test_whiten(case: dict[str, Any], shift_mean: bool, name: str) -> None:
    ours = whiten(case["inputs"]["values"], keep(case), shift_mean)
    same(ours, case["outputs"][name].masked_fill(~keep(case), 0))


def test_kl_of_both_estimators(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    kl = kl_penalty(inputs["logprobs"], inputs["ref_logprobs"], keep(case), case["args"]["kl_estimator"])
    same(kl, case["outputs"]["kl"])


def test_rewards_differ_only_in_where_the_score_stands(case: dict[str, Any]) -> None:
    kl = case["outputs"]["kl"]
    theirs = case["outputs"]["rewards"].clone()
    ours = shape_rewards(case["inputs"]["scores"], kl, keep(case), case["args"]["kl_coef"])
    for row, last in enumerate(case["inputs"]["sequence_lengths"].tolist()):
        if last + 1 < theirs.shape[1]:
            theirs[row, last] += theirs[row, last + 1]
            theirs[row, last + 1] = 0
    same(ours, theirs)


def test_advantages_and_returns(case: dict[str, Any]) -> None:
    args, outputs = case["args"], case["outputs"]
    rewards = outputs["rewards"]
    values = case["inputs"]["values"]
    advantages, returns = gae(rewards, values, keep_one_more(case), args["gamma"], args["lam"])
    same(returns, outputs["returns"])
    same(advantages, outputs["returns"] - outputs["values"])
    same(whiten(advantages, keep(case)), outputs["advantages"])


def test_policy_loss(case: dict[str, Any]) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    new, old = inputs["new_logprobs"], inputs["logprobs"]
    loss, _ = policy_loss(new, old, outputs["advantages"], keep(case), case["args"]["cliprange"])
    same(loss, outputs["pg_loss"])


def test_value_loss(case: dict[str, Any]) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    new = inputs["new_values"]
    old = inputs["values"]
    clip = case["args"]["cliprange_value"]
    loss, stats = value_loss(new, old, outputs["returns"], keep_one_more(case), clip)
    same(loss, outputs["vf_loss"])
    same(stats.clipfrac, outputs["vf_clipfrac"])


def test_the_loss_of_a_minibatch(case: dict[str, Any]) -> None:
    args, inputs, outputs = case["args"], case["inputs"], case["outputs"]
    surrogate, _ = policy_loss(
        inputs["new_logprobs"], inputs["logprobs"], outputs["advantages"], keep(case), args["cliprange"]
    )
    error, _ = value_loss(
        inputs["new_values"], inputs["values"], outputs["returns"], keep_one_more(case), args["cliprange_value"]
    )
    same(surrogate + args["vf_coef"] * error, outputs["loss"])
