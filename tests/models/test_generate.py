"""Draws follow the model's own distribution, whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.models import generate as generate_module
from manners.models.branches import Branch, set_trainable
from manners.models.compute import uniform_dtype
from manners.models.decoder import Decoder
from manners.models.generate import Decoding, Generated, generate
from manners.models.proof import proved
from manners.models.sampler import draw_tokens
from manners.models.seats import CHANGE_SHARE
from manners.models.trunk import Trunk, grow_trunk
from manners.types import FinishReason
from tests.conftest import some
from tests.worlds import ARCHITECTURES, new_decoder, tiny_model, with_compute

PROMPTS = [(5, 6, 7), (8,) * 9, (9, 10), (5, 6, 7), (11, 12, 13, 14, 15), (8,) * 9]
"""Of different lengths; two occur twice."""
ENDS = frozenset(range(0, 320, 7))
"""One token in seven ends a response, so that rows end at different steps."""


def uniforms(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.rand((rows, length), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(
    trunk: Trunk,
    prompts: list[tuple[int, ...]],
    uniform: Tensor,
    *,
    end_ids: frozenset[int] = ENDS,
    temperature: float = 1.0,
    want_states: bool = True,
    seats: int | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> Generated:
    model = Branch(trunk, trainable=False).assembled(trunk)
    return generate(
        model,
        trunk,
        prompts,
        uniform,
        Decoding(end_ids, 0, temperature, want_states=want_states, seats=seats),
        on_step,
    )


@torch.no_grad()
def next_probabilities(model: PreTrainedModel, ids: tuple[int, ...], temperature: float) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return torch.softmax(logits.double() / temperature, dim=-1)


def goodness_of_fit(tokens: list[int], probabilities: Tensor) -> float:
    """p-value of the tokens under the probabilities; rare tokens are counted together."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(probabilities)).double()
    expected = probabilities * len(tokens)
    bins = torch.where(expected >= 8, torch.arange(len(expected)), int(expected.argmin()))
    observed, predicted = torch.zeros_like(counts), torch.zeros_like(expected)
    observed.index_add_(0, bins, counts)
    predicted.index_add_(0, bins, expected)
    used = predicted > 0
    return float(stats.chisquare(observed[used].numpy(), predicted[used].numpy()).pvalue)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_tokens_come_as_often_as_the_model_says_also_after_a_first_token(temperature: float) -> None:
    model = tiny_model(vocab_size=40)
    trunk, prompt, rows = grow_trunk(model, 2), (5, 6, 7), 6000
    draws = drawn(trunk, [prompt] * rows, uniforms(rows, 2), end_ids=frozenset(), temperature=temperature)
    first = [r.response_ids[0] for r in draws.rendered]
    assert goodness_of_fit(first, next_probabilities(model, prompt, temperature)) > 1e-4
    assert goodness_of_fit(first, next_probabilities(model, prompt, 1.0)) < 1e-6  # the test can tell
    commonest = max(set(first), key=first.count)
    second = [r.response_ids[1] for r in draws.rendered if r.response_ids[0] == commonest]
    assert len(second) > 300
    assert goodness_of_fit(second, next_probabilities(model, (*prompt, commonest), temperature)) > 1e-4
    assert goodness_of_fit(second, next_probabilities(model, prompt, temperature)) < 1e-6


def test_a_uniform_number_chooses_the_token_whose_share_of_the_interval_holds_it() -> None:
    model = tiny_model(vocab_size=40)
    trunk, prompt = grow_trunk(model, 2), (5, 6, 7)
    edges = next_probabilities(model, prompt, 1.0).cumsum(0)
    middles = edges - next_probabilities(model, prompt, 1.0) / 2
    draws = drawn(trunk, [prompt] * 42, torch.cat([torch.tensor([0.0, 1 - 2**-53]).double(), middles]).unsqueeze(1))
    assert [r.response_ids[0] for r in draws.rendered] == [0, 39, *range(40)]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]).expand(3, -1)
    tokens, logprobs = draw_tokens(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [1, 3, 3]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=-1)[torch.arange(3), tokens])


