"""Any version of a workspace as a whole model: the initial model of what follows, or one side of a comparison.

model.name = "pretrain-1"   a folder of its own, read as any folder is
model.name = "sft-1"        its branch, on the trunk of what it grew on: that is read first, in the same way
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from manners.errors import MannersError
from manners.models import paper, pretrained, versions
from manners.models.branches import Branch
from manners.models.described import NUMBERED
from manners.models.found import Found
from manners.models.paper import Outline
from manners.models.pretrained import Pretrained
from manners.models.trunk import grow_trunk
from manners.models.versions import Version
from manners.settings import ModelSettings
from manners.settings_load import from_dict
from manners.templates import CHATML
from manners.types import VersionKind
from manners.workspace import Workspace


def load(settings: ModelSettings, workspace: Workspace, otherwise: str | None = None) -> Pretrained:
    """Load the model that the settings name, a version of the workspace before anything else; see `pretrained.load`."""
    asked = _chosen_once(workspace, settings)
    loaded = pretrained.load(asked, partial(versions.day, workspace), partial(find, workspace), otherwise)
    if asked == settings:
        return loaded
    said = f"model.chat_template and model.template_arguments have made the template of {settings.name} already"
    return replace(loaded, chosen=settings, note="; ".join(note for note in (loaded.note, said) if note))


def as_initial(workspace: Workspace, version: str, settings: ModelSettings) -> Pretrained:
    """Load a version as a whole model of its own, uncut, laid out by its own template."""
    alone = replace(settings, name=version, trainable_layers="all", lora_rank=None)
    return load(replace(alone, chat_template=None, template_arguments={}), workspace)


def find(workspace: Workspace, name: str, dtype: torch.dtype, above: tuple[str, ...] = ()) -> Found:
    """Read a model by the name that people give it; `above` are the versions that are being read on top of it.

    Raises MannersError for a name of a version that is not there, for a reward model, and where a version is damaged,
    stands above itself, or what it grew on is not any more what it was.
    """
    if not is_version(workspace, name):
        return pretrained.find(name, dtype)
    version = versions.describe(workspace, name)
    if name in above:
        circle = " above ".join((*above[above.index(name) :], name))
        raise MannersError(f"{name} stands above itself ({circle}): its version.json was changed; use another version")
    if version.kind is VersionKind.REWARD:
        raise MannersError(f"{name} is a reward model, which scores and writes nothing: set model.name to another")
    if version.kind is VersionKind.PRETRAIN:
        found = pretrained.find(str(workspace.models / name), dtype)
        return replace(found, notes=(f"{name} of this workspace", *found.notes))
    return _assembled(workspace, version, above)


def outline(workspace: Workspace, name: str) -> Outline:
    """Return what is known of a model before its weights are read: of a branch what it grew on, which has its sizes."""
    seen = [name]
    while is_version(workspace, name):
        version = versions.describe(workspace, name)
        if version.kind is VersionKind.PRETRAIN:
            return paper.outline(str(workspace.models / name))
        name = version.base
        if name in seen:
            raise MannersError(f"{seen[0]} stands above itself ({' above '.join((*seen, name))}); use another version")
        seen.append(name)
    return paper.outline(name)


def is_version(workspace: Workspace, name: str) -> bool:
    """Return whether a name is a version's; a folder called like one that is not there is a folder."""
    if not NUMBERED.fullmatch(name):
        return False
    return (workspace.models / name).exists() or not Path(name).exists()


def _chosen_once(workspace: Workspace, settings: ModelSettings) -> ModelSettings:
    """Leave out what made the template of the version that the settings name: laid down there, it reads it no more.

    ChatML and a file are the whole template, then and now.
    """
    wanted = settings.chat_template
    nothing = wanted is None and not settings.template_arguments
    whole_template = wanted is not None and (wanted == CHATML or Path(wanted).expanduser().is_file())
    if nothing or whole_template or not is_version(workspace, settings.name):
        return settings
    version = versions.describe(workspace, settings.name)
    was = from_dict(version.settings).model
    same = (was.chat_template, was.template_arguments) == (wanted, settings.template_arguments)
    if version.kind is VersionKind.PRETRAIN or not same:
        return settings
    return replace(settings, chat_template=None, template_arguments={})


def _assembled(workspace: Workspace, version: Version, above: tuple[str, ...]) -> Found:
    """Read what a branch grew on, as it was read then, and put the branch in its place."""
    chosen = replace(from_dict(version.settings).model, name=version.base)
    try:
        base = find(workspace, version.base, getattr(torch, chosen.dtype), (*above, version.name))
    except MannersError as error:
        said = str(error)
        raise MannersError(
            said if version.name in said else f"{version.name} grew on {version.base}, which fails: {said}"
        ) from error
    base, template = pretrained.laid_out(base, _chosen_once(workspace, chosen), partial(versions.day, workspace))
    for parameter in base.model.parameters():
        parameter.data = parameter.data.to(getattr(torch, chosen.dtype))
    trunk = grow_trunk(base.model, chosen.trainable_layers, chosen.lora_rank)
    versions.check_trunk(workspace, version, trunk, version.base)
    branch = Branch(trunk, trainable=True)
    versions.fill(branch, workspace.models / version.name / "branch-0.safetensors")
    if not template.plain:
        base.tokenizer.chat_template = version.template or template.text
    notes = (f"{version.name} above {version.base}", *base.notes)
    return replace(base, model=branch.assembled(trunk), notes=notes, added=())
