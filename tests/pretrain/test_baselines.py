"""What needs no network: the n-gram by hand, by brute force and as a distribution; gzip as gzip has it."""

from __future__ import annotations

import gzip
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.pretrain.baselines import gzip_bits, ngram_bits

LETTERS = st.lists(st.text("abä", min_size=1, max_size=12), min_size=1, max_size=4)


def brute(training: list[str], held_out: list[str], order: int) -> float:
    """The same model by dictionaries, one byte after another."""
    after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in training:
        symbols = [256] * (order - 1) + list(text.encode())
        for place in range(order - 1, len(symbols)):
            for length in range(order):
                after[tuple(symbols[place - length : place])][symbols[place]] += 1

    def chance(history: tuple[int, ...], byte: int) -> float:
        shorter = chance(history[1:], byte) if history else 1 / 256
        seen = after.get(history)
        if not seen:
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    nats = bytes_ = 0.0
    for text in held_out:
        symbols = [256] * (order - 1) + list(text.encode())
        for place in range(order - 1, len(symbols)):
            nats -= math.log(chance(tuple(symbols[place - order + 1 : place]), symbols[place]))
            bytes_ += 1
    return nats / math.log(2) / bytes_


@settings(deadline=None)
@given(LETTERS, LETTERS, st.integers(1, 5))
def test_it_is_what_dictionaries_say(training: list[str], held_out: list[str], order: int) -> None:
    assert ngram_bits(training, held_out, order) == pytest.approx(brute(training, held_out, order), rel=1e-9)


def test_by_hand() -> None:
    # "aab": a twice, b once, two kinds. P(a) = (2 + 2/256) / (3 + 2).
    assert ngram_bits(["aab"], ["a"], 1) == pytest.approx(-math.log2((2 + 2 / 256) / 5))
    # Never seen: 2/256 of the mass of kinds.
    assert ngram_bits(["aab"], ["c"], 1) == pytest.approx(-math.log2((2 / 256) / 5))


def test_probabilities_of_all_bytes_sum_to_one() -> None:
    singles = [chr(byte) for byte in range(128)]  # the other 128 are no text by themselves, and alike
    known = [2 ** -ngram_bits(["abcabca"], [one], 5) for one in singles]
    unseen = min(known)
    assert sum(known) + 128 * unseen == pytest.approx(1.0)


def test_a_text_that_repeats_costs_almost_nothing() -> None:
    assert ngram_bits(["abcdefgh" * 200], ["abcdefgh" * 20]) < 0.05
    noise = bytes(np.random.default_rng(0).integers(97, 123, 20_000).tolist()).decode()
    assert 4.6 < ngram_bits([noise[:10_000]], [noise[10_000:]], 1) < 4.8  # log2(26) = 4.70


def test_gzip_is_gzip() -> None:
    texts = ["once upon a time ", "there was ä king"]
    data = "".join(texts).encode()
    assert gzip_bits(texts) == 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)
