"""A request gets the same from a batch that runs on and on, whoever else is in it."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from manners.errors import MannersError
from manners.models import batch as batch_module
from manners.models import row as row_module
from manners.models.answer import answer, streams
from manners.models.batch import RunningBatch
from manners.models.branches import Branch
from manners.models.decoder import Decoder
from manners.models.pretrained import Pretrained
from manners.models.requests import Done, DrawnToken, Event, Failed, GenerationRequest, Token
from manners.models.row import Row
from manners.models.sampler import draw_tokens
from manners.models.textstream import HALF
from manners.settings import SampleSettings
from manners.text import Renderer
from manners.turns import FIRST
from manners.types import Dialogue, FinishReason, Role, Turn
from tests.conftest import some
from tests.worlds import BOS, END, EOS, PAD, START, tiny_pretrained


def said(text: str) -> Dialogue:
    return (Turn(Role.USER, text),)


REQUESTS = [
    GenerationRequest(said("how do I bake bread?"), 20, seed=1),
    GenerationRequest(said("the weather"), 30, seed=2, temperature=0.6, count=3),
    GenerationRequest(said("how do I bake bread?"), 12, seed=3, temperature=0.0),
    GenerationRequest(said("a train to the sea, and back again in the evening"), 25, seed=4, top_p=0.7),
    GenerationRequest(said("a train"), 40, seed=2**40 + 5, temperature=1.4, top_p=0.95, stop=("e", "th")),
    GenerationRequest(said("oven"), 1, seed=6, count=2),
    GenerationRequest(said("how long?"), 35, seed=7, logprobs=2),
]


ENDLESS = GenerationRequest(said("the weather"), 40, seed=2, temperature=0.0)


@cache
def world(model_type: str = "llama") -> Pretrained:
    return tiny_pretrained(model_type)


def new_batch(model_type: str = "llama", seats: int = 4) -> RunningBatch:
    pretrained = world(model_type)
    model = Branch(pretrained.trunk, trainable=False).assembled(pretrained.trunk)
    return RunningBatch(model, "initial", pretrained.trunk, pretrained.renderer, seats)


@dataclass
class Heard:
    """What a request got."""

    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[DrawnToken]] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.failed.append(event)
        elif isinstance(event, Done):
            assert event.index not in self.done
            self.done[event.index] = event
        else:
            assert event.index not in self.done and event.text
            self.texts[event.index] = self.texts.get(event.index, "") + event.text
            self.logprobs.setdefault(event.index, []).extend(event.logprobs)


def run(batch: RunningBatch, heard: dict[int, Heard], steps: int = 10_000) -> None:
    for _ in range(steps):
        if batch.idle():
            return
        for key, event in batch.step():
            heard.setdefault(key, Heard()).hear(event)


def alone(request: GenerationRequest, model_type: str = "llama") -> Heard:
    batch, heard = new_batch(model_type), dict[int, Heard]()
    batch.submit(0, request)
    run(batch, heard)
    return heard[0]


@cache
def unpatched(request: GenerationRequest, model_type: str = "llama") -> Heard:
    """`alone`, asked before anything is patched, and once for all tests."""
    return alone(request, model_type)


@pytest.mark.parametrize(("model_type", "seed"), some(product(("llama", "gpt2", "bloom", "gemma2"), range(3)), 2))
def test_a_request_gets_the_same_alone_and_among_others_that_come_and_go(
    model_type: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [unpatched(request, model_type) for request in REQUESTS]
    assert len({heard.texts.get(0) for heard in expected}) == len(REQUESTS)
    monkeypatch.setattr(batch_module, "ROOM", 5)
    monkeypatch.setattr(batch_module, "READ_AT_ONCE", 40)
    chance, batch, heard = random.Random(seed), new_batch(model_type), dict[int, Heard]()
    arriving = [*enumerate(REQUESTS), *((key, chance.choice(REQUESTS)) for key in range(100, 108))]
    chance.shuffle(arriving)
    for key, request in arriving:
        batch.submit(key, request)
        run(batch, heard, steps=chance.randrange(6))
        batch.cancel(chance.randrange(100, 108))
    run(batch, heard)
    for key, wanted in enumerate(expected):
        assert heard[key].texts == wanted.texts and heard[key].done == wanted.done


def test_tokens_that_were_read_ahead_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, read, shapes = alone(REQUESTS[1]), Decoder.read, list[int]()

    def counted(self: Decoder, token: Tensor, running: Tensor) -> None:
        shapes.append(len(token))
        read(self, token, running)

    monkeypatch.setattr(Decoder, "read", counted)
    batch, heard, steps = new_batch(), dict[int, Heard](), 0
    assert batch.read() == ()
    batch.submit(0, REQUESTS[1])
    while not batch.idle():
        run(batch, heard, steps=1)
        steps += 1
        assert batch.read() == batch.read() == ()
    assert heard[0].texts == expected.texts and heard[0].done == expected.done
    assert len(shapes) == steps - 1, "what is drawn last is not read"


def test_answers_are_those_of_sampling_with_the_same_stream() -> None:
    pretrained, prompt = world(), said("how do I bake bread?")
    settings = SampleSettings(temperature=0.9, max_new_tokens=24, batch=8)
    policy = Branch(pretrained.trunk, trainable=False)
    (drawn,) = answer(policy, pretrained, [prompt], 4, settings, seed=12, author="initial")
    heard = alone(GenerationRequest(prompt, 24, seed=12, count=4, temperature=0.9))
    for number, expected in enumerate(drawn.answers):
        assert heard.texts.get(number, "") == expected.response.text
        assert heard.done[number].finish_reason is expected.response.finish_reason
        assert heard.done[number].completion_tokens == len(expected.response_ids)
        assert heard.done[number].prompt_tokens == len(expected.prompt_ids)
    assert {done.finish_reason for done in heard.done.values()} == {FinishReason.STOP, FinishReason.LENGTH}


def test_greedy_answers_are_those_at_temperature_zero_whatever_the_seed() -> None:
    pretrained, prompt = world(), said("how do I bake bread?")
    policy = Branch(pretrained.trunk, trainable=False)
    wanted = alone(GenerationRequest(prompt, 24, seed=1, temperature=0.0)).texts.get(0, "")
    for seed, temperature in ((12, 0.9), (13, 5.0)):
        settings = SampleSettings(temperature=temperature, max_new_tokens=24, batch=8)
        (drawn,) = answer(policy, pretrained, [prompt], 4, settings, seed, "initial", greedy=True)
        assert {given.response.text for given in drawn.answers} == {wanted}


@pytest.mark.parametrize("model_type", some(["llama", "gpt2", "qwen2"], 1))
def test_at_temperature_zero_the_text_is_that_of_greedy_generation(model_type: str) -> None:
    pretrained = world(model_type)
    renderer, model = pretrained.renderer, Branch(pretrained.trunk, trainable=False).assembled(pretrained.trunk)
    generate: Any = model.generate
    for text in ("the weather", "a train to the sea"):
        ids, _ = renderer.prompt_ids(said(text))
        prompt = torch.tensor([ids])
        asked = {"do_sample": False, "max_new_tokens": 100, "suppress_tokens": [PAD, BOS, START]}
        whole = generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
        heard = alone(GenerationRequest(said(text), 100, seed=0, temperature=0.0), model_type)
        assert heard.texts[0] == renderer.decode(whole[0, len(ids) :].tolist())


def test_each_row_has_its_own_temperature_and_top_p() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn((6, 320), generator=generator) * 3, torch.rand(6, generator=generator).double()
    temperature, top_p = [0.5, 1.0, 2.0, 0.5, 1.0, 2.0], [1.0, 1.0, 1.0, 0.3, 0.9, 0.7]
    columns, vocabulary = torch.tensor([temperature, top_p]).unsqueeze(-1), world().trunk.vocabulary
    tokens, logprobs = draw_tokens(vocabulary.at(logits, columns[0]), uniform, columns[1])
    for row in range(6):
        mine = slice(row, row + 1)
        token, logprob = draw_tokens(vocabulary.at(logits[mine], temperature[row]), uniform[mine], top_p[row])
        assert (tokens[row], logprobs[row]) == (token[0], logprob[0])


def test_tokens_come_as_often_as_each_temperature_says() -> None:
    pretrained, batch, prompt = world(), new_batch(seats=2000), said("oven")
    for key, temperature in enumerate((0.5, 1.5)):
        batch.submit(key, GenerationRequest(prompt, 1, seed=key, count=1000, temperature=temperature, logprobs=0))
    first: dict[int, list[str]] = {0: [], 1: []}
    for key, event in batch.step():
        if isinstance(event, Token):
            first[key] += [drawn.chosen.text for drawn in event.logprobs]
    logits = next_logits(pretrained, pretrained.renderer.prompt_ids(prompt)[0])
    texts = [pretrained.renderer.decode([token]) for token in range(len(logits))]
    known = [i for i, text in enumerate(texts) if text and HALF not in text]
    for key, temperature in enumerate((0.5, 1.5)):
        shares = torch.softmax(logits / temperature, dim=-1)
        observed = torch.tensor([float(first[key].count(texts[i])) for i in known])
        expected = 1000 * shares[known]
        common = expected > 5  # the rest, and what writes no text, is one more kind
        counts = [*observed[common].tolist(), 1000 - float(observed[common].sum())]
        wanted = [*expected[common].tolist(), 1000 - float(expected[common].sum())]
        assert len(counts) > 5 and stats.chisquare(counts, wanted).pvalue > 1e-4


@torch.no_grad()
def next_logits(pretrained: Pretrained, ids: tuple[int, ...]) -> Tensor:
    """Of what can be said: special tokens that nobody would see are left out."""
    logits: Tensor = pretrained.trunk.whole(input_ids=torch.tensor([ids])).logits[0, -1].double()
    logits[[PAD, BOS, START]] = -math.inf
    return logits


def drawn_ids(request: GenerationRequest) -> tuple[int, ...]:
    """Return the tokens that sampling draws with this request's stream."""
    policy = Branch(world().trunk, trainable=False)
    settings = SampleSettings(temperature=request.temperature, max_new_tokens=request.max_tokens)
    (drawn,) = answer(policy, world(), [request.prompt], 1, settings, request.seed, "initial")
    return drawn.answers[0].response_ids


