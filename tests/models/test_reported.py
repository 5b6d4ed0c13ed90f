"""What is told of tokens beside their text, of all rows at once, and that first tokens do not wait for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from manners.models import batch as batch_module
from manners.models.reported import reported
from manners.models.requests import DrawnToken, Failed, GenerationRequest
from manners.models.vocabulary import Vocabulary
from tests.models.test_batch import REQUESTS, Heard, alone, new_batch, run, said

LETTERS = "abcde"


def test_of_several_rows_each_is_told_its_own() -> None:
    nothing = torch.tensor([], dtype=torch.long)
    rows = [[0.1, 0.2, 0.3, 0.25, 0.15], [0.6, 0.05, 0.05, 0.1, 0.2], [0.2, 0.5, 0.1, 0.15, 0.05]]
    found = reported(
        lambda token: (LETTERS[token], LETTERS[token].encode()),
        Vocabulary(nothing, nothing, 0),
        torch.tensor(rows).log() + torch.tensor([[3.0], [-2.0], [0.0]]),
        [2, 3, 0],
        [1, 3, 0],
    )
    assert [(one.chosen.text, round(torch.tensor(one.chosen.logprob).exp().item(), 4)) for one in found] == [
        ("c", 0.3),
        ("d", 0.1),
        ("a", 0.2),
    ]
    assert ["".join(token.text for token in one.top) for one in found] == ["c", "aed", ""]


def test_first_tokens_are_told_before_the_others_are_looked_at() -> None:
    first, later = replace(REQUESTS[0], logprobs=3, count=2), replace(REQUESTS[0], account="another", seed=4)
    batch, told = new_batch(seats=4), list[Any]()
    batch.submit(0, first)
    run(batch, {}, steps=3)
    batch.submit(1, later)
    rest = batch.step(tell=told.append)
    assert [{key for key, _ in some} for some in (*told, rest)] == [{1}, {0}]
    heard = {0: Heard(), 1: Heard()}
    for key, event in told[0]:
        heard[key].hear(event)
    run(batch, heard)
    assert heard[1].texts == alone(later).texts


def test_a_fault_in_what_is_told_of_one_row_fails_that_row_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = replace(REQUESTS[0], logprobs=2)

    def failing(name: Any, vocabulary: Any, logits: Tensor, tokens: Any, counts: list[int]) -> list[DrawnToken]:
        if 7 in counts:
            raise UnicodeError("a fault in naming")
        return reported(name, vocabulary, logits, tokens, counts)

    expected = alone(right)
    monkeypatch.setattr(batch_module, "reported", failing)
    batch, heard = new_batch(seats=4), dict[int, Heard]()
    batch.submit(0, right)
    batch.submit(9, GenerationRequest(said("bad"), 60, seed=8, logprobs=7))
    run(batch, heard)
    assert isinstance(heard[9].failed[0], Failed) and not heard[9].done
    assert heard[0].texts == expected.texts and heard[0].logprobs.keys() == expected.logprobs.keys()
    assert "UnicodeError" in capsys.readouterr().err
