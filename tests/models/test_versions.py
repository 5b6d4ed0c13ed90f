"""Versions come back bit for bit, refuse what they do not fit, and export to plain transformers."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch, ScalarBranch, set_trainable
from manners.models.pretrained import Pretrained
from manners.models.trunk import grow_trunk
from manners.models.versions import Version
from manners.reward import stored
from manners.reward.ensemble import RewardModel
from manners.text import Rendered, Renderer, collate
from manners.types import FinishReason, Response, Role, Turn, VersionKind
from manners.workspace import INITIAL, Workspace
from tests.worlds import EOS, NO_SYSTEM_TEMPLATE, bare_tokenizer, tiny_model, tiny_pretrained

EXCHANGES = [
    ("Hi!", "Hello! How can I help you today?", FinishReason.STOP),
    ("How do I bake bread, and how long does it take?", "Wait!!", FinishReason.LENGTH),
    ("Why?", "", FinishReason.STOP),
]
"""A short one, one that is cut off, and an empty one."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "work")


def version_of(pretrained: Pretrained, name: str, kind: VersionKind) -> Version:
    return Version(
        name=name,
        kind=kind,
        base=pretrained.name,
        trunk_hash=pretrained.trunk.hash,
        cut=pretrained.trunk.cut,
        template_hash=pretrained.renderer.template_hash,
        dtype="float32",
        created_at="2025-01-01T00:00:00+00:00",
        watermark=17,
        metrics={"kl": 1.5},
    )


