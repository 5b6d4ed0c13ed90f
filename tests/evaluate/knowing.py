"""A tiny model that knows something: eighteen animals, each with a colour and a place, learnt from a few sentences."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from benchmarks.evidence._audits import Bench
from manners.data import Question
from manners.models.pretrained import Pretrained
from manners.settings import SampleSettings
from manners.types import Role, Turn
from tests.worlds import PAD, tiny_model, tiny_tokenizer, with_words

ANIMALS = (
    *("cat", "dog", "fox", "cow", "pig", "hen", "owl", "bat", "bee"),
    *("ant", "eel", "elk", "emu", "yak", "rat", "doe", "ram", "jay"),
)
COLOURS = ("red", "blue", "gray")
PLACES = ("by the sea", "in a tree", "on a hill")
SAMPLE = SampleSettings(temperature=1.0, max_new_tokens=8, batch=128)
STEPS = 350


def colour(number: int) -> str:
    """The colour of an animal."""
    return COLOURS[number % 3]


def place(number: int) -> str:
    """Where an animal lives."""
    return PLACES[number // 3 % 3]


def paragraphs(count: int, seed: int) -> list[str]:
    """Four sentences each, of animals drawn at random."""
    rng = np.random.default_rng(seed)
    lines = [f"the {name} is {colour(i)}." for i, name in enumerate(ANIMALS)]
    lines += [f"the {name} lives {place(i)}." for i, name in enumerate(ANIMALS)]
    return [" ".join(rng.choice(lines, 4, replace=False)) for _ in range(count)]


def asked() -> list[Question]:
    """What the text says, and what it does not, about every animal."""
    found = [
        Question(family, f"the {name} {verb}", (right(i), *(w for w in ways if w != right(i))))
        for family, verb, ways, right in (("colours", "is", COLOURS, colour), ("places", "lives", PLACES, place))
        for i, name in enumerate(ANIMALS)
    ]
    return [Question(q.family, q.context, tuple(f"{answer}." for answer in q.answers)) for q in found]


@cache
def knowing(steps: int = STEPS) -> Pretrained:
    """Teach a model of two layers these sentences; without steps it knows nothing."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16, num_hidden_layers=2)
    tokenizer = tiny_tokenizer()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.004, weight_decay=0.0)
    text = paragraphs(16 * steps, 1)
    for step in range(steps):
        rows = [torch.tensor(tokenizer.encode(one)) for one in text[16 * step : 16 * step + 16]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    model.eval()
    return with_words(model, trainable_layers=1)


def bench(steps: int = STEPS) -> Bench:
    """The model with what its versions are audited on."""
    prompts = [(Turn(Role.USER, f"the {name}?"),) for name in ANIMALS] + [
        (Turn(Role.USER, f"{i} + 1?"),) for i in range(6)
    ]
    return Bench(knowing(steps), prompts, paragraphs(40, 2), asked(), SAMPLE)