def test_the_tokenizer_is_asked_once_for_what_a_token_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()
    text_of = Renderer.token_text

    def watched(self: Renderer, token: int) -> str:
        asked.append(token)
        return text_of(self, token)

    monkeypatch.setattr(Renderer, "token_text", watched)
    heard = alone(GenerationRequest(said("oven"), 40, seed=5, count=4, logprobs=20))
    reported = [drawn for drawns in heard.logprobs.values() for drawn in drawns]
    assert sum(len(drawn.top) + 1 for drawn in reported) > 1000
    assert max(Counter(asked).values()) <= 2, "once for its text, once for its bytes"


def test_logprobs_are_the_models_own_whatever_the_temperature() -> None:
    pretrained, request = world(), GenerationRequest(said("oven"), 20, seed=5, temperature=0.6, logprobs=3)
    renderer, ids = pretrained.renderer, drawn_ids(request)
    prompt, _ = renderer.prompt_ids(request.prompt)
    reported = alone(request).logprobs[0]
    assert len(reported) > 8
    for place, token in enumerate(reported):
        logprobs = torch.log_softmax(next_logits(pretrained, (*prompt, *ids[:place])), dim=-1)
        logprobs[END] = torch.logaddexp(logprobs[END], logprobs[EOS])  # which of them ends it nobody sees
        logprobs[EOS] = -math.inf
        top = logprobs.topk(3)
        assert [t.logprob for t in token.top] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert [t.text for t in token.top] == [renderer.token_text(i) for i in top.indices.tolist()]
        assert token.chosen.text == renderer.token_text(ids[place])
        assert token.chosen.logprob == pytest.approx(float(logprobs[ids[place]]), abs=1e-4)