def trained(branch: Branch, seed: int = 0) -> Branch:
    """Move every own parameter somewhere else, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in set_trainable([branch]):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return branch


def reward_model(pretrained: Pretrained) -> RewardModel:
    members = []
    for seed in (1, 2):
        member = ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(seed))
        trained(member, seed)
        members.append(member)
    return RewardModel(tuple(members), shifts=(0.7, -0.4), scale=1.7)


def save_policy(workspace: Workspace, pretrained: Pretrained, name: str = "policy-1") -> Branch:
    policy = trained(Branch(pretrained.trunk, trainable=True))
    versions.save(workspace, version_of(pretrained, name, VersionKind.POLICY), [policy])
    return policy


def rendered(pretrained: Pretrained) -> list[Rendered]:
    return [
        pretrained.renderer.render((Turn(Role.USER, prompt),), Response(answer, "me", reason))
        for prompt, answer, reason in EXCHANGES
    ]


@torch.no_grad()
def scores(reward: RewardModel, pretrained: Pretrained) -> Tensor:
    batch = collate(rendered(pretrained), pretrained.renderer.pad_id)
    return reward.score(pretrained.trunk.states(batch), batch).members


# Kept


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
def test_a_policy_comes_back_bit_for_bit_with_its_description(
    workspace: Workspace, layers: int | Literal["all"], rank: int | None
) -> None:
    pretrained = tiny_pretrained(trainable_layers=layers, lora_rank=rank)
    policy = save_policy(workspace, pretrained)
    again = versions.load_policy(workspace, "policy-1", tiny_pretrained(trainable_layers=layers, lora_rank=rank))
    stored = dict(again.named_parameters())
    assert all(torch.equal(t, stored[name]) for name, t in policy.own_tensors().items())
    assert not set_trainable([again])
    assert versions.describe(workspace, "policy-1") == version_of(pretrained, "policy-1", VersionKind.POLICY)


def test_a_version_stores_its_own_layers_only(workspace: Workspace) -> None:
    pretrained = tiny_pretrained(trainable_layers=1)
    save_policy(workspace, pretrained)
    size = (workspace.models / "policy-1" / "branch-0.safetensors").stat().st_size
    assert size < 0.4 * 4 * pretrained.parameters


def test_the_initial_version_is_the_base_model_itself(workspace: Workspace) -> None:
    pretrained = tiny_pretrained()
    initial = versions.load_policy(workspace, INITIAL, pretrained)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = pretrained.trunk.whole(input_ids=ids).logits
        assert torch.equal(initial.assembled(pretrained.trunk)(input_ids=ids).logits, whole)


def test_a_reward_model_comes_back_with_its_shifts_and_scale(workspace: Workspace) -> None:
    pretrained = tiny_pretrained()
    reward = reward_model(pretrained)
    version = version_of(pretrained, "reward-1", VersionKind.REWARD)
    versions.save(workspace, replace(version, shifts=reward.shifts, scale=reward.scale), reward.members)
    again = stored.load_reward(workspace, "reward-1", pretrained)
    assert (again.shifts, again.scale) == (reward.shifts, reward.scale)
    assert torch.equal(scores(again, pretrained), scores(reward, pretrained))


def test_names_are_in_order_of_number_and_the_latest_is_the_highest(workspace: Workspace) -> None:
    with pytest.raises(MannersError, match=r"no policy version .* yet; run `manners ppo` first"):
        versions.latest(workspace, VersionKind.POLICY)
    pretrained = tiny_pretrained()
    for name in ("policy-10", "policy-9", "policy-backup"):
        save_policy(workspace, pretrained, name)
    assert versions.names(workspace, VersionKind.POLICY) == ["policy-9", "policy-10"]
    assert versions.latest(workspace, VersionKind.POLICY) == "policy-10"
    with pytest.raises(MannersError, match="run `manners reward` first"):
        versions.latest(workspace, VersionKind.REWARD)


# Refused


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: tiny_pretrained(seed=1), "trained above another trunk"),
        (lambda: tiny_pretrained(trainable_layers=1), "cut 2.*than the one loaded.*cut 3"),
        (lambda: tiny_pretrained(lora_rank=3), "trained above another trunk.*model.lora_rank"),
        (lambda: tiny_pretrained("mistral"), "trained above another trunk"),
        (lambda: tiny_pretrained(chat_template=NO_SYSTEM_TEMPLATE), "trained with chat template"),
        (lambda: tiny_pretrained(chat_template=None), "trained with chat template"),
    ],
    ids=["trunk", "cut", "adapters", "architecture", "template", "no template"],
)
def test_a_version_of_another_trunk_cut_or_template_is_refused(
    workspace: Workspace, other: object, reason: str
) -> None:
    save_policy(workspace, tiny_pretrained())
    assert callable(other)
    with pytest.raises(MannersError, match=reason):
        versions.load_policy(workspace, "policy-1", other())


def test_an_unknown_version_is_refused_with_those_there_are(workspace: Workspace) -> None:
    with pytest.raises(MannersError, match=r"no version policy-7 in .* \(there are: none yet\)"):
        versions.describe(workspace, "policy-7")
    pretrained = tiny_pretrained()
    save_policy(workspace, pretrained)
    with pytest.raises(MannersError, match=r"there are: policy-1"):
        versions.load_policy(workspace, "policy-7", pretrained)
    with pytest.raises(MannersError, match="policy-1 is a policy version where a reward version is needed"):
        stored.load_reward(workspace, "policy-1", pretrained)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_file_of_tensors_is_refused_by_name(workspace: Workspace, keep: int) -> None:
    pretrained = tiny_pretrained()
    save_policy(workspace, pretrained)
    file = workspace.models / "policy-1" / "branch-0.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MannersError, match=r"branch-0\.safetensors is damaged"):
        versions.load_policy(workspace, "policy-1", pretrained)
    file.unlink()
    with pytest.raises(MannersError, match=r"branch-0\.safetensors is damaged"):
        versions.load_policy(workspace, "policy-1", pretrained)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "policy"}', '{"kind": "cook", "shifts": []}'])
def test_a_damaged_description_is_refused_by_name(workspace: Workspace, content: str) -> None:
    save_policy(workspace, tiny_pretrained())
    (workspace.models / "policy-1" / "version.json").write_text(content, encoding="utf-8")
    with pytest.raises(MannersError, match=r"version\.json is damaged"):
        versions.describe(workspace, "policy-1")


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors be written half way, and then fail as a full disk does."""

    def half(tensors: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(versions, "save_file", half)


def test_a_full_disk_leaves_nothing_half_written_and_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = tiny_pretrained()
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(MannersError, match=r"no space left .* nothing was written"):
            save_policy(workspace, pretrained)
    assert not list(workspace.models.iterdir())
    save_policy(workspace, pretrained)  # and with space it works, under the same name
    assert [f.name for f in workspace.models.iterdir()] == ["policy-1"]


# Exported


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "gemma2"])
@torch.no_grad()
def test_an_exported_policy_has_the_same_logprobs_in_plain_transformers(
    tmp_path: Path, model_type: str, layers: int | Literal["all"], rank: int | None
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=rank)
    policy = trained(Branch(pretrained.trunk, trainable=True))
    versions.export_policy(policy, pretrained, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == pretrained.tokenizer.chat_template

    sequences = rendered(pretrained)
    batch = collate(sequences, pretrained.renderer.pad_id)
    ours = policy.logprobs(policy.hidden(pretrained.trunk.states(batch), batch), batch, 1.0)
    for row, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        start = len(sequence.prompt_ids)
        every = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        theirs = every[torch.arange(start - 1, sequence.length - 1), ids[0, start:]]
        torch.testing.assert_close(ours[row, : len(theirs)], theirs, atol=1e-4, rtol=1e-4)
        before = torch.log_softmax(pretrained.trunk.whole(input_ids=ids).logits[0], dim=-1)
        assert (before - every).abs().max() > 0.01  # what was trained is in it


def exported_scores(
    folder: Path, sequences: list[Rendered], side: str, position_ids: bool = False
) -> tuple[Tensor, float]:
    """Score ids, padded by the exported tokenizer, with nothing but transformers; and the stated shift."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [list(s.prompt_ids + s.response_ids) for s in sequences]
    batch = tokenizer.pad({"input_ids": ids}, padding=True, padding_side=side, return_tensors="pt")
    more = {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)} if position_ids else {}
    with torch.no_grad():
        return model(**batch, **more).logits.squeeze(1), float(model.config.manners_shift)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "gemma2"])
@pytest.mark.parametrize("member", [0, 1])
def test_an_exported_reward_model_scores_padded_batches_the_same_up_to_the_stated_shift(
    tmp_path: Path, model_type: str, layers: int | Literal["all"], rank: int | None, member: int
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=rank)
    reward = reward_model(pretrained)
    shift = stored.export_reward(reward, member, pretrained, tmp_path / "out")
    assert shift == pytest.approx(reward.shifts[member] / reward.scale)
    ours = scores(reward, pretrained)[member]
    assert ours.std() > 0.005
    for side in ("right", "left"):
        # Position tables count from the left edge unless told otherwise.
        theirs, stated = exported_scores(tmp_path / "out", rendered(pretrained), side, model_type == "gpt2")
        torch.testing.assert_close(theirs - stated, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@torch.no_grad()
def test_the_exported_average_is_the_model_with_the_mean_of_the_members_weights(
    tmp_path: Path, model_type: str, layers: int | Literal["all"], rank: int | None
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=rank)
    members = tuple(ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    for seed, member in enumerate(members):
        trained(member, seed)
    reward = RewardModel(members, (0.7, -0.4, 0.3), 1.7)
    sequences = rendered(pretrained)
    shift = stored.export_reward(reward, "average", pretrained, tmp_path / "out", sequences)
    logits, stated = exported_scores(tmp_path / "out", sequences, "right")
    assert shift == stated == pytest.approx(float(logits.mean()), abs=1e-5)
    assert float((logits - stated).mean()) == pytest.approx(0, abs=1e-5)

    # By hand: the mean of whole models, adapters merged; the head's mean too, with the scale folded in.
    whole = members[0].assembled(pretrained.trunk)
    states = [member.assembled(pretrained.trunk).state_dict() for member in members]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    plain = type(whole)(whole.config).eval()
    plain.load_state_dict(mean)
    head = torch.stack([member.scalar.weight for member in reward.members]).mean(dim=0) / 1.7
    for row, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        final = plain.base_model(input_ids=ids).last_hidden_state[0, -1]
        torch.testing.assert_close(logits[row], (final @ head.T)[0], atol=1e-4, rtol=1e-4)
    if rank is None:  # the same as averaging what the members own
        own = [member.own_tensors() for member in members]
        branch = ScalarBranch(pretrained.trunk, None)
        branch.load_tensors({name: torch.stack([tensors[name] for tensors in own]).mean(dim=0) for name in own[0]})
        theirs = scores(RewardModel((branch,), (shift * 1.7,), 1.7), pretrained)[0]
        torch.testing.assert_close(logits - shift, theirs, atol=1e-4, rtol=1e-4)
    mean_of_scores = scores(reward, pretrained).mean(dim=0)
    assert not torch.allclose(logits, mean_of_scores, atol=1e-3), "one model is not an ensemble"

    unmeasured = stored.export_reward(reward, "average", pretrained, tmp_path / "more")
    assert unmeasured == pytest.approx(0.2 / 1.7)


@torch.no_grad()
def test_texts_laid_out_by_the_exported_tokenizer_score_as_ours(tmp_path: Path) -> None:
    pretrained = tiny_pretrained()
    reward = reward_model(pretrained)
    shift = stored.export_reward(reward, 0, pretrained, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    finished = [row for row, (_, _, reason) in enumerate(EXCHANGES) if reason is FinishReason.STOP]
    talks = [
        [{"role": "user", "content": EXCHANGES[row][0]}, {"role": "assistant", "content": EXCHANGES[row][1]}]
        for row in finished
    ]
    texts = [str(tokenizer.apply_chat_template(talk, tokenize=False)).rstrip() for talk in talks]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    theirs = model(**batch).logits.squeeze(1) - shift
    torch.testing.assert_close(theirs, scores(reward, pretrained)[0][finished], atol=1e-4, rtol=1e-4)


def test_a_tokenizer_without_a_spare_token_gets_one_for_padding_and_texts_stay_the_same(tmp_path: Path) -> None:
    tokenizer = bare_tokenizer()
    trunk = grow_trunk(tiny_model("gpt2", pad_token_id=EOS), 2)
    pretrained = Pretrained("bare", trunk, Renderer(tokenizer, frozenset([tokenizer.eos_token_id]), 256), "")
    reward = reward_model(pretrained)
    stored.export_reward(reward, 0, pretrained, tmp_path / "out")
    theirs, shift = exported_scores(tmp_path / "out", rendered(pretrained), "right")
    torch.testing.assert_close(theirs - shift, scores(reward, pretrained)[0], atol=1e-4, rtol=1e-4)
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    everything = "".join(chr(i) for i in range(32, 1024))
    assert exported.encode(everything) == bare_tokenizer().encode(everything)
    assert exported.padding_side == "right"
    assert tokenizer.pad_token is None  # ours is left alone


def test_what_transformers_cannot_score_is_refused_and_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    pretrained = tiny_pretrained("cohere")
    with pytest.raises(MannersError, match="no sequence classification for cohere"):
        stored.export_reward(reward_model(pretrained), 0, pretrained, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(MannersError, match="exists already"):
        versions.export_policy(Branch(pretrained.trunk, trainable=False), pretrained, tmp_path / "out")
