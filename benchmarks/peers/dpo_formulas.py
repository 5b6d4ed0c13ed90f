"""What TRL 1.16.0's DPO computes: the oracle of `tests/direct/test_trl_dpo.py`.

Run it in TRL's environment, from the root of the repository:

    benchmarks/.venvs/trl-1.16.0/bin/python -m benchmarks.peers.dpo_formulas tests/direct/trl_dpo.json

The formula stands in the middle of `DPOTrainer._compute_loss`: its statements are cut out of the source and
executed on our inputs, so that nothing is retold here. Beside it the trainer itself computes the loss of a whole batch,
by two small models of random weights that both sides make from a seed.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

CASES, PAIRS = 4, 6
WORDS = 64
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> None:
    """Write the inputs and outputs to the file that the first argument names."""
    cases = [case(seed, (0.05, 0.1, 0.5, 2.0)[seed]) for seed in range(CASES)]
    written = {"source": "trl 1.16.0", "cases": cases, "batch": batch(0.5)}
    Path(sys.argv[1]).write_text(json.dumps(written) + "\n", encoding="utf-8")


def case(seed: int, beta: float) -> dict[str, Any]:
    """Draw log-probabilities, in float64, and let TRL compute its losses from them."""
    generator = torch.Generator().manual_seed(seed)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    inputs = {name: -40 * torch.rand(PAIRS, generator=generator, dtype=torch.float64) for name in names}
    smoothing = 0.2
    losses = {kind: float(execute(kind, beta, smoothing, **inputs)["loss"]) for kind in ("sigmoid", "robust")}
    return {
        "beta": beta,
        "label_smoothing": smoothing,
        "inputs": {name: value.tolist() for name, value in inputs.items()},
        "outputs": losses,
    }


def execute(kind: str, beta: float, smoothing: float, **names: Any) -> dict[str, Any]:
    """Execute the statements of `DPOTrainer._compute_loss` from the log ratios to the end of its loop over losses."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(DPOTrainer._compute_loss))).body
    assert isinstance(function, ast.FunctionDef)
    texts = [ast.unparse(statement) for statement in function.body]
    start = next(i for i, text in enumerate(texts) if text.startswith("chosen_logratios ="))
    stop = next(i for i, text in enumerate(texts) if i > start and text.startswith("for loss_type"))
    own = SimpleNamespace(
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
    )
    scope: dict[str, Any] = vars(dpo_trainer) | {"self": own} | names
    exec(compile(ast.Module(function.body[start : stop + 1], []), kind, "exec"), scope)
    return scope


def batch(beta: float) -> dict[str, Any]:
    """Have the trainer compute the loss of one batch of ragged pairs."""
    generator = torch.Generator().manual_seed(7)

    def ids(length: int) -> list[int]:
        return torch.randint(3, WORDS, (length,), generator=generator).tolist()

    lengths = ((3, 5, 2), (9, 1, 7), (4, 6, 6), (1, 3, 9), (7, 2, 2))
    pairs = {
        "prompt_ids": [ids(prompt) for prompt, _, _ in lengths],
        "chosen_ids": [[*ids(chosen), 2] for _, chosen, _ in lengths],
        "rejected_ids": [[*ids(rejected), 2] for _, _, rejected in lengths],
    }
    words = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})  # it insists on tokenising some
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
        args = DPOConfig(output_dir=scratch, beta=beta, max_length=None, **settings)
        trainer = DPOTrainer(model(1), model(0), args, train_dataset=words, processing_class=tokenizer())
        rows = [dict(zip(pairs, row, strict=True)) for row in zip(*pairs.values(), strict=True)]
        given = trainer.data_collator(rows)
        loss = trainer.compute_loss(trainer.model, given)
        loss.backward()
        gradients = {name: float(p.grad.norm()) for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {"beta": beta, "shape": SHAPE, **pairs, "loss": float(loss.detach()), "gradient_norms": gradients}


def model(seed: int) -> PreTrainedModel:
    """Build a random model whose logits are far from uniform; another seed gives one that is not far from it."""
    made: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(made.named_parameters())):
            same, own = (torch.Generator().manual_seed(at) for at in (number, 1000 * seed + number))
            drawn = 0.3 * torch.randn(parameter.shape, generator=same)
            parameter.copy_(drawn + 0.1 * torch.randn(parameter.shape, generator=own))
    made.float().eval()
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of made-up words: the trainer wants one."""
    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{n}" for n in range(WORDS - 3))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


if __name__ == "__main__":
    main()