@pytest.mark.parametrize("odd", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_what_is_no_distribution_is_refused(odd: list[float]) -> None:
    logits = torch.tensor([[0.0, 0.0], odd])
    for top_p in (1.0, 0.9):
        with pytest.raises(MannersError, match="is no number"):
            draw_tokens(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), top_p)


def test_uniform_numbers_are_as_exact_as_the_device_can_have_them() -> None:
    dtypes = [uniform_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")]
    assert dtypes == [torch.float64, torch.float64, torch.float32]
    logits = torch.randn((200, 320), generator=torch.Generator().manual_seed(0))
    uniform = uniforms(200, 1).squeeze(1)
    rounded, _ = draw_tokens(logits, uniform.to(torch.float32))
    assert torch.equal(rounded, draw_tokens(logits, uniform)[0])
    last, _ = draw_tokens(logits[:1], torch.tensor([1 - 2**-53], dtype=torch.float64).to(torch.float32))
    assert int(last) == 319  # rounded up to 1 there is still a token


@pytest.mark.parametrize("model_type", some(["llama", "gpt2", "gemma2", "qwen2", "bloom"], 2))
def test_a_rows_draws_do_not_depend_on_the_batch(model_type: str) -> None:
    trunk, uniform = grow_trunk(tiny_model(model_type), 2), uniforms(len(PROMPTS), 20)
    together = drawn(trunk, PROMPTS, uniform)
    assert len({r.response_ids for r in together.rendered}) == len(PROMPTS)
    for row in range(len(PROMPTS)):
        alone = drawn(trunk, [PROMPTS[row]], uniform[row : row + 1])
        assert alone.rendered[0] == together.rendered[row]
        assert alone.finish[0] is together.finish[row]
        count = len(alone.rendered[0].response_ids)
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row, :count], atol=1e-4, rtol=1e-4)


CUT = list(product(("llama", "gpt2", "gemma2", "gemma3_text", "mistral", "qwen2"), (2, "all")))


@pytest.mark.parametrize(("model_type", "layers"), some(CUT, 4))
def test_states_and_logprobs_are_those_of_the_split_forward(model_type: str, layers: int | Literal["all"]) -> None:
    trunk = grow_trunk(tiny_model(model_type), layers)
    temperature, uniform = 0.7, uniforms(len(PROMPTS), 24)  # longer than the windows of 16
    draws = drawn(trunk, PROMPTS, uniform, temperature=temperature)
    batch, branch = draws.batch, Branch(trunk, trainable=True)
    assert draws.states is not None
    again = trunk.states(batch)
    assert draws.states.shape == again.shape
    torch.testing.assert_close(draws.states[batch.attend], again[batch.attend], atol=1e-4, rtol=1e-4)
    logprobs = branch.logprobs(branch.hidden(draws.states, batch), batch, temperature)  # ready to be trained on
    torch.testing.assert_close(logprobs.detach(), draws.logprobs, atol=1e-4, rtol=1e-4)
    assert bool((draws.logprobs[batch.keep] < 0).all()) and not draws.logprobs[~batch.keep].any()
    assert torch.autograd.grad(logprobs.sum(), set_trainable([branch]))


@pytest.mark.parametrize(
    "model_type", some(["llama", "gpt2", "gemma2", "gemma3_text", "mistral", "qwen2", "opt", "bloom"], 3)
)
def test_at_a_low_temperature_the_tokens_are_those_of_greedy_generation(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    trunk, length = grow_trunk(model, 2), 20
    draws = drawn(trunk, PROMPTS, uniforms(len(PROMPTS), length), end_ids=ENDS, temperature=1e-4, want_states=False)
    for prompt, rendered, finish in zip(PROMPTS, draws.rendered, draws.finish, strict=True):
        ids = torch.tensor([prompt])
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=sorted(ENDS),
            pad_token_id=0,
        )
        expected = generated[0, len(prompt) :].tolist()
        assert list(rendered.response_ids) == expected
        assert (finish is FinishReason.STOP) == (expected[-1] in ENDS)


