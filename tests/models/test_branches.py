"""What a branch owns and shares, and scores that depend on nothing but their own sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from manners.models import branches
from manners.models.branches import Branch, ScalarBranch, set_trainable
from manners.models.cost import own_bytes
from manners.models.decoder import Decoder
from manners.models.packing import pack
from manners.models.proof import proved
from manners.models.surgery import layer_list
from manners.models.trunk import Trunk, grow_trunk
from manners.text import Rendered, collate
from tests.worlds import tiny_model, with_compute

SEQUENCES = [Rendered((7, 8, 9), (10, 11)), Rendered((12,) * 9, (13,)), Rendered((14, 15), tuple(range(16, 28)))]


def storage(branch: torch.nn.Module) -> set[int]:
    return {p.data_ptr() for p in branch.parameters()}


def test_the_reference_shares_the_models_memory_and_a_trained_branch_does_not() -> None:
    trunk = grow_trunk(tiny_model(), 2)
    whole = storage(trunk.whole)
    reference, policy = Branch(trunk, trainable=False), Branch(trunk, trainable=True)
    assert storage(reference) <= whole
    own = {p.data_ptr() for p in set_trainable([policy])}
    assert own and own.isdisjoint(whole)
    assert storage(policy) - own <= whole  # the rest is shared
    assert not set_trainable([reference])
    assert own.isdisjoint(storage(Branch(trunk, trainable=True)))


@pytest.mark.parametrize("layers", [2, "all"])
def test_changing_a_branch_changes_neither_the_model_nor_another_branch(layers: int | Literal["all"]) -> None:
    trunk = grow_trunk(tiny_model(), layers)
    before = {name: p.clone() for name, p in trunk.whole.named_parameters()}
    other, policy = Branch(trunk, trainable=True), Branch(trunk, trainable=True)
    start = {name: t.clone() for name, t in other.own_tensors().items()}
    with torch.no_grad():
        for parameter in set_trainable([policy]):
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in trunk.whole.named_parameters())
    assert all(torch.equal(t, start[name]) for name, t in other.own_tensors().items())
    assert all(torch.equal(t, start[name] + 1.0) for name, t in policy.own_tensors().items())


@pytest.mark.parametrize("layers", [2, "all"])
def test_a_tied_head_stays_tied_and_is_frozen_unless_everything_is_trained(layers: int | Literal["all"]) -> None:
    trunk = grow_trunk(tiny_model("gemma", tie_word_embeddings=True), layers)
    policy = Branch(trunk, trainable=True)
    head = policy.assembled(trunk).get_output_embeddings().weight
    assert head is policy.assembled(trunk).get_input_embeddings().weight
    assert head.requires_grad is (layers == "all")
    assert (head.data_ptr() in storage(trunk.whole)) is (layers != "all")


@pytest.mark.parametrize("layers", [2, "all"])
def test_a_scalar_branch_owns_no_untied_head_and_the_plan_reckons_with_none(layers: int | Literal["all"]) -> None:
    trunk = grow_trunk(tiny_model("llama", tie_word_embeddings=False), layers)
    head = trunk.whole.get_output_embeddings().weight
    for member in (scalar_branch(trunk), ScalarBranch(trunk, None)):
        assert member.model.get_output_embeddings().weight is head and not head.requires_grad
        own = {p.data_ptr(): p.nbytes for p in member.parameters() if p.data_ptr() not in storage(trunk.whole)}
        assert sum(own.values()) == own_bytes(trunk, head=False) + member.scalar.weight.nbytes
    assert own_bytes(trunk, head=True) == own_bytes(trunk, head=False) + head.nbytes
    tied = grow_trunk(tiny_model("llama", tie_word_embeddings=True), layers)
    assert own_bytes(tied, head=True) == own_bytes(tied, head=False)


def test_scores_and_values_of_a_bfloat16_model_are_no_bfloat16_numbers() -> None:
    trunk = grow_trunk(torch.nn.Module.to(tiny_model(), dtype=torch.bfloat16), 2)
    branch, batch = scalar_branch(trunk), collate(SEQUENCES, 0)
    states = trunk.states(batch)
    for found in (branch.scores(states, batch), branch.values(states, batch)):
        assert found.dtype == torch.float32 and bool((found != found.bfloat16()).any())
    hidden = branch.final(states, batch)[batch.ends]
    assert hidden.dtype == torch.bfloat16
    by_hand = (hidden.double() @ branch.scalar.weight.double().T).squeeze(1)
    torch.testing.assert_close(branch.scores(states, batch).double(), by_hand, atol=1e-6, rtol=1e-5)
    assert own_tensors_of(branch) == {torch.bfloat16, torch.float32}


def own_tensors_of(branch: Branch) -> set[torch.dtype]:
    return {tensor.dtype for tensor in branch.own_tensors().values()}


def test_an_untied_head_is_trained() -> None:
    policy = Branch(grow_trunk(tiny_model("llama", tie_word_embeddings=False), 1), trainable=True)
    assert any(name.endswith("lm_head.weight") for name in policy.own_tensors())


def test_own_tensors_come_back_bit_for_bit_and_others_are_refused() -> None:
    trunk = grow_trunk(tiny_model(), 2)
    policy, other = Branch(trunk, trainable=True), Branch(trunk, trainable=True)
    with torch.no_grad():
        for parameter in set_trainable([policy]):
            parameter.mul_(1.5)
    other.load_tensors({name: t.clone() for name, t in policy.own_tensors().items()})
    assert all(torch.equal(t, other.own_tensors()[name]) for name, t in policy.own_tensors().items())
    with pytest.raises(KeyError, match="do not fit"):
        other.load_tensors({"strange": torch.zeros(1)})


def test_logprobs_are_the_models_own_at_the_temperature_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = grow_trunk(tiny_model("gemma2"), 2)
    batch, temperature = collate(SEQUENCES, 0), 0.7
    branch = Branch(trunk, trainable=False)
    with torch.no_grad():
        hidden = branch.hidden(trunk.states(batch), batch)
        logprobs = branch.logprobs(hidden, batch, temperature)
        monkeypatch.setattr(branches, "HEAD_CHUNK", 4)
        torch.testing.assert_close(branch.logprobs(hidden, batch, temperature), logprobs)
        assert (logprobs[~batch.keep] == 0).all()
        for row, r in enumerate(SEQUENCES):
            ids = torch.tensor([r.prompt_ids + r.response_ids])
            every = torch.log_softmax(trunk.whole(input_ids=ids).logits[0] / temperature, dim=-1)
            start = len(r.prompt_ids)
            expected = every[torch.arange(start - 1, r.length - 1), ids[0, start:]]
            torch.testing.assert_close(logprobs[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


def scalar_branch(trunk: Trunk) -> ScalarBranch:
    return ScalarBranch(trunk, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("layers", [2, "all"])
@torch.no_grad()
def test_scores_and_values_depend_on_their_own_sequence_only(model_type: str, layers: int | Literal["all"]) -> None:
    trunk = grow_trunk(tiny_model(model_type), layers)
    branch = scalar_branch(trunk)
    together = collate(SEQUENCES, 0)
    scores = branch.scores(trunk.states(together), together)
    values = branch.values(trunk.states(together), together)
    assert scores.std() > 0.01
    for row, sequence in enumerate(SEQUENCES):
        for beside in ([sequence], [sequence, Rendered((40,) * 30, (41,) * 20)]):
            batch = collate(beside, 77)  # another padding, another pad id
            states = trunk.states(batch)
            torch.testing.assert_close(branch.scores(states, batch)[0], scores[row], atol=1e-4, rtol=1e-4)
            count = len(sequence.response_ids)
            torch.testing.assert_close(
                branch.values(states, batch)[0, :count], values[row, :count], atol=1e-4, rtol=1e-4
            )


BEGINNING = tuple(range(50, 62))
BEGUN_ALIKE = [
    Rendered((*BEGINNING, 5), (7, 8, 9, 10)),
    Rendered((*BEGINNING, *range(20, 31)), (11,)),
    Rendered((*BEGINNING, 6, 7), (12, 13, 14)),
    Rendered((*BEGINNING, 6, 7), tuple(range(15, 24))),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lora_rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_what_all_prompts_begin_with_is_read_once_and_nothing_else_changes(
    model_type: str, layers: int | Literal["all"], lora_rank: int | None, packed: bool
) -> None:
    apart = grow_trunk(tiny_model(model_type), layers, lora_rank)
    batch = pack(BEGUN_ALIKE, share=True, pad_id=0) if packed else collate(BEGUN_ALIKE, pad_id=0)
    rows, columns = batch.ids.shape
    assert batch.common == 12 and rows == (3 if packed else 4)
    found = []
    for trunk in (apart, with_compute(apart, shares_prompts=True)):
        branch, read = scalar_branch(trunk), list[torch.Size]()
        parameters = set_trainable([branch])
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        layer_list(branch.model)[-1].register_forward_pre_hook(lambda _, given, read=read: read.append(given[0].shape))
        states = trunk.states(batch)
        scores = branch.scores(states, batch)
        gradients = torch.autograd.grad(scores.square().sum(), parameters, allow_unused=True)
        found.append((states[batch.ends], scores, gradients, sum(shape[0] * shape[1] for shape in read)))
    (states, scores, gradients, read_apart), (also, scores_also, gradients_also, read_once) = found
    assert (read_apart, read_once) == (rows * columns, rows * (columns - 12) + 12)
    torch.testing.assert_close(also, states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores_also, scores, atol=1e-5, rtol=1e-5)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    for gradient, again in zip(gradients, gradients_also, strict=True):
        assert (gradient is None) is (again is None)
        if gradient is not None and again is not None:
            torch.testing.assert_close(again, gradient, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_score_reads_the_last_kept_token_and_a_value_only_what_came_before_its_token() -> None:
    trunk = grow_trunk(tiny_model(), 2)
    branch = scalar_branch(trunk)
    first, second = Rendered((5, 6), (7, 8, 9)), Rendered((5, 6), (7, 8, 99))
    batch = collate([first, second], 0)
    states = trunk.states(batch)
    scores, values = branch.scores(states, batch), branch.values(states, batch)
    assert (scores[0] - scores[1]).abs() > 1e-3
    torch.testing.assert_close(values[0], values[1])
    hidden = trunk.whole.base_model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).last_hidden_state[0]
    by_hand = hidden @ branch.scalar.weight[0]
    torch.testing.assert_close(scores[0], by_hand[4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values[0], by_hand[1:4], atol=1e-4, rtol=1e-4)


def test_a_scalar_head_is_drawn_with_the_stated_deviation_or_zero_and_the_word_head_is_frozen() -> None:
    trunk = grow_trunk(tiny_model(hidden_size=64, head_dim=16), 2)
    heads = [ScalarBranch(trunk, torch.Generator().manual_seed(i)).scalar.weight for i in range(30)]
    assert torch.stack(heads).std().item() == pytest.approx(0.1 * 65**-0.5, rel=0.05)
    assert not torch.equal(heads[0], heads[1])
    value = ScalarBranch(trunk, None)
    assert not value.scalar.weight.any()
    assert "scalar.weight" in value.own_tensors()
    assert not any("lm_head" in name for name in value.own_tensors())


def test_gradients_reach_the_branch_through_given_states_and_nothing_below() -> None:
    trunk = grow_trunk(tiny_model(), 2)
    policy, batch = Branch(trunk, trainable=True), collate(SEQUENCES, 0)
    logprobs = policy.logprobs(policy.hidden(trunk.states(batch), batch), batch, 1.0)
    gradients = torch.autograd.grad(logprobs.sum(), set_trainable([policy]))
    assert all(bool(g.abs().sum() > 0) for g in gradients)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_layers_that_are_computed_again_keep_little_and_give_the_same_gradient(kind: str) -> None:
    trunk = proved(grow_trunk(tiny_model(kind), 3), 64)
    batch = collate(SEQUENCES, 0)
    found = []
    for recompute in (False, True):
        branch = ScalarBranch(replace(trunk, recompute=recompute), torch.Generator().manual_seed(0))
        branch._shares = False
        kept = dict[int, int]()

        def note(saved: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[saved.data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            scores = branch.scores(trunk.states(batch), batch)
        gradients = torch.autograd.grad((scores * torch.tensor([1.0, 2.0, 3.0])).sum(), set_trainable([branch]))
        found.append((scores, gradients, sum(kept.values()), sorted(branch.own_tensors())))
    (scores, gradients, much, names), (same, again, little, as_well) = found
    assert torch.equal(scores, same) and names == as_well
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))
    assert little < much / 3


def test_a_policy_that_computes_again_decodes_and_is_stored_as_any() -> None:
    trunk = replace(proved(grow_trunk(tiny_model(), 2), 64), recompute=True)
    policy, plain = Branch(trunk, trainable=True), Branch(replace(trunk, recompute=False), trainable=True)
    policy.load_tensors(plain.own_tensors())
    whole = policy.assembled(trunk)
    assert whole.state_dict().keys() == trunk.whole.state_dict().keys()
    decoder = Decoder(whole, trunk.compute, 0)
    decoder.seat(torch.zeros(0, dtype=torch.long), [(5, 6, 7), (8, 9)], 4)
    decoder.read(torch.tensor([3, 4]), torch.ones(2, dtype=torch.bool))
    assert decoder.logits is not None
    expected = trunk.whole(torch.tensor([[5, 6, 7, 3]])).logits[0, -1]
    torch.testing.assert_close(decoder.logits[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen2"])
def test_a_response_is_as_likely_packed_behind_a_prompt_as_alone(kind: str, share: bool) -> None:
    trunk = proved(grow_trunk(tiny_model(kind), 2), 64)
    branch = Branch(trunk, trainable=False)
    prompts = ((7, 8, 9), (7, 8, 9), (12,) * 9, (7, 8, 9), (5,))
    said = [Rendered(prompt, tuple(range(20 + n, 21 + 3 * n))) for n, prompt in enumerate(prompts)]
    packed = pack(said, share and trunk.compute.shares_prompts, 0)
    found = branch.said(trunk.states(packed), packed, 0.7)
    for r, total in zip(said, found.tolist(), strict=True):
        alone = collate([r], 0)
        logits = trunk.whole(input_ids=alone.ids).logits[0, len(r.prompt_ids) - 1 : -1].float() / 0.7
        by_hand = logits.log_softmax(dim=1)[torch.arange(len(r.response_ids)), list(r.response_ids)].sum()
        assert total == pytest.approx(float(by_hand), abs=2e-3)
