"""A policy answers prompts: what sampling, evaluation and asking share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from manners.models.branches import Branch
from manners.models.generate import Decoding, Generated, generate
from manners.models.pretrained import Pretrained
from manners.settings import SampleSettings
from manners.text import Rendered
from manners.types import Answer, Dialogue, FinishReason, Response, Sampling

WINDOW = 6
"""Batches whose answers are handed out together: rows that finish early make room for those that wait."""


@dataclass(frozen=True)
class AnswerBatch:
    """Some answers with the prompt that each belongs to."""

    places: tuple[int, ...]
    """For each row, the index of its prompt."""
    answers: tuple[Answer, ...]
    generated: Generated


def answer(
    policy: Branch,
    pretrained: Pretrained,
    prompts: Sequence[Dialogue],
    count: int,
    settings: SampleSettings,
    seed: int,
    author: str,
    want_states: bool = False,
    on_step: Callable[[int], None] = lambda finished: None,
    greedy: bool = False,
) -> Iterator[AnswerBatch]:
    """Answer every prompt `count` times, `settings.batch` rows at a time, prompts of similar length together.

    Each answer has a random stream of its own, from the seed, the prompt's index and the answer's number, so that
    `settings.batch` changes nothing but speed; `greedy` takes the likeliest token each time, whatever the seed and the
    temperature. Raises TooLong for a prompt that leaves no room for an answer.
    """
    renderer = pretrained.renderer
    ids = [renderer.prompt_ids(prompt, settings.max_new_tokens)[0] for prompt in prompts]
    model = policy.assembled(pretrained.trunk)
    seats = max(count, settings.batch - settings.batch % count)  # so that the answers to a prompt enter together
    decoding = Decoding.of(renderer, settings, want_states, seats)
    if greedy:
        decoding = decoding.greedy()
    at_once = WINDOW * seats // count
    order = sorted(range(len(prompts)), key=lambda i: -len(ids[i]))
    sampling = Sampling(settings.temperature, settings.max_new_tokens, seed)
    for start in range(0, len(order), at_once):
        places = [i for i in order[start : start + at_once] for _ in range(count)]
        numbers = [n for _ in order[start : start + at_once] for n in range(count)]
        generated = generate(
            model,
            pretrained.trunk,
            [ids[i] for i in places],
            streams(seed, places, numbers, settings.max_new_tokens).to(pretrained.trunk.compute.uniform),
            decoding,
            on_step,
        )
        renderer.finishes.look(generated.finish, settings.max_new_tokens)
        rows = zip(places, generated.rendered, generated.finish, strict=True)
        yield AnswerBatch(
            tuple(places),
            tuple(_answer(pretrained, prompts[i], r, finish, author, sampling) for i, r, finish in rows),
            generated,
        )


def streams(seed: int, places: Sequence[int], numbers: Sequence[int], length: int) -> torch.Tensor:
    """Uniform numbers (rows, length), each row's from its own generator."""
    rows = []
    for place, number in zip(places, numbers, strict=True):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + place) * 1_009 + number)
        rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def _answer(
    pretrained: Pretrained, prompt: Dialogue, rendered: Rendered, finish: FinishReason, author: str, sampling: Sampling
) -> Answer:
    text = pretrained.renderer.decode(rendered.response_ids)
    return Answer(prompt, Response(text, author, finish, sampling), rendered.prompt_ids, rendered.response_ids)