def test_rows_end_with_their_end_token_or_at_the_length_limit() -> None:
    trunk, rows, length = grow_trunk(tiny_model(), 2), 40, 12
    draws = drawn(trunk, [(5, 6, 7)] * rows, uniforms(rows, length), want_states=False)
    assert draws.states is None
    assert set(draws.finish) == {FinishReason.STOP, FinishReason.LENGTH}
    for rendered, finish in zip(draws.rendered, draws.finish, strict=True):
        *body, last = rendered.response_ids
        assert ENDS.isdisjoint(body)
        assert (last in ENDS) == (finish is FinishReason.STOP)
        assert finish is FinishReason.STOP or len(rendered.response_ids) == length
    # An end token in the last place still ends.
    limit = next(len(r.response_ids) for r, f in zip(draws.rendered, draws.finish, strict=True) if f == "stop")
    cut = drawn(trunk, [(5, 6, 7)] * rows, uniforms(rows, length)[:, :limit], want_states=False)
    assert any(
        f is FinishReason.STOP and len(r.response_ids) == limit for r, f in zip(cut.rendered, cut.finish, strict=True)
    )


@pytest.mark.parametrize("model_type", some(["llama", "gpt2", "gemma2", "gemma3_text", "bloom"], 2))
def test_rows_that_leave_and_enter_change_nothing_for_the_others(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, prompts, uniform = grow_trunk(tiny_model(model_type), 2), PROMPTS * 3, uniforms(18, 24)
    forward, results, sizes = Decoder._forward, [], list[list[tuple[int, int]]]()
    for share, seats in ((CHANGE_SHARE, None), (0.0, None), (2.0, None), (0.5, 5), (0.0, 1)):
        sizes.append([])

        def counted(self: Decoder, ids: Tensor, *others: Any, log: list[tuple[int, int]] = sizes[-1]) -> Any:
            log.append((ids.shape[0], ids.shape[1]))
            return forward(self, ids, *others)

        monkeypatch.setattr(Decoder, "_forward", counted)
        monkeypatch.setattr(generate_module, "CHANGE_SHARE", share)
        results.append(drawn(trunk, prompts, uniform, seats=seats))
    usual, eager, never, five, one = ([rows for rows, width in log if width == 1] for log in sizes)
    assert min(eager) <= min(usual) < 18 and set(never) == {18}
    assert max(five) == 5 and set(one) == {1} and len(five) < len(one)
    read = [rows for rows, width in sizes[0] if width > 1]
    assert sum(read) == len(set(prompts))  # a prompt that is answered several times is read once
    for other in results[1:]:
        assert other.rendered == results[0].rendered and other.finish == results[0].finish
        torch.testing.assert_close(other.logprobs, results[0].logprobs, atol=1e-4, rtol=1e-4)
        assert other.states is not None and results[0].states is not None
        keep = other.batch.attend
        torch.testing.assert_close(other.states[keep], results[0].states[keep], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", some(["llama", "gpt2", "qwen2", "gemma2", "bloom"], 2))
def test_what_prompts_begin_with_in_common_is_read_once(model_type: str, layers: int | Literal["all"]) -> None:
    system = tuple(range(20, 32))
    prompts = [system + prompt for prompt in PROMPTS]
    trunk, uniform = proved(grow_trunk(tiny_model(model_type), layers), 128), uniforms(len(prompts), 20)
    assert trunk.compute.shares_prompts == (
        model_type in ("llama", "gpt2")
    )  # the others have windows, or biases by distance
    apart, together = (drawn(with_compute(trunk, shares_prompts=shares), prompts, uniform) for shares in (False, True))
    if not trunk.compute.shares_prompts:
        together = drawn(trunk, prompts, uniform)
    # What is not read once must count where batches are filled.
    assert (apart.batch.common, together.batch.common) == (0, 12 if trunk.compute.shares_prompts else 0)
    assert together.rendered == apart.rendered and together.finish == apart.finish
    torch.testing.assert_close(together.logprobs, apart.logprobs, atol=1e-4, rtol=1e-4)
    assert together.states is not None and apart.states is not None
    keep = together.batch.attend
    torch.testing.assert_close(together.states[keep], apart.states[keep], atol=1e-4, rtol=1e-4)


def test_a_common_beginning_is_no_prompt_and_long_enough() -> None:
    decoder = new_decoder(tiny_model(), shares_prompts=True)
    system = tuple(range(20, 32))
    assert decoder._common([(*system, 1), (*system, 2, 3)]) == 12
    assert decoder._common([system, (*system, 2, 3)]) == 11  # each has a token left to read
    assert decoder._common([(*system[:7], 1), (*system[:7], 2)]) == 0
    assert decoder._common([(*system, 1)]) == 0
    with_biases = new_decoder(tiny_model("bloom"))
    assert with_biases._common([(*system, 1), (*system, 2, 3)]) == 0


def test_columns_that_nobody_looks_at_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, widths, prompts = grow_trunk(tiny_model(), 2), list[int](), PROMPTS[:1] * 40
    forward = Decoder._forward

    def counted(self: Decoder, ids: Tensor, attend: Tensor, *others: Any) -> Any:
        widths.append(attend.shape[1])
        return forward(self, ids, attend, *others)

    monkeypatch.setattr(Decoder, "_forward", counted)
    drawn(trunk, prompts, uniforms(40, 12), seats=4)
    assert len(widths) > 50 and max(widths) <= 2 * (3 + 12)


def test_steps_tell_how_many_rows_have_finished() -> None:
    said: list[int] = []
    drawn(grow_trunk(tiny_model(), 2), PROMPTS, uniforms(len(PROMPTS), 12), seats=2, on_step=said.append)
    assert sum(said) == len(PROMPTS) and max(said) <= 2


def test_top_p_leaves_the_likeliest_tokens_that_reach_it() -> None:
    # Probabilities 0.5, 0.3, 0.15, 0.05, in another order: 0.6 needs two of them, 0.5 one, 0.81 three.
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    for top_p, allowed in ((0.6, [1, 3]), (0.5, [1]), (0.81, [0, 1, 3]), (1e-9, [1]), (1.0, [0, 1, 2, 3])):
        uniform = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
        tokens, logprobs = draw_tokens(logits.expand(1000, -1), uniform, top_p)
        assert sorted(set(tokens.tolist())) == allowed
        shares = logits.exp()[0][tokens] / logits.exp()[0][allowed].sum()
        torch.testing.assert_close(logprobs.exp(), shares)


def test_the_batch_is_what_the_rows_say() -> None:
    trunk = grow_trunk(tiny_model(), 2)
    draws = drawn(trunk, PROMPTS, uniforms(len(PROMPTS), 12))
    for row, (prompt, rendered) in enumerate(zip(PROMPTS, draws.rendered, strict=True)):
        assert rendered.prompt_ids == prompt
        attend = draws.batch.attend[row]
        assert tuple(draws.batch.ids[row][attend].tolist()) == prompt + rendered.response_ids
    assert draws.batch.keep.any(dim=0).all()  # no column that no row reached


def test_every_listed_architecture_can_draw() -> None:
    for model_type in ARCHITECTURES:
        trunk = grow_trunk(tiny_model(model_type), 1)
        draws = drawn(trunk, PROMPTS, uniforms(len(PROMPTS), 6))
        assert draws.batch.keep.any(dim=1).all()
