"""What needs no network: how many bits a byte of text takes in gzip -9, and in an n-gram of bytes."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

ORDER = 5
"""A byte is predicted from the four before it."""
BASE = 257
"""Bytes, and what stands before a document."""
LEARNT_FROM = 16 * 2**20
"""Bytes at most that the n-gram learns from."""

Keys = NDArray[np.int64]


def gzip_bits(texts: Sequence[str]) -> float:
    """Return the bits that a byte takes in gzip -9, all texts one behind the other."""
    data = "".join(texts).encode()
    return 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)


def ngram_bits(training: Iterable[str], held_out: Sequence[str], order: int = ORDER) -> float:
    """Return the bits that a byte of the held-out texts takes in an interpolated n-gram of the training texts.

    P(w | h) = (c(hw) + t(h) P(w | h')) / (c(h) + t(h)), t(h) = kinds of bytes seen after h, h' = h without its first;
    below the shortest context every byte has 1/256. Each text begins anew. It never says that a text ends.
    Source: Witten and Bell 1991, method C, as interpolated in Chen and Goodman 1998.
    """
    seen, asked = _symbols(training, order), _symbols(held_out, order)
    wanted = asked[order - 1 :] < 256
    probability = np.full(int(wanted.sum()), 1 / 256)
    for length in range(1, order + 1):
        grams = _grams(seen, length, order)
        known, counts = np.unique(grams[seen[order - 1 :] < 256], return_counts=True)
        contexts, first = np.unique(known // BASE, return_index=True)
        total = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(known)))
        looked_up = _grams(asked, length, order)[wanted]
        count = _found(known, counts, looked_up)
        all_of, kinds_of = _found(contexts, total, looked_up // BASE), _found(contexts, kinds, looked_up // BASE)
        there = all_of > 0
        mixed = (count + kinds_of * probability) / np.maximum(all_of + kinds_of, 1)
        probability = np.where(there, mixed, probability)
    return float(-np.log(probability).sum() / math.log(2) / max(1, len(probability)))


def _symbols(texts: Iterable[str], order: int) -> Keys:
    """Return the bytes of texts, before each of them what stands for a beginning."""
    begin = np.full(order - 1, 256, np.int64)
    parts = [part for text in texts for part in (begin, np.frombuffer(text.encode(), np.uint8).astype(np.int64))]
    return np.concatenate(parts)


def _grams(symbols: Keys, length: int, order: int) -> Keys:
    """Return a number for the last `length` symbols at each place from `order - 1` on."""
    found = np.zeros(len(symbols) - order + 1, np.int64)
    for back in range(length - 1, -1, -1):
        found = found * BASE + symbols[order - 1 - back : len(symbols) - back]
    return found


def _found(known: Keys, values: Keys, keys: Keys) -> Keys:
    """Return the value of each key, 0 for those that are not known."""
    at = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return np.where(known[at] == keys, values[at], 0)
