"""Reward models come back bit for bit, and score the same once they are exported to plain transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch, ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.trunk import grow_trunk
from manners.reward import stored
from manners.reward.ensemble import RewardModel
from manners.text import Rendered, Renderer, collate
from manners.types import FinishReason, VersionKind
from manners.workspace import Workspace
from tests.conftest import some
from tests.models.exchanges import EXCHANGES, rendered, trained, version_of
from tests.worlds import EOS, bare_tokenizer, tiny_model, tiny_pretrained


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "work")


def reward_model(pretrained: Pretrained) -> RewardModel:
    members = []
    for seed in (1, 2):
        member = ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(seed))
        trained(member, seed)
        members.append(member)
    return RewardModel(tuple(members), shifts=(0.7, -0.4), scales=(1.7, 0.9))


@torch.no_grad()
def scores(reward: RewardModel, pretrained: Pretrained) -> Tensor:
    batch = collate(rendered(pretrained), pretrained.renderer.pad_id)
    return reward.score(pretrained.trunk.states(batch), batch).members


def test_a_reward_model_comes_back_with_its_shifts_and_scales(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = tiny_pretrained()
    reward = reward_model(pretrained)
    version = version_of(pretrained, "reward-1", VersionKind.REWARD)
    versions.save(workspace, replace(version, shifts=reward.shifts, scale=reward.scales), reward.members)
    again = stored.load_reward(workspace, "reward-1", pretrained)
    assert (again.shifts, again.scales) == (reward.shifts, reward.scales)
    assert torch.equal(scores(again, pretrained), scores(reward, pretrained)) and again.witness is None
    witness = RewardModel(reward.members[:1], (0.3,), (2.0,))
    told = replace(version, name="reward-2", shifts=reward.shifts, scale=reward.scales, witness=(0.3, 2.0))
    versions.save(workspace, told, [*reward.members, *witness.members])
    again = stored.load_reward(workspace, "reward-2", pretrained)
    assert len(again.members) == 2 and again.witness is not None
    assert torch.equal(scores(again.witness, pretrained), scores(witness, pretrained))
    assert "older manners" not in capsys.readouterr().err


def test_one_of_before_scores_as_it_did_and_says_that_its_unit_is_another(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = tiny_pretrained()
    reward = reward_model(pretrained)
    version = version_of(pretrained, "reward-1", VersionKind.REWARD)
    versions.save(workspace, replace(version, shifts=reward.shifts, scale=1.7), reward.members)
    assert '"scale": 1.7' in (workspace.models / "reward-1" / "version.json").read_text(encoding="utf-8")
    again = stored.load_reward(workspace, "reward-1", pretrained)
    raw = scores(RewardModel(reward.members, (0.0, 0.0), (1.0, 1.0)), pretrained)
    assert torch.equal(scores(again, pretrained), (raw - torch.tensor([[0.7], [-0.4]])) / 1.7)
    assert "reward-1 was made by an older manners: its unit is the standard deviation of all" in capsys.readouterr().err


def test_a_policy_is_no_reward_model(workspace: Workspace) -> None:
    pretrained = tiny_pretrained()
    policy = trained(Branch(pretrained.trunk, trainable=True))
    versions.save(workspace, version_of(pretrained, "policy-1", VersionKind.POLICY), [policy])
    with pytest.raises(MannersError, match="policy-1 is a policy version where a reward version is needed"):
        stored.load_reward(workspace, "policy-1", pretrained)


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
@pytest.mark.parametrize("model_type", some(["llama", "qwen2", "gpt2", "gemma2"], 2))
@pytest.mark.parametrize("member", some([0, 1], 1))
def test_an_exported_reward_model_scores_padded_batches_the_same_up_to_the_stated_shift(
    tmp_path: Path, model_type: str, layers: int | Literal["all"], rank: int | None, member: int
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=rank)
    reward = reward_model(pretrained)
    shift = stored.export_reward(reward, member, pretrained, tmp_path / "out")
    assert shift == pytest.approx(reward.shifts[member] / reward.scales[member])
    ours = scores(reward, pretrained)[member]
    assert ours.std() > 0.005
    for side in ("right", "left"):
        # Position tables count from the left edge unless told otherwise.
        theirs, stated = exported_scores(tmp_path / "out", rendered(pretrained), side, model_type == "gpt2")
        torch.testing.assert_close(theirs - stated, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", some(["llama", "gpt2"], 1))
@torch.no_grad()
def test_the_exported_average_is_the_model_with_the_mean_of_the_members_weights(
    tmp_path: Path, model_type: str, layers: int | Literal["all"], rank: int | None
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=rank)
    members = tuple(ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    for seed, member in enumerate(members):
        trained(member, seed)
    reward = RewardModel(members, (0.7, -0.4, 0.3), (1.7, 0.9, 1.2))
    sequences = rendered(pretrained)
    shift = stored.export_reward(reward, "average", pretrained, tmp_path / "out", sequences)
    logits, stated = exported_scores(tmp_path / "out", sequences, "right")
    assert shift == stated == pytest.approx(float(logits.mean()), abs=1e-5)
    assert float((logits - stated).mean()) == pytest.approx(0, abs=1e-5)

    # By hand: the mean of whole models, adapters merged; the heads' mean too, each with its scale folded in.
    whole = members[0].assembled(pretrained.trunk)
    states = [member.assembled(pretrained.trunk).state_dict() for member in members]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    plain = type(whole)(whole.config).eval()
    plain.load_state_dict(mean)
    heads = zip(members, reward.scales, strict=True)
    head = torch.stack([member.scalar.weight / scale for member, scale in heads]).mean(dim=0)
    for row, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        final = plain.base_model(input_ids=ids).last_hidden_state[0, -1]
        torch.testing.assert_close(logits[row], (final @ head.T)[0], atol=1e-4, rtol=1e-4)
    if rank is None:  # the same as averaging what the members own
        own = [member.own_tensors() for member in members]
        branch = ScalarBranch(pretrained.trunk, None)
        branch.load_tensors({name: torch.stack([tensors[name] for tensors in own]).mean(dim=0) for name in own[0]})
        branch.scalar.weight.copy_(head)
        theirs = scores(RewardModel((branch,), (shift,), (1.0,)), pretrained)[0]
        torch.testing.assert_close(logits - shift, theirs, atol=1e-4, rtol=1e-4)
    mean_of_scores = scores(reward, pretrained).mean(dim=0)
    assert not torch.allclose(logits, mean_of_scores, atol=1e-3), "one model is not an ensemble"

    unmeasured = stored.export_reward(reward, "average", pretrained, tmp_path / "more")
    assert unmeasured == pytest.approx((0.7 / 1.7 - 0.4 / 0.9 + 0.3 / 1.2) / 3)


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


def test_an_exported_reward_model_takes_the_number_format_asked_for(tmp_path: Path) -> None:
    pretrained = replace(tiny_pretrained(), stored=torch.bfloat16)
    reward = reward_model(pretrained)
    ours = scores(reward, pretrained)[0]
    for asked, expected in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        stored.export_reward(reward, 0, pretrained, tmp_path / str(asked), dtype=asked)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(asked))
        assert model.dtype == expected
        theirs, shift = exported_scores(tmp_path / str(asked), rendered(pretrained), "right")
        error = float((theirs.float() - shift - ours).abs().max())
        assert error < (1e-4 if expected == torch.float32 else 0.1)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("asked", [torch.float32, torch.float16])
@pytest.mark.parametrize("member", [0, "average"])
@torch.no_grad()
def test_of_a_bfloat16_model_an_export_in_another_format_is_rounded_to_that_alone(
    tmp_path: Path, member: Literal[0, "average"], asked: torch.dtype, rank: int | None
) -> None:
    """Adapters merged, a mean of members and a head by its scale are no bfloat16 numbers."""
    pretrained = replace(tiny_pretrained(lora_rank=rank, dtype=torch.bfloat16), stored=torch.bfloat16)
    assert pretrained.trunk.whole.config.dtype == pretrained.trunk.whole.dtype == torch.bfloat16
    reward = reward_model(pretrained)
    stored.export_reward(reward, member, pretrained, tmp_path / "out", dtype=asked)
    found = load_file(tmp_path / "out" / "model.safetensors")
    which = range(2) if member == "average" else [0]
    heads = torch.stack([reward.members[k].scalar.weight.float() / reward.scales[k] for k in which]).mean(dim=0)
    states = [reward.members[k].assembled(pretrained.trunk, exact=True).base_model.state_dict() for k in which]
    expected = {f"model.{name}": torch.stack([s[name].float() for s in states]).mean(dim=0) for name in states[0]}
    expected["score.weight"] = heads
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert torch.equal(found[name], wanted.to(asked)), name
    finer = {name for name, wanted in expected.items() if not torch.equal(wanted, wanted.bfloat16().float())}
    assert ("score.weight" in finer) and (len(finer) > 1) == (rank is not None or member == "average")
