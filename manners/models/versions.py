"""Model versions: a folder with the tensors of its branches, and a description that says what they fit.

models/policy-1/version.json          kind, base model, trunk hash, cut, template, settings, metrics, parent, watermark
models/policy-1/branch-0.safetensors  its trained layers only; the trunk is the base model's
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models.branches import Branch
from manners.models.described import NAME as NAME
from manners.models.described import Version as Version
from manners.models.described import describe as describe
from manners.models.described import grew_elsewhere as grew_elsewhere
from manners.models.described import latest as latest
from manners.models.described import names as names
from manners.models.described import teacher_of
from manners.models.pretrained import Pretrained
from manners.models.saving import save_whole
from manners.models.surgery import in_format
from manners.models.trunk import Trunk
from manners.templates import messages_of
from manners.text import Renderer
from manners.types import FinishReason, Response, Role, Turn, VersionKind
from manners.workspace import INITIAL, Workspace, atomic_folder, atomic_write


def save(
    workspace: Workspace,
    version: Version,
    branches: Sequence[Branch],
    beside: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> Path:
    """Write a version's folder, all of it or nothing; `beside` are more files of tensors, by name."""
    with atomic_folder(workspace.models / version.name) as draft:
        for index, branch in enumerate(branches):
            tensors = {name: t.cpu().contiguous() for name, t in branch.own_tensors().items()}
            save_file(tensors, draft / f"branch-{index}.safetensors")
        for name, more in beside.items():
            save_file(dict(more), draft / f"{name}.safetensors")
        write_description(version, draft)
    return workspace.models / version.name


def holds(workspace: Workspace, name: str, branches: Sequence[Branch]) -> bool:
    """Return whether a version's folder holds these branches, to the bit."""
    for index, branch in enumerate(branches):
        file = workspace.models / name / f"branch-{index}.safetensors"
        try:
            there = load_file(file)
        except (OSError, SafetensorError):
            return False
        own = branch.own_tensors()
        if own.keys() != there.keys() or not all(torch.equal(there[key], own[key].cpu()) for key in own):
            return False
    return True


def write_description(version: Version, draft: Path) -> None:
    """Write version.json into the folder that is to become the version's."""
    described = asdict(version)
    if version.start == INITIAL:
        del described["start"]  # as it was written before there was another: whoever reads it takes that default
    (draft / "version.json").write_text(json.dumps(described, indent=1, default=str) + "\n", encoding="utf-8")


