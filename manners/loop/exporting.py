"""A version taken elsewhere: as a folder for plain transformers, as an adapter for peft, or as a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.reward import reference_answers
from manners.loop.session import Session
from manners.models import gguf_file, lora_folder, versions
from manners.models.gguf_file import Kind
from manners.reward import stored
from manners.settings import Settings
from manners.settings_load import from_dict, load
from manners.types import VersionKind
from manners.workspace import INITIAL, Workspace, refuse_taken

Form = Literal["folder", "lora", "gguf"]
_FORMATS: dict[Kind, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export(
    workspace: Workspace,
    version: str,
    directory: Path | None,
    form: Form,
    kind: Kind | None,
    member: str | None,
    device: str | None = None,
) -> Facts:
    """Write a version into a new folder, `exported/VERSION` (and the form) where none is named, all of it or nothing.

    `kind` is the number format of its weights, that of the initial model's files where it is not said; of a reward
    model one member is written, or their `average`. `device` is where it is put together, by the workspace's settings
    of now where it is not said: the version may have been trained on a machine with another one.
    Raises MannersError for what a form cannot hold: a reward model, whole layers in an adapter, a family in GGUF.
    """
    described = versions.describe(workspace, version)
    chosen = _member(described, member)
    if kind == "q8_0" and form != "gguf":
        raise MannersError(f"q8_0 is a format of GGUF files, and none of --as {form}: add --as gguf, or use bf16")
    if form != "folder" and described.kind is VersionKind.REWARD:
        raise MannersError(
            f"{version} is a reward model, which scores and writes nothing: only --as folder can hold it"
        )
    directory = (directory or Path("exported") / (version if form == "folder" else f"{version}-{form}")).expanduser()
    _refuse_our_own(workspace, directory)
    refuse_taken(directory)  # before the model is loaded, which takes longer
    session = Session(workspace, _loads(described, device or load(workspace.toml).settings.model.device))
    number = kind or _kind_of(session.pretrained.stored)
    facts = {"version": version, "as": form, "directory": str(directory), "type": number}
    facts |= {"trained_in": session.settings.model.dtype}
    if described.kind is VersionKind.REWARD:
        return facts | _reward(session, described, directory, _FORMATS[number], chosen)
    itself = described.kind is VersionKind.PRETRAIN
    policy = versions.load_policy(workspace, INITIAL if itself else version, session.pretrained, described.kind)
    if form == "gguf":
        model, renderer = policy.assembled(session.pretrained.trunk, exact=True), session.pretrained.renderer
        written = gguf_file.write(model, renderer, directory, number, version, described.base)
        return facts | {
            "file": str(written.file),
            "bytes": written.bytes,
            "tensors": written.tensors,
            "tensors_in_f16_instead": written.f16,
            "pre_tokenizer": written.split,
            "rows_without_an_entry": written.spare,
            "loads_with": "llama.cpp",
        }
    if form == "lora":
        layers = lora_folder.write(policy, session.pretrained, directory, _FORMATS[number], version, described.base)
        return facts | {"base": described.base, "layers": layers, "loads_with": "peft.PeftModel"}
    temperature = session.settings.sample.temperature
    versions.export_policy(policy, session.pretrained, directory, _FORMATS[number], temperature)
    return facts | {"loads_with": "AutoModelForCausalLM"}


def _refuse_our_own(workspace: Workspace, directory: Path) -> None:
    """Refuse a folder among the versions or the runs, where it would be taken for one."""
    for ours in (workspace.models, workspace.runs):
        if directory.resolve().is_relative_to(ours.resolve()):
            raise MannersError(f"{directory} is in {ours}, which is for what manners keeps there: name another folder")


def _reward(
    session: Session,
    described: versions.Version,
    directory: Path,
    dtype: torch.dtype,
    chosen: int | Literal["average"],
) -> Facts:
    reward = stored.load_reward(session.workspace, described.name, session.pretrained)
    average = chosen == "average"
    reference = reference_answers(session, described.start, described.watermark) if average else []
    shift = stored.export_reward(reward, chosen, session.pretrained, directory, reference, dtype)
    facts: Facts = {"member": chosen, "shift": shift}
    if average:
        facts |= {"shift_measured_on": len(reference)}
    return facts | {"loads_with": "AutoModelForSequenceClassification", "score": "logit - shift"}


def _kind_of(dtype: torch.dtype) -> Kind:
    """Return the name of a number format, float32's for one that has none here."""
    for kind, known in _FORMATS.items():
        if known is dtype:
            return kind
    return "f32"


def _loads(described: versions.Version, device: str) -> Settings:
    """Return the settings by which the model of a version is loaded here: one that is a whole model is its own."""
    settings = from_dict(described.settings | {"model": described.settings.get("model", {}) | {"device": device}})
    if described.kind is not VersionKind.PRETRAIN:
        return settings
    return replace(settings, model=replace(settings.model, name=described.name))


def _member(described: versions.Version, member: str | None) -> int | Literal["average"]:
    """Return which member of a reward model is asked for, the first if it is not said; raises MannersError for none."""
    if member is not None and described.kind is not VersionKind.REWARD:
        what = "a policy" if described.kind is VersionKind.POLICY else f"of the kind {described.kind}"
        raise MannersError(f"{described.name} is {what}, which has no members: leave out --member")
    if member == "average":
        return "average"
    count = len(described.shifts)
    if member is not None and not (member.isascii() and member.isdecimal() and int(member) < count):
        raise MannersError(
            f"{described.name} has no member {member}: name one of 0 to {count - 1}, or `average`, with --member"
        )
    return int(member or 0)
