"""Model versions: a folder with the tensors of its branches, and a description that says what they fit.

models/policy-1/version.json          kind, base model, trunk hash, cut, template, settings, metrics, parent, watermark
models/policy-1/branch-0.safetensors  its trained layers only; the trunk is the base model's
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models.branches import Branch, ScalarBranch
from manners.models.compute import bucket_tokens
from manners.models.pretrained import Pretrained, save_whole
from manners.reward.ensemble import RewardModel
from manners.text import Rendered, length_buckets
from manners.types import VersionKind
from manners.workspace import INITIAL, Workspace, atomic_folder


@dataclass(frozen=True)
class Version:
    """A version's description, as version.json holds it."""

    name: str
    kind: VersionKind
    base: str
    """The base model, as model.name gave it."""
    trunk_hash: str
    cut: int
    template_hash: str
    dtype: str
    created_at: str
    parent: str | None = None
    watermark: int | None = None
    """Highest id of a verdict that it learned from."""
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    shifts: tuple[float, ...] = ()
    """Reward models: each member's mean on the initial model's answers."""
    scale: float = 1.0
    """Reward models: standard deviation of their mean there."""


def save(workspace: Workspace, version: Version, branches: Sequence[Branch]) -> Path:
    """Write a version's folder, all of it or nothing."""
    with atomic_folder(workspace.models / version.name) as draft:
        for index, branch in enumerate(branches):
            tensors = {name: t.cpu().contiguous() for name, t in branch.own_tensors().items()}
            save_file(tensors, draft / f"branch-{index}.safetensors")
        (draft / "version.json").write_text(json.dumps(asdict(version), indent=1, default=str) + "\n", encoding="utf-8")
    return workspace.models / version.name


def describe(workspace: Workspace, name: str) -> Version:
    """Read a version's description; raises MannersError naming the versions there are."""
    file = workspace.models / name / "version.json"
    if not file.is_file():
        there = ", ".join(sorted(f.parent.name for f in workspace.models.glob("*/version.json"))) or "none yet"
        raise MannersError(f"there is no version {name} in {workspace.root} (there are: {there})")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return Version(**{**facts, "kind": VersionKind(facts["kind"]), "shifts": tuple(facts["shifts"])})
    except (ValueError, KeyError, TypeError) as error:
        raise MannersError(f"{file} is damaged ({error}); use another version") from error


def names(workspace: Workspace, kind: VersionKind) -> list[str]:
    """Versions of a kind, oldest first."""
    found = [f.parent.name.removeprefix(f"{kind}-") for f in workspace.models.glob(f"{kind}-*/version.json")]
    return [f"{kind}-{number}" for number in sorted(int(n) for n in found if n.isdecimal())]


def latest(workspace: Workspace, kind: VersionKind) -> str:
    """Return the newest version of a kind; raises MannersError saying which command makes one."""
    found = names(workspace, kind)
    if not found:
        command = "reward" if kind is VersionKind.REWARD else "ppo"
        raise MannersError(f"there is no {kind} version in {workspace.root} yet; run `manners {command}` first")
    return found[-1]


def reward_of(workspace: Workspace, policy: str) -> str:
    """Return the reward model that a policy was trained against; the newest one for a policy that does not say."""
    named = describe(workspace, policy).metrics.get("reward")
    return str(named) if named else latest(workspace, VersionKind.REWARD)


def load_policy(workspace: Workspace, name: str, pretrained: Pretrained) -> Branch:
    """Load a policy branch onto the trunk it was trained above; `initial` is the base model itself."""
    if name == INITIAL:
        return Branch(pretrained.trunk, trainable=False)
    version = _checked(workspace, name, VersionKind.POLICY, pretrained)
    branch = Branch(pretrained.trunk, trainable=True)
    _fill(branch, workspace.models / version.name / "branch-0.safetensors")
    return branch


def load_reward(workspace: Workspace, name: str, pretrained: Pretrained) -> RewardModel:
    """Load a reward model's members onto the trunk they were trained above."""
    version = _checked(workspace, name, VersionKind.REWARD, pretrained)
    members = []
    for index in range(len(version.shifts)):
        member = ScalarBranch(pretrained.trunk, None)
        _fill(member, workspace.models / version.name / f"branch-{index}.safetensors")
        members.append(member)
    return RewardModel(tuple(members), version.shifts, version.scale)


def _fill(branch: Branch, file: Path) -> None:
    try:
        branch.load_tensors(load_file(file))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise MannersError(f"{file} is damaged or of another model ({error}); use another version") from error
    branch.requires_grad_(False)


