"""A model on paper: its sizes without its numbers, to plan with before anything is read.

It is made of tensors that know their shape, their format and which of them share memory, and take none: PyTorch's own
`FakeTensorMode`. Forwards run through it as through any other, and `models.cost` counts what they would keep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models.adapters import base_of, is_adapter
from manners.models.compute import bucket_tokens
from manners.models.folders import check_folder
from manners.models.pretrained import EMBEDDED, embedded_folder, read_config, readable
from manners.models.quiet import quiet_transformers
from manners.models.tokenizer_files import beside_adapter, read_tokenizer
from manners.models.trunk import Trunk, grow_trunk
from manners.models.weight_layout import LARGEST
from manners.settings import ModelSettings

paper = FakeTensorMode
"""Inside `with paper():` tensors have no numbers."""


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its weights are read."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def positions(self) -> int | None:
        """Tokens that it can look back on; None where its configuration sets no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or None


def outline(name: str) -> Outline:
    """Read the configuration and the tokenizer of a model, by the names that `model.name` takes.

    Raises MannersError in the sentences with which the model itself would be refused.
    """
    with quiet_transformers():
        if name == EMBEDDED:
            return _of_model(str(embedded_folder()), name)
        path = Path(name).expanduser()
        if path.suffix == ".gguf":
            return _of_gguf(path, name)
        if path.is_dir():
            check_folder(path)
            read = _of_adapter if is_adapter(str(path)) else _of_model
            return read(str(path), name)
        try:
            return _of_model(name, name)
        except MannersError:
            if is_adapter(name):
                return _of_adapter(name, name)
            raise


def _of_model(source: str, name: str) -> Outline:
    with readable(name):
        config = read_config(source, name)
        return Outline(config, read_tokenizer(source))


def _of_adapter(source: str, name: str) -> Outline:
    with readable(name):
        base = outline(base_of(name, source))
        return replace(base, tokenizer=beside_adapter(source, base.tokenizer)[0])


def _of_gguf(path: Path, name: str) -> Outline:
    if not path.is_file():
        raise MannersError(f"model.name is {name}, but there is no such file; check the path")
    with readable(name):
        folder, file = str(path.parent), path.name
        config = AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
        return Outline(config, AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False))


def trunk_on_paper(config: PreTrainedConfig, chosen: ModelSettings, device: torch.device) -> Trunk:
    """Cut a model as `models.pretrained.load` would on a device; to be called, and used, inside `with paper():`.

    What only a proof on numbers finds out is taken as it costs most: prompts are not shared, and weights are laid out
    wherever they can be.
    """
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, chosen.dtype), trust_remote_code=False)
    grown = grow_trunk(model, chosen.trainable_layers, chosen.lora_rank)
    on_cpu = device.type == "cpu"
    small = sum(parameter.nbytes for parameter in model.parameters()) <= LARGEST
    lays_out = on_cpu and small and model.dtype == torch.float32
    compute = replace(grown.compute, bucket_tokens=bucket_tokens(device), saves_columns=on_cpu, lays_out=lays_out)
    keeps = chosen.trunk_states == "kept"
    return replace(grown, compute=compute, recompute=chosen.recompute, keeps_states=keeps)
