"""Reward models as versions: loaded onto the trunk they were trained above, and exported to plain transformers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models.branches import ScalarBranch
from manners.models.compute import bucket_tokens
from manners.models.pretrained import Pretrained
from manners.models.saving import save_whole
from manners.models.surgery import in_format
from manners.models.versions import exported_tokenizer, fill, fitting
from manners.reward.ensemble import Camps, RewardModel
from manners.text import Rendered, length_buckets
from manners.types import VersionKind
from manners.workspace import Workspace

CAMPS = "camps"
"""Name of a version's file with what camps of annotators want."""


def load_reward(workspace: Workspace, name: str, pretrained: Pretrained) -> RewardModel:
    """Load a reward model's members onto the trunk they were trained above; say so where its unit is an older one."""
    version = fitting(workspace, name, VersionKind.REWARD, pretrained)
    if isinstance(version.scale, float):
        print(
            f"{name} was made by an older manners: its unit is the standard deviation of all of the start version's"
            " answers, not that among answers to one prompt, and so is larger; `manners reward` makes a new one",
            file=sys.stderr,
        )
    members = []
    count = len(version.shifts)
    for index in range(count + (version.witness is not None)):
        member = ScalarBranch(pretrained.trunk, None)
        fill(member, workspace.models / version.name / f"branch-{index}.safetensors")
        members.append(member)
    witness = None
    if version.witness is not None:
        shift, scale = version.witness
        witness = RewardModel((members[count],), (shift,), (scale,))
    camps = _camps(workspace.models / version.name / f"{CAMPS}.safetensors", pretrained.trunk.width)
    return RewardModel(tuple(members[:count]), version.shifts, version.scales, witness, camps)


def _camps(file: Path, width: int) -> Camps | None:
    """Read the camps of annotators where there are any; raises MannersError where the file is damaged."""
    if not file.exists():
        return None
    try:
        found = Camps(**load_file(file))
        if found.directions.shape != (len(found.shares), width) or found.offsets.shape != found.shares.shape:
            raise ValueError("its shapes do not fit the model")
        if not all(bool(tensor.isfinite().all()) for tensor in vars(found).values()):
            raise ValueError("it holds what is no number")
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise MannersError(f"{file} is damaged or of another model ({error}); use another version") from error
    return found


def export_reward(
    reward: RewardModel,
    member: int | Literal["average"],
    pretrained: Pretrained,
    folder: Path,
    reference: Sequence[Rendered] = (),
    dtype: torch.dtype | None = None,
) -> float:
    """Write one member for plain `AutoModelForSequenceClassification.from_pretrained`; return the shift to subtract.

    That class has no bias: 1 / scale is folded into the head, and shift / scale is stored as `manners_shift` in the
    config. It finds a sequence's last token by the pad id, so tokenizer and config get one that ends nothing.

    Weights are in the number format of the initial model's files, unless `dtype` says another; a score is then as exact
    as that format is. Its chat template lays an answer out as it is scored here (`templates.Template.scoring`).

    `average` is one model with the mean of the members' weights, adapters merged and scales folded in. Its shift is its
    mean logit on `reference`, answers of the start version; where there are none, the mean of the members' shifts, each
    in its own units, stands for it.
    """
    trunk = pretrained.trunk
    tokenizer = _tokenizer_with_pad(pretrained)
    which = range(len(reward.members)) if member == "average" else [member]
    chosen = [reward.members[k] for k in which]
    shifts = [reward.shifts[k] / reward.scales[k] for k in which]
    config = type(trunk.whole.config).from_dict(trunk.whole.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = None  # one that is added has no row yet
    try:
        classifier = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError as error:
        raise MannersError(
            f"transformers has no sequence classification for {config.model_type}, so this reward model cannot be"
            " exported; export the policy, or score with `manners score`"
        ) from error
    states = [branch.assembled(trunk, exact=True).base_model.state_dict() for branch in chosen]
    classifier.base_model.load_state_dict(_mean(states))
    head = next(m for n, m in classifier.named_modules() if n in ("score", "classifier") and isinstance(m, nn.Linear))
    with torch.no_grad():
        heads = [reward.members[k].scalar.weight.float() / reward.scales[k] for k in which]
        head.weight.copy_(torch.stack(heads).mean(dim=0))
    if len(tokenizer) > config.vocab_size:
        classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier = in_format(classifier, dtype or pretrained.stored).eval()
    measured = member == "average" and len(reference) > 0
    shift = _mean_logit(classifier, reference) if measured else sum(shifts) / len(shifts)
    classifier.config.manners_shift = shift
    save_whole(classifier, tokenizer, folder)
    return shift


def _mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor, in float32; those that all share stay as they are, to the bit."""
    means = {}
    for name, first in states[0].items():
        every = [state[name] for state in states]
        shared = all(tensor.data_ptr() == first.data_ptr() for tensor in every)
        means[name] = first if shared else torch.stack([t.float() for t in every]).mean(dim=0)
    return means


@torch.no_grad()
def _mean_logit(classifier: PreTrainedModel, rendered: Sequence[Rendered]) -> float:
    """Return the mean score that a classifier gives to some responses, in plain transformers."""
    pad = classifier.config.pad_token_id
    total = 0.0
    for bucket in length_buckets([r.length for r in rendered], bucket_tokens(classifier.device)):
        ids = [torch.tensor(rendered[i].prompt_ids + rendered[i].response_ids) for i in bucket]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
        attend = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        logits = classifier(input_ids=padded, attention_mask=attend, use_cache=False).logits
        total += float(logits.float().sum())
    return total / len(rendered)


def _tokenizer_with_pad(pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """Copy the tokenizer, with a pad token that no text contains: a spare one, or else one that is added for this."""
    tokenizer = exported_tokenizer(pretrained.renderer, scoring=True)
    spare = tokenizer.added_tokens_decoder.get(pretrained.renderer.pad_id)
    tokenizer.add_special_tokens({"pad_token": "<|manners_pad|>" if spare is None else spare})
    tokenizer.padding_side = "right"  # where positions are right in every architecture
    return tokenizer