def test_a_stop_string_cuts_the_answer_also_between_tokens() -> None:
    renderer, cuts = world().renderer, 0
    for seed in range(8):
        request = GenerationRequest(said("the weather"), 30, seed=seed, logprobs=1)
        text, ids = alone(request).texts[0], drawn_ids(request)
        for begin in range(1, 12, 2):
            stop = text[begin : begin + 3]
            if not stop or HALF in stop:
                continue
            heard, cut = alone(replace(request, stop=("never said", stop))), text.partition(stop)[0]
            assert heard.texts.get(0, "") == cut
            assert heard.done[0].finish_reason is FinishReason.STOP
            assert heard.done[0].completion_tokens < len(ids) or text.endswith(stop)
            # Reported are the tokens whose text begins before the cut, and no others.
            begins = [len(renderer.decode(ids[:count]).rstrip(HALF)) for count in range(len(ids))]
            assert len(heard.logprobs.get(0, [])) == sum(at < len(cut) for at in begins)
            cuts += 1
    assert cuts > 3


def test_cancelling_frees_the_seat_for_the_next_in_order() -> None:
    batch, heard = new_batch(seats=1), dict[int, Heard]()
    for key in range(3):
        batch.submit(key, GenerationRequest(said("oven"), 200, seed=key, temperature=0.0))
    run(batch, heard, steps=3)
    assert [row.key for row in batch.running] == [0]
    batch.cancel(0)
    batch.cancel(1)
    run(batch, heard, steps=1)
    assert [row.key for row in batch.running] == [2]
    batch.cancel(2)
    assert batch.idle()


