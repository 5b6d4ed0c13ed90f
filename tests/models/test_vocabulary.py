"""What nobody sees is neither drawn nor scored, by whomever: drawing, training, reference and served answers agree."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats
from torch import Tensor

from manners.models.answer import answer, streams
from manners.models.batch import RunningBatch
from manners.models.branches import Branch
from manners.models.generate import Decoding, Generated, generate
from manners.models.pretrained import Pretrained
from manners.models.requests import GenerationRequest, Token
from manners.models.vocabulary import Vocabulary
from manners.settings import SampleSettings
from manners.types import FinishReason, Role, Turn
from tests.worlds import BOS, END, EOS, PAD, START, VOCABULARY, tiny_model, tiny_renderer, with_words

PROMPT = (Turn(Role.USER, "how do I bake bread?"),)
UNSEEN = {PAD, BOS, START}
SAMPLE = SampleSettings(temperature=0.8, max_new_tokens=8, batch=64)
SPARE = 12
"""Tokens that the model has and the tokenizer has not, as many checkpoints do."""


@pytest.fixture(scope="module")
def world() -> Pretrained:
    """A model that likes to write special tokens, and others of which its tokenizer knows nothing."""
    model = tiny_model(vocab_size=VOCABULARY + SPARE)
    with torch.no_grad():
        model.get_output_embeddings().weight[[PAD, BOS, EOS, START, END, VOCABULARY, VOCABULARY + 5]] *= 3
    return with_words(model)


def drawn(world: Pretrained, policy: Branch, rows: int = 400) -> Generated:
    ids, _ = world.renderer.prompt_ids(PROMPT)
    uniform = streams(0, [0] * rows, range(rows), SAMPLE.max_new_tokens)
    decoding = Decoding.of(world.renderer, SAMPLE, want_states=True)
    return generate(policy.assembled(world.trunk), world.trunk, [ids] * rows, uniform, decoding)


def said(world: Pretrained, logits: Tensor, temperature: float) -> Tensor:
    """Probabilities by the definition: of all tokens, those that can be seen share 1, and both ends are one."""
    shares = (logits.double() / temperature).exp()
    shares[..., END] += shares[..., EOS]
    shares[..., [PAD, BOS, START, EOS, *range(VOCABULARY, VOCABULARY + SPARE)]] = 0
    probabilities: Tensor = shares / shares.sum(dim=-1, keepdim=True)
    return probabilities


def test_what_is_shut_out_is_what_a_text_does_not_show(world: Pretrained) -> None:
    # By the text alone: between two letters it makes no difference.
    decode, (letter,) = world.renderer.decode, world.tokenizer.encode("a", add_special_tokens=False)
    every = range(VOCABULARY + SPARE)
    shown = {i for i in every if decode([letter, i, letter]) != decode([letter, letter])}
    vocabulary = world.trunk.vocabulary
    assert set(vocabulary.unseen.tolist()) == set(every) - shown - {EOS, END}
    assert vocabulary.ends.tolist() == [EOS, END] and vocabulary.end == END == world.renderer.end_id
    assert vocabulary.shut_out == set(every) - shown - {END}, "that one stands for both ends"
    only = Vocabulary.of(tiny_renderer(chat_template=None), tiny_model())
    assert only.end == EOS and only.ends.tolist() == [EOS, END], "without a template answers end with the tokenizer's"


def test_it_is_never_drawn_and_the_rest_as_often_as_it_says(world: Pretrained) -> None:
    policy = Branch(world.trunk, trainable=True)
    draws = drawn(world, policy, 1000)
    written = {token for r in draws.rendered for token in r.response_ids}
    assert max(written) < VOCABULARY and written.isdisjoint({*UNSEEN, EOS}) and END in written
    for r, finish in zip(draws.rendered, draws.finish, strict=True):
        assert (r.response_ids[-1] == END) == (finish is FinishReason.STOP)
    with torch.no_grad():
        logits = world.trunk.whole(input_ids=torch.tensor([draws.rendered[0].prompt_ids])).logits[0, -1]
    shares = said(world, logits, SAMPLE.temperature)
    first = Counter(r.response_ids[0] for r in draws.rendered)
    common = [i for i in range(VOCABULARY) if float(shares[i]) * 1000 > 8]
    counts = [*(first[i] for i in common), 1000 - sum(first[i] for i in common)]
    wanted = [*(1000 * float(shares[i]) for i in common), 1000 * (1 - float(shares[common].sum()))]
    assert END in common and stats.chisquare(counts, wanted).pvalue > 1e-4


@pytest.mark.parametrize("trainable", [True, False])
def test_training_and_the_reference_give_it_the_probability_that_it_was_drawn_with(
    world: Pretrained, trainable: bool
) -> None:
    branch = Branch(world.trunk, trainable=trainable)
    draws = drawn(world, branch)
    assert draws.states is not None
    logprobs = branch.logprobs(branch.hidden(draws.states, draws.batch), draws.batch, SAMPLE.temperature).detach()
    torch.testing.assert_close(logprobs, draws.logprobs, atol=1e-4, rtol=1e-4)
    for row in range(5):
        prompt, response = draws.rendered[row].prompt_ids, draws.rendered[row].response_ids
        with torch.no_grad():
            logits = world.trunk.whole(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = said(world, logits, SAMPLE.temperature).log()[range(len(response)), list(response)]
        torch.testing.assert_close(draws.logprobs[row, : len(response)].double(), expected, atol=1e-4, rtol=1e-4)


def test_no_gradient_reaches_what_is_shut_out(world: Pretrained) -> None:
    policy = Branch(world.trunk, trainable=True)
    draws = drawn(world, policy, 40)
    assert draws.states is not None
    head = policy.model.get_output_embeddings().weight
    logprobs = policy.logprobs(policy.hidden(draws.states, draws.batch), draws.batch, 1.0)
    (gradient,) = torch.autograd.grad(logprobs.sum(), [head])
    moved = gradient.abs().sum(dim=1) > 0
    assert not moved[[*UNSEEN, *range(VOCABULARY, VOCABULARY + SPARE)]].any()
    assert moved[[EOS, END]].all() and bool(torch.isfinite(gradient).all())


def test_served_answers_do_without_it_and_report_the_same_probabilities(world: Pretrained) -> None:
    policy = Branch(world.trunk, trainable=False)
    batch = RunningBatch(policy.assembled(world.trunk), "initial", world.trunk, world.renderer, 51)
    batch.submit(0, GenerationRequest(PROMPT, 6, seed=3, count=50, logprobs=20))
    batch.submit(1, GenerationRequest(PROMPT, 6, seed=3, temperature=0.0))
    names = {world.tokenizer.convert_ids_to_tokens(i) for i in (*UNSEEN, EOS)}
    seen = list[float]()
    while not batch.idle():
        for _, event in batch.step():
            if isinstance(event, Token):
                for token in event.logprobs:
                    assert names.isdisjoint({token.chosen.text, *(top.text for top in token.top)})
                    seen += [top.logprob for top in token.top]
    assert seen and all(logprob > -1e9 for logprob in seen)
    for some in answer(policy, world, [PROMPT], 64, SAMPLE, 3, "initial"):
        for given in some.answers:
            assert UNSEEN.isdisjoint(given.response_ids) and not names & set(given.response.text.split())
