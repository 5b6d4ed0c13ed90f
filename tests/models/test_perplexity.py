"""Forgetting is measured as the library measures the loss on plain text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tokenizers import processors

from manners import ranks
from manners.launched import Place
from manners.models.branches import Branch, set_trainable
from manners.models.perplexity import PlainText, answer_logprobs, paragraph_nll
from manners.text import Renderer
from tests.worlds import BOS, END_IDS, tiny_pretrained

PROSE = ("The train to the sea leaves at noon.", "How long does bread take in the oven?", "x")


def test_the_rise_of_perplexity_is_that_of_the_librarys_loss() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    assert PlainText(initial, pretrained, PROSE).rise(policy) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    nll, tokens = {initial: 0.0, policy: 0.0}, 0
    for text in PROSE:
        ids = torch.tensor([pretrained.tokenizer.encode(text, add_special_tokens=False)])
        if ids.shape[1] > 1:
            for branch in nll:
                with torch.no_grad():
                    loss = branch.assembled(pretrained.trunk)(input_ids=ids, labels=ids).loss
                nll[branch] += float(loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    rise = math.exp((nll[policy] - nll[initial]) / tokens) - 1
    assert abs(rise) > 0.01
    assert PlainText(initial, pretrained, PROSE).rise(policy) == pytest.approx(rise, rel=1e-3)


def test_behind_the_tokenizers_own_bos_the_first_token_is_predicted_too() -> None:
    pretrained = tiny_pretrained()
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    pretrained.tokenizer.backend_tokenizer.post_processor = first
    pretrained = replace(pretrained, renderer=Renderer(pretrained.tokenizer, END_IDS, 12))
    initial = Branch(pretrained.trunk, trainable=False)
    (found,), counts = paragraph_nll([initial], pretrained, [*PROSE, ""])
    assert len(found) == 3 and counts[2] == 1, "one token behind a BOS is enough, a BOS alone is not"
    for text, nll, count in zip(PROSE, found, counts, strict=False):
        ids = torch.tensor([pretrained.tokenizer.encode(text)[:12]])
        assert ids[0].tolist().count(BOS) == 1 and ids[0, 0] == BOS
        with torch.no_grad():
            loss = initial.assembled(pretrained.trunk)(input_ids=ids, labels=ids).loss
        assert count == ids.shape[1] - 1
        assert nll == pytest.approx(float(loss) * count, rel=1e-4)


ASKED = (
    ("The train to the sea", ("leaves at noon.", "leaves.", "sleeps all day.")),
    ("How long does bread", ("take?", "bake in an oven?")),
    ("the", ("sea", "oven")),
)


@pytest.mark.parametrize("bos", [False, True])
def test_what_an_answer_is_worth_behind_its_context_is_the_librarys_loss(bos: bool) -> None:
    """Whole texts by transformers' own loss: their differences are those between the answers."""
    pretrained = tiny_pretrained()
    if bos:
        first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        pretrained.tokenizer.backend_tokenizer.post_processor = first
        pretrained = replace(pretrained, renderer=Renderer(pretrained.tokenizer, END_IDS, 256))
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    found = answer_logprobs([initial, policy], pretrained, ASKED)
    for branch, of_branch in zip((initial, policy), found, strict=True):
        whole = branch.assembled(pretrained.trunk)
        for (context, answers), scores in zip(ASKED, of_branch, strict=True):
            assert scores is not None and max(scores) < 0
            theirs = []
            for answer in answers:
                ids = torch.tensor([pretrained.tokenizer.encode(f"{context} {answer}")])
                with torch.no_grad():
                    theirs.append(-float(whole(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
            for ours, other in zip(scores, theirs, strict=True):
                assert ours - scores[0] == pytest.approx(other - theirs[0], abs=2e-3)
    assert abs(found[0][0][0] - found[1][0][0]) > 0.01  # type: ignore[index]


def test_a_question_that_does_not_fit_is_none_and_the_others_stay() -> None:
    pretrained = tiny_pretrained()
    branch = Branch(pretrained.trunk, trainable=False)
    (whole,) = answer_logprobs([branch], pretrained, ASKED)
    narrow = replace(pretrained, renderer=Renderer(pretrained.tokenizer, END_IDS, 12))
    (found,) = answer_logprobs([branch], narrow, ASKED)
    assert found[0] is None and found[1] is None
    assert found[2] == pytest.approx(whole[2])


def test_the_divergence_is_that_of_the_whole_distribution_and_parts_come_in_turn() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    texts = [f"{text} {number}" for number in range(2) for text in PROSE[:2]]
    prose = PlainText(initial, pretrained, texts)
    assert len(prose.parts) == 2  # three paragraphs, and one
    assert float(prose.divergence(policy, 0).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    for number, chosen in enumerate((texts[:3], texts[3:], texts[:3])):
        total = tokens = 0.0
        for text in chosen:
            ids = torch.tensor([pretrained.tokenizer.encode(text, add_special_tokens=False)])
            with torch.no_grad():
                before, after = (
                    branch.assembled(pretrained.trunk)(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
                    for branch in (initial, policy)
                )
            total += float((before.exp() * (before - after)).sum())
            tokens += len(before)
        assert total / tokens > 0.01
        assert float(prose.divergence(policy, number).detach()) == pytest.approx(total / tokens, rel=1e-3)


def test_the_loss_on_text_is_the_librarys_and_parts_come_in_turn() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    texts = [f"{text} {number}" for number in range(2) for text in PROSE[:2]]
    prose = PlainText(initial, pretrained, texts)
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    for number, chosen in enumerate((texts[:3], texts[3:], texts[:3])):
        total = tokens = 0.0
        for text in chosen:
            ids = torch.tensor([pretrained.tokenizer.encode(text, add_special_tokens=False)])
            with torch.no_grad():
                total += float(policy.assembled(pretrained.trunk)(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        assert float(prose.loss(policy, number).detach()) == pytest.approx(total / tokens, rel=1e-3)


@pytest.mark.parametrize("count", [2, 4])
def test_shares_of_several_processes_come_to_the_whole(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    texts = [f"{text} {number}" for number in range(2) for text in PROSE[:2]]
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    parameters = set_trainable([policy])

    def found() -> tuple[PlainText, list[float], list[torch.Tensor]]:
        prose = PlainText(initial, pretrained, texts)
        losses = [of(policy, number) for of in (prose.divergence, prose.loss) for number in range(2)]
        gradients = torch.autograd.grad(sum(losses, torch.zeros(())), parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        return prose, [float(loss.detach()) for loss in losses], filled

    alone, losses, gradients = found()
    parts, lost = list[tuple[list[float], list[torch.Tensor]]](), list[torch.Tensor]()

    def noted(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        lost.append(found["lost"])
        return found

    for number in range(count):
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "place", lambda number=number: Place(number, count))
            prose, mine, theirs = found()
            parts.append((mine, theirs))
            patch.setattr(ranks, "summed", noted)
            prose.rise(policy)
    assert [sum(of) for of in zip(*(part for part, _ in parts), strict=True)] == pytest.approx(losses, abs=1e-6)
    for whole, *shares in zip(gradients, *(found for _, found in parts), strict=True):
        assert torch.allclose(sum(shares, torch.zeros(())), whole, atol=1e-6)
    monkeypatch.setattr(ranks, "summed", lambda _: {"lost": torch.stack(lost).sum()})
    whole_rise = alone.rise(policy)
    monkeypatch.undo()
    assert len(lost) == count and whole_rise == pytest.approx(alone.rise(policy), rel=1e-5)


def test_following_the_divergence_downhill_brings_the_policy_back() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    prose, parameters = PlainText(initial, pretrained, PROSE), set_trainable([policy])
    with torch.no_grad():
        for tensor in parameters:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    far = float(prose.divergence(policy, 0).detach())
    optimiser = torch.optim.Adam(parameters, lr=0.003)
    for step in range(40):
        optimiser.zero_grad()
        torch.autograd.backward(prose.divergence(policy, step))
        optimiser.step()
    assert float(prose.divergence(policy, 0).detach()) < 0.2 * far