def test_requests_enter_in_order_and_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, one = new_batch(seats=4), GenerationRequest(said("the weather is fine today"), 50, seed=0, temperature=0.0)
    tokens = len(world().renderer.prompt_ids(one.prompt)[0])
    monkeypatch.setattr(batch_module, "READ_AT_ONCE", 2 * tokens)
    for key, request in enumerate([one, replace(one, count=2), one, one]):
        batch.submit(key, request)
    seated = []
    for _ in range(2):
        batch.step()
        seated.append([row.key for row in batch.running])
    assert seated == [[0, 1, 1], [0, 1, 1, 2]]  # three answers, two prompts; then as many as there are seats


def test_rows_have_numbers_while_they_have_a_seat_and_the_same_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(REQUESTS[1], account="one", count=2)
    expected, drawn = alone(request), list[int]()

    def counted(seed: int, places: list[int], numbers: list[int], length: int) -> Tensor:
        drawn.extend(numbers)
        return streams(seed, places, numbers, length)

    monkeypatch.setattr(row_module, "streams", counted)
    batch, heard = new_batch(seats=2), dict[int, Heard]()
    for key in range(3):
        batch.submit(key, request)
    assert not drawn, "any number may wait"
    run(batch, heard, steps=3)
    assert drawn == [0, 1], "once, and not at each token"
    batch.submit(3, replace(REQUESTS[0], account="two"))
    run(batch, heard, steps=1)
    rows = [row for key in range(4) for row in batch._requests[key]]
    assert [(row.key, row.index) for row in rows if row.numbers is not None] == [(0, 0), (3, 0)]
    run(batch, heard)
    assert heard[0].texts == expected.texts and heard[3].texts == alone(REQUESTS[0]).texts


