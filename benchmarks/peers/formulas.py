"""What TRL 1.12.0 computes on random ragged inputs: the oracle of `tests/ppo/test_trl_formulas.py`.

Run it in TRL's environment, from the root of the repository:

    benchmarks/.venvs/trl-1.12.0/bin/python -m benchmarks.peers.formulas tests/ppo/trl_formulas.json

Advantages and losses stand in the middle of `PPOTrainer.train`; their statements are cut out of its source as installed
and executed on our inputs, so that nothing is retold here.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl.experimental.ppo import ppo_trainer

CASES = 4
ROWS, COLUMNS = 5, 7


def main() -> None:
    """Write the inputs and outputs of some random cases, in float64, to the file that the first argument names."""
    torch.set_default_dtype(torch.float64)
    cases = [case(seed, "k1" if seed % 2 == 0 else "k3") for seed in range(CASES)]
    Path(sys.argv[1]).write_text(json.dumps({"source": "trl 1.12.0", "cases": cases}) + "\n", encoding="utf-8")


def case(seed: int, kl_estimator: str) -> dict[str, Any]:
    """Draw inputs and let TRL compute everything that an update computes from them."""
    torch.manual_seed(seed)
    args = SimpleNamespace(
        gamma=0.97, lam=0.9, kl_coef=0.3, kl_estimator=kl_estimator, whiten_rewards=False, cliprange=0.2,
        cliprange_value=0.2, vf_coef=0.1,
    )  # fmt: skip
    inputs = {
        "logprobs": -3 * torch.rand(ROWS, COLUMNS),
        "ref_logprobs": -3 * torch.rand(ROWS, COLUMNS),
        "values": torch.randn(ROWS, COLUMNS),
        "scores": torch.randn(ROWS),
        "sequence_lengths": torch.randint(0, COLUMNS, (ROWS,)),  # the index of the last token
        "new_logprobs": -3 * torch.rand(ROWS, COLUMNS),
        "new_values": torch.randn(ROWS, COLUMNS),
    }
    inputs["sequence_lengths"][0] = COLUMNS - 1
    kept = ["padding_mask", "padding_mask_p1", "kl", "rewards", "values", "returns", "advantages"]
    rollout = execute(
        "response_idxs =",
        "advantages = torch.masked_fill(",
        args=args,
        responses=torch.zeros(ROWS, COLUMNS),
        **{name: inputs[name].clone() for name in ("logprobs", "ref_logprobs", "values", "scores", "sequence_lengths")},
    )
    losses = execute(
        "new_logprobs = torch.masked_fill(",
        "loss =",
        args=args,
        micro_batch_inds=torch.arange(ROWS),
        context_length=1,
        new_logprobs=inputs["new_logprobs"].clone(),
        vpred_temp=torch.cat([inputs["new_values"], torch.zeros(ROWS, 1)], dim=1).unsqueeze(-1),
        mb_logprobs=rollout["logprobs"],
        mb_values=rollout["values"],
        mb_return=rollout["returns"],
        mb_advantage=rollout["advantages"],
        padding_mask=rollout["padding_mask"],
        padding_mask_p1=rollout["padding_mask_p1"],
    )
    keep, x = ~rollout["padding_mask"], inputs["values"]
    outputs = {name: rollout[name] for name in kept}
    outputs |= {name: losses[name] for name in ("pg_loss", "vf_loss", "vf_clipfrac", "loss")}
    outputs |= {
        "masked_mean": ppo_trainer.masked_mean(x, keep),
        "masked_var": ppo_trainer.masked_var(x, keep),
        "masked_whiten": ppo_trainer.masked_whiten(x, keep),
        "masked_whiten_keeping_the_mean": ppo_trainer.masked_whiten(x, keep, shift_mean=False),
    }
    return {
        "args": vars(args),
        "inputs": {name: value.tolist() for name, value in inputs.items()},
        "outputs": {name: value.tolist() for name, value in outputs.items()},
    }


def execute(first: str, last: str, **names: Any) -> dict[str, Any]:
    """Execute the statements of `PPOTrainer.train` from the one that begins with `first` to the next with `last`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(ppo_trainer.PPOTrainer.train)))
    for node in ast.walk(tree):
        statements = getattr(node, "body", [])
        texts = [ast.unparse(statement) for statement in statements] if isinstance(statements, list) else []
        start = next((i for i, text in enumerate(texts) if text.startswith(first)), None)
        if start is not None:
            stop = next(i for i, text in enumerate(texts) if i > start and text.startswith(last))
            scope: dict[str, Any] = vars(ppo_trainer) | names
            exec(compile(ast.Module(statements[start : stop + 1], []), first, "exec"), scope)
            return scope
    raise SystemExit(f"PPOTrainer.train has no statement that begins with {first!r}: this is not TRL 1.12.0")


if __name__ == "__main__":
    main()