def day(workspace: Workspace) -> date:
    """Return the date that a chat template of this workspace tells, which is the day on which one first asked."""
    file = workspace.models / "day"
    try:
        return date.fromisoformat(file.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        atomic_write(file, f"{date.today()}\n")
        return day(workspace)
    except ValueError as error:
        raise MannersError(f"{file} is damaged ({error}): write the date that version.json shows there") from error


def reward_of(workspace: Workspace, policy: str) -> str | None:
    """Return the reward model that a policy was trained against; the newest one for a policy that does not say.

    None for a policy that was trained without one where there is none.
    """
    found = describe(workspace, policy)
    if found.reward or found.method == "ppo" or names(workspace, VersionKind.REWARD):
        return teacher_of(workspace, policy)
    return None


def load_policy(
    workspace: Workspace, name: str, pretrained: Pretrained, kind: VersionKind = VersionKind.POLICY
) -> Branch:
    """Load a policy branch onto the trunk it was trained above; `initial` is the base model itself."""
    if name == INITIAL:
        return Branch(pretrained.trunk, trainable=False)
    version = fitting(workspace, name, kind, pretrained)
    branch = Branch(pretrained.trunk, trainable=True)
    fill(branch, workspace.models / version.name / "branch-0.safetensors")
    return branch


def fill(branch: Branch, file: Path) -> None:
    """Load a frozen branch from its file; raises MannersError where that is damaged or of another model."""
    try:
        tensors = load_file(file)
        if strange := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise ValueError(f"{strange[0]} holds what is no number")
        branch.load_tensors(tensors)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise MannersError(f"{file} is damaged or of another model ({error}); use another version") from error
    branch.requires_grad_(False)


def fitting(workspace: Workspace, name: str, kind: VersionKind, pretrained: Pretrained) -> Version:
    """Read a version's description; raises MannersError for one of another kind, model, trunk, cut or template."""
    version = describe(workspace, name)
    if version.kind is not kind:
        phase = version.kind in (VersionKind.PRETRAIN, VersionKind.SFT)
        remedy = f'; set model.name = "{name}" to go on from it' if phase else ""
        raise MannersError(f"{name} is a {version.kind} version where a {kind} version is needed{remedy}")
    check_trunk(workspace, version, pretrained.trunk, pretrained.name)
    if version.template_hash != pretrained.renderer.template_hash:
        raise MannersError(
            f"{name} was trained with chat template {version.template_hash}, the model now has"
            f" {pretrained.renderer.template_hash}; restore the template or train anew"
        )
    if version.template not in ("", pretrained.renderer.template.text):
        raise MannersError(
            f"{name} was trained with a chat template that tells another date than {pretrained.renderer.template.day};"
            f" write its date, as {name}/version.json shows it, into {workspace.models / 'day'}"
        )
    return version


def check_trunk(workspace: Workspace, version: Version, trunk: Trunk, model: str) -> None:
    """Raise MannersError where a version grew on another model than `model`, or above another cut of it.

    Two models may share a trunk, as an SFT version and what it grew on do: what grew on the one is not the other's.
    """
    if (version.trunk_hash, version.cut) != (trunk.hash, trunk.cut):
        raise MannersError(
            f"{version.name} was trained above another trunk (base {version.base}, cut {version.cut}) than the one"
            f" loaded ({model}, cut {trunk.cut}); set model.name, model.trainable_layers and model.lora_rank as they"
            " were, or train anew"
        )
    said = version.model_hash
    if said != trunk.initial_hash if said else grew_elsewhere(workspace, version, model):
        raise MannersError(
            f"{version.name} grew on {version.base}, and the model is {model} now, which has the same lower layers and"
            f' is another one: set model.name = "{version.base}", as it was, or train anew; `manners models rollback`'
            " takes back a policy that was promoted"
        )


def export_policy(
    branch: Branch,
    pretrained: Pretrained,
    folder: Path,
    dtype: torch.dtype | None = None,
    temperature: float = 1.0,
) -> torch.dtype:
    """Write the merged model and tokenizer, for plain `AutoModelForCausalLM.from_pretrained`; return its number format.

    That is the one in which the initial model's maker keeps it, unless `dtype` says another. Its `generate` says what
    is said here, at this temperature: it draws from all tokens but those without text, and the same ones end an answer.
    Its chat template is the one that dialogues were laid out with, the plain layout included.
    """
    model = branch.assembled(pretrained.trunk, exact=True)
    if model.generation_config is not None:
        model.generation_config = _drawing(model.generation_config, pretrained, temperature)
    dtype = dtype or pretrained.stored
    save_whole(in_format(model, dtype), exported_tokenizer(pretrained.renderer), folder)
    return dtype


def _drawing(base: GenerationConfig, pretrained: Pretrained, temperature: float) -> GenerationConfig:
    """Return settings by which `generate` draws as is done here; of the base's the tokens and the lengths stay.

    Whatever else its maker chose (top-k, penalties, words that are forced or forbidden) makes another policy of it.
    """
    kept = ("bos_token_id", "pad_token_id", "max_length", "max_new_tokens")
    return GenerationConfig(
        **{name: getattr(base, name, None) for name in kept},
        eos_token_id=sorted(pretrained.renderer.end_ids),
        suppress_tokens=pretrained.trunk.vocabulary.unseen.tolist() or None,
        do_sample=True,
        temperature=temperature,
        top_k=0,  # where none is named, transformers takes 50
        top_p=1.0,
        repetition_penalty=1.0,
    )


def exported_tokenizer(renderer: Renderer, scoring: bool = False) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer that lays dialogues out in plain transformers as is done here.

    With `scoring` also the answer at their end (`Template.scoring`), behind a space where the tokenizer puts one before
    every text.
    """
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.chat_template = renderer.template.text
    if scoring:
        end = str(tokenizer.convert_ids_to_tokens(renderer.end_id))
        prompt, answer = (Turn(Role.USER, "So?"),), "So"
        wanted = [i for ids in renderer.whole(prompt, Response(answer, "", FinishReason.STOP)) for i in ids]
        templates = [renderer.template.scoring(between, end) for between in (" ", "")]
        for template in templates:
            tokenizer.chat_template = template
            messages = messages_of((*prompt, Turn(Role.ASSISTANT, answer)))
            if tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False) == wanted:
                break
        else:
            print(
                "in plain transformers this tokenizer joins the beginning of an answer with what its prompt ends with:"
                " scores of the export are not quite those of `manners score`",
                file=sys.stderr,
            )
    return tokenizer