def _checked(workspace: Workspace, name: str, kind: VersionKind, pretrained: Pretrained) -> Version:
    """Refuse a version of another kind, trunk, cut or template."""
    version, trunk = describe(workspace, name), pretrained.trunk
    if version.kind is not kind:
        raise MannersError(f"{name} is a {version.kind} version where a {kind} version is needed")
    if (version.trunk_hash, version.cut) != (trunk.hash, trunk.cut):
        raise MannersError(
            f"{name} was trained above another trunk (base {version.base}, cut {version.cut}) than the one loaded"
            f" ({pretrained.name}, cut {trunk.cut}); set model.name, model.trainable_layers and model.lora_rank as they"
            " were, or train anew"
        )
    if version.template_hash != pretrained.renderer.template_hash:
        raise MannersError(
            f"{name} was trained with chat template {version.template_hash}, the model now has"
            f" {pretrained.renderer.template_hash}; restore the template or train anew"
        )
    return version


def export_policy(branch: Branch, pretrained: Pretrained, folder: Path) -> None:
    """Write the merged model and tokenizer, for plain `AutoModelForCausalLM.from_pretrained`."""
    save_whole(branch.assembled(pretrained.trunk), pretrained.tokenizer, folder)


def export_reward(
    reward: RewardModel,
    member: int | Literal["average"],
    pretrained: Pretrained,
    folder: Path,
    reference: Sequence[Rendered] = (),
) -> float:
    """Write one member for plain `AutoModelForSequenceClassification.from_pretrained`; return the shift to subtract.

    That class has no bias: 1 / scale is folded into the head, and shift / scale is stored as `manners_shift` in the
    config. It finds a sequence's last token by the pad id, so tokenizer and config get one that ends nothing.

    `average` is one model with the mean of the members' weights, adapters merged. Its shift is its mean logit on
    `reference`, answers of the initial model; where there are none, the mean of the members' shifts stands for it.
    """
    trunk, tokenizer = pretrained.trunk, _tokenizer_with_pad(pretrained)
    chosen = reward.members if member == "average" else (reward.members[member],)
    shifts = reward.shifts if member == "average" else (reward.shifts[member],)
    config = type(trunk.whole.config).from_dict(trunk.whole.config.to_dict())
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    try:
        classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise MannersError(
            f"transformers has no sequence classification for {config.model_type}, so this reward model cannot be"
            " exported; export the policy, or score with `manners score`"
        ) from error
    classifier.base_model.load_state_dict(_mean([b.assembled(trunk).base_model.state_dict() for b in chosen]))
    head = next(m for n, m in classifier.named_modules() if n in ("score", "classifier") and isinstance(m, nn.Linear))
    with torch.no_grad():
        head.weight.copy_(_mean([{"": b.scalar.weight} for b in chosen])[""] / reward.scale)
    if len(tokenizer) > config.vocab_size:
        classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    classifier.to(trunk.whole.dtype).eval()
    measured = member == "average" and len(reference) > 0
    shift = _mean_logit(classifier, reference) if measured else sum(shifts) / len(shifts) / reward.scale
    classifier.config.manners_shift = shift
    save_whole(classifier, tokenizer, folder)
    return shift


def _mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor; those that all share stay as they are, to the bit."""
    means = {}
    for name, first in states[0].items():
        every = [state[name] for state in states]
        shared = all(tensor.data_ptr() == first.data_ptr() for tensor in every)
        means[name] = first if shared else torch.stack([t.float() for t in every]).mean(dim=0).to(first.dtype)
    return means


@torch.no_grad()
def _mean_logit(classifier: PreTrainedModel, rendered: Sequence[Rendered]) -> float:
    """Return the mean score that a classifier gives to some responses, in plain transformers."""
    pad, total = classifier.config.pad_token_id, 0.0
    for bucket in length_buckets([r.length for r in rendered], bucket_tokens(classifier.device)):
        ids = [torch.tensor(rendered[i].prompt_ids + rendered[i].response_ids) for i in bucket]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
        attend = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        logits = classifier(input_ids=padded, attention_mask=attend, use_cache=False).logits
        total += float(logits.float().sum())
    return total / len(rendered)


def _tokenizer_with_pad(pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """Copy the tokenizer, with a pad token that no text contains: a spare one, or else one that is added for this."""
    tokenizer = copy.deepcopy(pretrained.tokenizer)
    spare = tokenizer.added_tokens_decoder.get(pretrained.renderer.pad_id)
    tokenizer.add_special_tokens({"pad_token": "<|manners_pad|>" if spare is None else spare})
    tokenizer.padding_side = "right"  # where positions are right in every architecture
    return tokenizer
