"""What a version trained with low-rank adapters has learnt, as a folder that peft puts beside the base's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from manners.errors import MannersError
from manners.models.branches import Branch
from manners.models.folders import ADAPTER
from manners.models.lowrank import SCALE, LowRank
from manners.models.pretrained import Pretrained
from manners.models.quiet import quiet_transformers
from manners.models.versions import exported_tokenizer
from manners.workspace import atomic_folder

WEIGHTS = "adapter_model.safetensors"


def write(branch: Branch, pretrained: Pretrained, folder: Path, dtype: torch.dtype, version: str, base: str) -> int:
    """Write an adapter with the tokenizer it was trained with, all of it or nothing; return how many layers it is on.

    peft scales the product of both matrices by lora_alpha / r, which is `SCALE` here.
    Raises MannersError for a version that owns whole layers, one whose base was given new tokens here, which no adapter
    carries, one with numbers that the format cannot hold, and where the folder exists already.
    """
    layers = {name: module for name, module in branch.model.named_modules() if isinstance(module, LowRank)}
    if not layers:
        raise MannersError(
            f"{version} was trained in whole layers (model.lora_rank was not set), which are no adapter: export it with"
            " --as folder or --as gguf"
        )
    if pretrained.added:
        raise MannersError(
            f"{version} has tokens that its base, {base}, does not ({', '.join(pretrained.added)}), and an adapter"
            " brings none: export it with --as folder"
        )
    rank = next(iter(layers.values())).a.shape[0]
    tensors = _matrices(layers, dtype, version)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": SCALE * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
        "inference_mode": True,
    }
    with atomic_folder(folder) as draft, quiet_transformers():
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / ADAPTER).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        exported_tokenizer(pretrained.renderer).save_pretrained(draft)
    return len(layers)


def _matrices(layers: Mapping[str, LowRank], dtype: torch.dtype, version: str) -> dict[str, Tensor]:
    """Return both matrices of every layer, by peft's names; raises MannersError for a number that is too large."""
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": matrix.detach().to("cpu", dtype).contiguous()
        for name, layer in layers.items()
        for letter, matrix in (("A", layer.a), ("B", layer.b))
    }
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            said = str(dtype).removeprefix("torch.")
            raise MannersError(f"{version} has numbers in {name} that {said} cannot hold; use --type bf16")
    return tensors
