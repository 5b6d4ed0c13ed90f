"""What a model's folder holds, looked at before anything is read: what cannot be used is said by its cause."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from manners.errors import MannersError

ADAPTER = "adapter_config.json"
"""What makes a folder an adapter's."""
WEIGHTS = ("*.safetensors", "*.bin")
OTHER_WEIGHTS = ("*.h5", "*.msgpack", "*.onnx", "*.pth", "*.pt", "*.ckpt", "*.gguf", "*.npz")
"""Weights of other libraries, or as training programs keep them."""
NOT_WEIGHTS = ("adapter_", "training_args", "optimizer", "scheduler", "consolidated")
"""What files begin with that have a name like weights, and are none of a model laid out as transformers does."""
VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
"""Files of which a tokenizer has at least one, for its tokens."""
WORDS = (*VOCABULARY, "tokenizer_config.json")
"""Files of a tokenizer."""
GENERATION = "generation_config.json"
"""Where a model says, among others, which tokens end an answer."""
POINTER = b"version https://git-lfs"
"""What a file begins with that git has left in the place of a large one."""
PACKED = ("qweight", "qzeros", "g_idx", "scales", "absmax", "SCB", "weight_scale", "weight_packed", "quant_map")
"""What tensors are called in which a quantised weight is stored."""

COMPUTED = ("inv_freq", "masked_bias", "attn.bias", "attention.bias", "k_scale", "v_scale")
"""What tensors are called that older files keep beside the weights, and that the forward does not need: tables of
rotations, causal masks (GPT-2, GPT-J, GPT-Neo), scales of a cache in few bits."""


def check_folder(folder: Path) -> None:
    """Raise MannersError where a folder is none that a model can be read from, naming what it lacks and what it holds.

    An adapter's folder needs no model and no tokenizer of its own: those of its base will do.
    """
    for file in _found(folder, (*WEIGHTS, *WORDS, "config.json", ADAPTER)):
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise MannersError(
                    f"model.name is {folder}, in which {file.name} is a pointer that git has left in its place: run"
                    " `git lfs pull` in that folder, or download the model anew"
                )
    weights = [file for file in _found(folder, WEIGHTS) if not file.name.startswith(NOT_WEIGHTS)]
    if (folder / ADAPTER).is_file():
        if weights:
            raise MannersError(
                f"model.name is {folder}, which holds an adapter ({ADAPTER}) and the weights of a whole model"
                f" ({weights[0].name}): move one of them away, so that it is clear which is meant"
            )
        return
    check_generation(folder)
    if not (folder / "config.json").is_file():
        raise MannersError(f"model.name is {folder}, a folder without config.json; {_instead(folder)}")
    if not weights:
        there = ", ".join(sorted(file.name for file in _found(folder, OTHER_WEIGHTS)))
        raise MannersError(
            f"model.name is {folder}, which holds no weights as transformers keeps them (*.safetensors or *.bin), but"
            f" {there or 'a configuration only'}; name a folder made by save_pretrained"
        )
    if not any(_found(folder, WORDS)):
        raise MannersError(
            f"model.name is {folder}, which holds a model and no tokenizer; copy tokenizer.json and"
            " tokenizer_config.json of the model that it was made from into it"
        )


def check_generation(folder: Path) -> None:
    """Raise MannersError where generation settings are there and cannot be read, of which transformers says nothing."""
    try:
        if (folder / GENERATION).is_file():
            dict(json.loads((folder / GENERATION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise MannersError(
            f"model.name is {folder}, whose {GENERATION} is damaged ({error}), and it says with which tokens an answer"
            " ends: download it again, or take it away"
        ) from error


def _instead(folder: Path) -> str:
    """Say what to name in place of a folder that has no configuration, by what it holds."""
    if (folder / "version.json").is_file():
        return f"it is a version of a workspace: write it with `manners models export {folder.name} DIR`, and name DIR"
    for what, pattern in (("the file", "*.gguf"), ("the folder", "*/config.json"), ("the folder", f"*/{ADAPTER}")):
        if found := sorted(folder.glob(pattern)):
            return f"name {what} {found[-1] if what == 'the file' else found[-1].parent} in it"
    if any(_found(folder, ("params.json", "consolidated*", *OTHER_WEIGHTS))):
        return "its weights are laid out for another library: name a folder made by save_pretrained"
    if any(_found(folder, WORDS)):
        return "it holds a tokenizer and no model: name a folder made by save_pretrained"
    return "name a folder made by save_pretrained"


def _found(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]


def refuse_quantised(name: str, config: PreTrainedConfig) -> None:
    """Raise MannersError where a configuration says that the weights are stored in few bits, naming the method."""
    for described in (config, config.get_text_config()):
        for entry in ("quantization_config", "quantization"):
            if found := getattr(described, entry, None):
                method = found.get("quant_method") if isinstance(found, dict) else None
                raise quantised(name, f"quantised weights ({getattr(method, 'value', method) or entry})")


def refuse_packed(name: str, unexpected: Iterable[str]) -> None:
    """Raise MannersError where tensors that a model has no place for are those of quantised weights."""
    for key in unexpected:
        if key.rpartition(".")[2] in PACKED:
            raise quantised(name, f"quantised weights ({key})")


def refuse_misfits(name: str, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Raise MannersError where the files hold more of a part that the model has than its configuration has place for.

    A bias, a norm or an adapter that is left out of a layer makes another model of it. Tables that are computed anyhow
    may be there, and whole layers or heads that the model does not have are said (`unused`).
    """
    parts = dict(model.named_modules())
    for key in unexpected:
        path = key.split(".")
        if f".{key}".endswith(tuple(f".{name}" for name in COMPUTED)):
            continue
        for beginning in ((), (model.base_model_prefix,)):
            above = (".".join((*beginning, *path[:end])) for end in range(len(path) - 1, 0, -1))
            part = next((one for one in above if one in parts), "")
            if any(piece.isdigit() for piece in part.split(".")) or any(
                True for _ in parts[part].parameters(recurse=False)
            ):
                raise MannersError(
                    f"{name} holds {key}, for which the model that its config.json describes ({type(model).__name__})"
                    f" has no place in its {part}: without it, it is another model; correct config.json, or name the"
                    " folder that the model came in"
                )


def quantised(name: str, holds: str) -> MannersError:
    """Return the refusal of a model whose weights are stored in few bits."""
    return MannersError(
        f"{name} holds {holds}, which can be neither trained nor cut here; name the model that it was quantised from,"
        " or a .gguf file, which is dequantised"
    )


def unused(unexpected: Iterable[str]) -> str:
    """Say which tensors of a model's files play no part, by what their names begin with; nothing where there is none.

    A value head of another trainer, or the part of a model that looks at pictures.
    """
    names = sorted(unexpected)
    parts = sorted({_beginning(name) for name in names})
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"not used of its files: {', '.join(parts[:3])}{more} ({len(names)} tensors)" if names else ""


def _beginning(name: str) -> str:
    """Return the first two pieces of a tensor's name, or those up to the number of its layer."""
    pieces = name.split(".")
    number = next((at for at, piece in enumerate(pieces) if piece.isdigit()), 1)
    return ".".join(pieces[: number + 1])