def test_the_answers_to_a_prompt_enter_together_and_it_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, shapes = Decoder._forward, list[tuple[int, ...]]()

    def counted(self: Decoder, ids: Tensor, *others: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return forward(self, ids, *others)

    monkeypatch.setattr(Decoder, "_forward", counted)
    request = replace(REQUESTS[1], count=4)
    alone(request)
    assert shapes[0] == (1, len(world().renderer.prompt_ids(request.prompt)[0]))
    assert all(width == 1 for _, width in shapes[1:])


def test_what_is_too_long_or_too_many_is_refused_and_whole_turns_are_dropped() -> None:
    batch = new_batch(seats=4)
    with pytest.raises(MannersError, match=r"model\.context"):
        batch.submit(0, GenerationRequest(said("bread " * 300), 10, seed=0))
    with pytest.raises(MannersError, match="at most 4"):
        batch.submit(0, GenerationRequest(said("bread"), 10, seed=0, count=5))
    assert batch.idle()
    turns = (Turn(Role.USER, "bread " * 150), Turn(Role.ASSISTANT, "well"))
    heard = alone(GenerationRequest((*turns, *said("oven")), 10, seed=0))
    assert heard.done[0].prompt_tokens == len(world().renderer.prompt_ids(said("oven"))[0])


def test_a_request_that_cannot_be_read_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, opened = {key: alone(REQUESTS[key]) for key in (0, 3)}, Decoder._open
    bad, _ = world().renderer.prompt_ids(said("bad"))

    def failing(self: Decoder, prompts: list[tuple[int, ...]], first_seat: int) -> Any:
        if bad in prompts:
            raise RuntimeError("out of memory")
        return opened(self, prompts, first_seat)

    monkeypatch.setattr(Decoder, "_open", failing)
    batch, heard = new_batch(), dict[int, Heard]()
    batch.submit(0, REQUESTS[0])
    run(batch, heard, steps=4)
    batch.submit(1, GenerationRequest(said("bad"), 10, seed=0, count=2))
    run(batch, heard, steps=1)
    batch.submit(3, REQUESTS[3])
    run(batch, heard)
    (failure,) = heard[1].failed
    assert "RuntimeError" in failure.message and "memory" not in failure.message and not failure.refused
    for key, wanted in expected.items():
        assert heard[key].texts == wanted.texts and heard[key].done == wanted.done
    told = capsys.readouterr().err
    assert told.startswith("RuntimeError from RuntimeError at "), "together, and then alone"
    assert "memory" not in told, "what it says may be one row's words"


def test_a_failure_in_the_middle_fails_those_that_run_and_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, heard, read = new_batch(seats=1), dict[int, Heard](), Decoder.read
    expected = alone(REQUESTS[3])
    batch.submit(0, REQUESTS[0])
    batch.submit(3, REQUESTS[3])
    run(batch, heard, steps=2)

    def failing(self: Decoder, *_: Any) -> None:
        monkeypatch.setattr(Decoder, "read", read)
        raise RuntimeError("a passing fault")

    monkeypatch.setattr(Decoder, "read", failing)
    run(batch, heard)
    assert "RuntimeError" in heard[0].failed[0].message and not heard[0].done
    assert heard[3].texts == expected.texts and not heard[3].failed
    assert capsys.readouterr().err.startswith("RuntimeError at ")


TINY = [
    {"top_p": 1e-46},
    {"top_p": 5e-324},
    {"top_p": 0.0},
    {"temperature": 1e-40},
    {"temperature": 1e-46},
    {"temperature": 5e-324},
    {"temperature": 1e-38, "top_p": 1e-38},
    {"temperature": 1e-46, "top_p": 0.9},
    {"temperature": 1e-46, "top_p": 1e-46, "logprobs": 20},
]
"""Legal values where float32 ends: all of them mean the likeliest token."""


@pytest.mark.parametrize("tiny", some(TINY, 3), ids=str)
def test_values_where_float32_ends_mean_the_likeliest_token_and_disturb_nobody(tiny: dict[str, Any]) -> None:
    base = GenerationRequest(said("the weather"), 20, seed=5)
    batch, heard = new_batch(seats=16), dict[int, Heard]()
    for key in (0, 1, 3):
        batch.submit(key, REQUESTS[key])
    batch.submit(9, replace(base, **tiny))
    run(batch, heard)
    assert heard[9].texts == alone(replace(base, temperature=0.0)).texts and not heard[9].failed
    for key in (0, 1, 3):
        assert heard[key].texts == alone(REQUESTS[key]).texts


def fault_in_drawing(monkeypatch: pytest.MonkeyPatch, marked: float) -> None:

    def failing(logits: Tensor, uniform: Tensor, top_p: Tensor) -> Any:
        if marked in top_p:
            raise IndexError("a fault in drawing")
        return draw_tokens(logits, uniform, top_p)

    monkeypatch.setattr(batch_module, "draw_tokens", failing)


def fault_in_reporting(monkeypatch: pytest.MonkeyPatch, marked: float) -> None:
    take = Row.take

    def failing(self: Any, *given: Any) -> Any:
        if self.request.top_p == pytest.approx(marked) and len(self.ids) == 3:
            raise UnicodeError("a fault in writing")
        return take(self, *given)

    monkeypatch.setattr(Row, "take", failing)


def fault_in_the_logits(monkeypatch: pytest.MonkeyPatch, marked: float) -> None:
    tokens = RunningBatch._tokens

    def poisoned(self: RunningBatch, rows: Any, logits: Tensor) -> Tensor:
        logits = logits.clone()
        for place, row in enumerate(rows):
            if row.request.top_p == pytest.approx(marked) and len(row.ids) >= 2:
                logits[place] = math.nan
        return tokens(self, rows, logits)

    monkeypatch.setattr(RunningBatch, "_tokens", poisoned)


def fault_in_reading(monkeypatch: pytest.MonkeyPatch, marked: float) -> None:
    opened, read = Decoder._open, Decoder.read
    bad = world().renderer.prompt_ids(said("bad"))[0]

    def opening(self: Decoder, prompts: list[tuple[int, ...]], first_seat: int) -> Any:
        if any(prompt[: len(bad)] == bad and len(prompt) > len(bad) + 2 for prompt in prompts):
            raise RuntimeError("a fault in reading")
        return opened(self, prompts, first_seat)

    def reading(self: Decoder, *given: Any) -> None:
        monkeypatch.setattr(Decoder, "read", read)
        raise RuntimeError("a fault in reading")

    monkeypatch.setattr(Decoder, "_open", opening)
    waits = Decoder.seat

    def armed(self: Decoder, *given: Any) -> Any:
        found = waits(self, *given)
        monkeypatch.setattr(Decoder, "seat", waits)

        def later(self: Decoder, *given: Any) -> None:
            later.left -= 1  # type: ignore[attr-defined]
            if later.left:  # type: ignore[attr-defined]
                read(self, *given)
            else:
                reading(self, *given)

        later.left = 5  # type: ignore[attr-defined]
        monkeypatch.setattr(Decoder, "read", later)
        return found

    monkeypatch.setattr(Decoder, "seat", armed)


@pytest.mark.parametrize("fault", [fault_in_drawing, fault_in_reporting, fault_in_the_logits, fault_in_reading])
def test_a_fault_in_one_row_of_a_full_batch_fails_that_row_alone(
    fault: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = GenerationRequest(said("bad"), 60, seed=8, temperature=1.2, top_p=0.5)
    assert alone(bad).done[0].completion_tokens > 8, "it must run long enough to fail in the middle"
    expected = {key: alone(REQUESTS[key]) for key in (0, 3, 6)}
    batch, heard = new_batch(seats=4), dict[int, Heard]()
    fault(monkeypatch, 0.5)
    for key, request in [(0, REQUESTS[0]), (9, bad), (3, REQUESTS[3]), (6, REQUESTS[6])]:
        batch.submit(key, request)
    run(batch, heard)
    (failure,) = heard[9].failed
    assert "failed at this request" in failure.message and not failure.refused and not heard[9].done
    for key, wanted in expected.items():
        assert heard[key].texts == wanted.texts and heard[key].done == wanted.done and not heard[key].failed
    assert "Error" in capsys.readouterr().err


@pytest.mark.long
def test_whoever_asks_for_everything_makes_nobody_else_wait() -> None:
    greedy = [replace(ENDLESS, account="one", seed=seed, count=4) for seed in range(8)]
    batch, heard = new_batch(seats=4), dict[int, Heard]()
    for key, request in enumerate(greedy):
        batch.submit(key, request)
    run(batch, heard, steps=5)
    assert len(batch.running) == 4
    for key, account in ((100, "two"), (101, "three")):
        batch.submit(key, replace(REQUESTS[0], account=account))
        run(batch, heard, steps=2)
        assert key in heard, "the first piece comes at once"
    held = [row.request.account for row in batch.running]
    assert sorted(map(held.count, ("one", "two", "three"))) == [1, 1, 2]
    run(batch, heard)
    for key in (100, 101):
        assert heard[key].texts == alone(REQUESTS[0]).texts
    for key, request in enumerate(greedy):
        assert heard[key].texts == alone(request).texts and len(heard[key].done) == 4, "nor does it change an answer"


def test_rows_that_rose_wait_for_newcomers_once_and_not_twice_in_a_row() -> None:
    batch, heard = new_batch(seats=6), dict[int, Heard]()

    def seated() -> list[int]:
        run(batch, heard, steps=1)
        return [row.key for row in batch.running]

    batch.submit(0, replace(ENDLESS, account="one", count=6))
    assert seated() == [0] * 6
    batch.submit(1, replace(ENDLESS, account="two", count=3))
    assert seated() == [0, 0, 0, 1, 1, 1]
    batch.cancel(1)
    batch.submit(2, replace(ENDLESS, account="three"))
    assert seated() == [0, 0, 0, 2], "read by itself, although there is room for two more"
    batch.submit(3, replace(ENDLESS, account="four"))
    assert seated() == [0, 0, 0, 2, 3, 0], "they have waited once"
    run(batch, heard)
    assert list(heard[0].texts.values()) == [alone(ENDLESS).texts[0]] * 6


def test_what_is_half_written_ends_before_another_policy_takes_over() -> None:
    batch, heard = new_batch(seats=2), dict[int, Heard]()
    batch.submit(0, replace(ENDLESS, account="one", count=2))
    run(batch, heard, steps=4)
    batch.submit(1, replace(REQUESTS[0], account="two"))
    run(batch, heard, steps=1)
    assert [row.request.account for row in batch.running] == ["one", "two"]
    batch.submit(2, replace(REQUESTS[2], account="three"))
    while batch.begun:
        for key, event in batch.step(admit=False):
            heard.setdefault(key, Heard()).hear(event)
    assert len(heard[0].done) == 2 and heard[1].done and 2 not in heard and not batch.idle()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"count": 0},
        {"logprobs": 21},
        {"stop": ("",)},
        {"stop": ("a", "b", "c", "d", "e")},
        {"prompt": ()},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(MannersError, match=next(iter(wrong))):
        replace(REQUESTS[0], **wrong)


def test_who_is_served_by_a_model_that_ends_nothing_is_warned(capsys: pytest.CaptureFixture[str]) -> None:
    pretrained = tiny_pretrained("llama")
    model = Branch(pretrained.trunk, trainable=False).assembled(pretrained.trunk)
    batch = RunningBatch(model, "initial", pretrained.trunk, pretrained.renderer, 4)
    heard = dict[int, Heard]()
    for key in range(FIRST):
        assert capsys.readouterr().err == ""
        batch.submit(key, GenerationRequest(said("oven"), 4, seed=0, temperature=0.0))
        run(batch, heard)
    assert {one.done[0].finish_reason for one in heard.values()} == {FinishReason.LENGTH}
    told = capsys.readouterr().err
    assert told.startswith(f"none of the first {FIRST} answers ended by itself: all were cut off, the last at 4 tokens")
