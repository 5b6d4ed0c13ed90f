"""A candidate beside the promoted policy over one trunk: each writes what it would write alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedModel

from manners.models.batch import RunningBatch, prepare
from manners.models.beside import Pair
from manners.models.branches import Branch
from manners.models.decoder import Decoder
from manners.models.requests import Failed, GenerationRequest
from tests.models.test_batch import Heard, run, said, world

REQUEST = GenerationRequest(said("how do I bake bread?"), 30, seed=3, count=2)
OTHER = GenerationRequest(said("the weather"), 30, seed=8, temperature=0.6, count=2)


@cache
def policy(scale: float) -> PreTrainedModel:
    """A policy whose own layers are so many times those of the initial model."""
    branch = Branch(world().trunk, trainable=True)
    for parameter in branch.own_tensors().values():
        parameter.mul_(scale)
    return branch.requires_grad_(False).assembled(world().trunk)


def batch(name: str, scale: float, seats: int = 4) -> RunningBatch:
    return RunningBatch(policy(scale), name, world().trunk, world().renderer, seats)


def pair(seats: int = 1) -> Pair:
    return Pair(batch("promoted", 1.0), batch("candidate", 1.3, seats))


def alone(name: str, scale: float, request: GenerationRequest) -> dict[int, str]:
    one, heard = batch(name, scale), dict[int, Heard]()
    one.submit(0, request)
    run(one, heard)
    return heard[0].texts


def submit(both: Pair, key: int, request: GenerationRequest) -> None:
    both.admit(key, prepare(world().renderer, request, 4))


def drive(both: Pair, heard: dict[int, Heard], steps: int = 1000, admit: bool = True) -> None:
    for _ in range(steps):
        if both.idle(admit):
            return
        for key, event in both.step(admit):
            heard.setdefault(key, Heard()).hear(event)


def authors(heard: Heard) -> dict[int, str]:
    return {index: done.version for index, done in heard.done.items()}


@pytest.mark.parametrize("side", [0, 1])
def test_each_writes_its_side_as_it_would_alone(side: int) -> None:
    both, heard = pair(), dict[int, Heard]()
    for key, request in enumerate((REQUEST, OTHER)):  # more than the candidate has seats
        submit(both, key, replace(request, candidate=side))
    submit(both, 2, REQUEST)
    drive(both, heard)
    for key, request in enumerate((REQUEST, OTHER)):
        one, other = alone("promoted", 1.0, request), alone("candidate", 1.3, request)
        assert one[side] != other[side]
        assert heard[key].texts == {side: other[side], 1 - side: one[1 - side]}
        assert authors(heard[key]) == {side: "candidate", 1 - side: "promoted"}
    assert authors(heard[2]) == {0: "promoted", 1: "promoted"}


def test_they_share_the_lower_layers() -> None:
    one, other = (dict(policy(scale).named_parameters()) for scale in (1.0, 1.3))
    shared = {name for name in one if one[name].data_ptr() == other[name].data_ptr()}
    assert any("layers.0." in name for name in shared) and not any("layers.3." in name for name in shared)


def test_another_promoted_policy_ends_it_and_what_it_writes_is_finished() -> None:
    both, heard = pair(), dict[int, Heard]()
    submit(both, 0, replace(REQUEST, candidate=0))
    for key, event in both.step(True):
        heard.setdefault(key, Heard()).hear(event)
    for _ in range(100):
        if not both.begun:
            break
        for key, event in both.step(False):
            heard.setdefault(key, Heard()).hear(event)
    submit(both, 1, replace(OTHER, candidate=1))  # waits in both, for the change
    before = both.candidate
    both.take_policy(policy(0.8), "next")
    assert (before, both.candidate, both.version) == ("candidate", None, "next")
    submit(both, 2, replace(OTHER, candidate=1))
    drive(both, heard)
    assert authors(heard[0]) == {0: "candidate", 1: "promoted"}
    assert authors(heard[1]) == {0: "next", 1: "candidate"}, "what it had been given it owes"
    assert authors(heard[2]) == {0: "next", 1: "next"}
    assert heard[2].texts == alone("next", 0.8, OTHER)
    assert both._candidate is None, "its memory is given back"


def test_a_candidate_with_nothing_to_do_goes_at_once() -> None:
    both = pair()
    both.take_policy(policy(0.8), "next")
    assert both._candidate is None and both.idle(True)


@pytest.mark.parametrize("failing", ["promoted", "candidate"])
def test_what_fails_in_one_fails_the_request_in_both(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both, heard = pair(), dict[int, Heard]()
    submit(both, 0, replace(REQUEST, candidate=0))
    submit(both, 1, OTHER)
    tokens = RunningBatch._tokens

    def fails(self: RunningBatch, *given: Any) -> Any:
        if self.version == failing:
            raise RuntimeError("a fault")
        return tokens(self, *given)

    monkeypatch.setattr(RunningBatch, "_tokens", fails)
    both.step(True)
    assert both._promoted.empty is (failing == "promoted") and both._candidate is not None and both._candidate.empty
    drive(both, heard)
    assert not heard.get(0, Heard()).done, "half a pair is none"
    assert bool(heard.get(1, Heard()).done) is (failing == "candidate")


def test_who_leaves_or_rests_does_so_in_both() -> None:
    both, heard = pair(), dict[int, Heard]()
    submit(both, 0, replace(REQUEST, candidate=0))
    both.step(True)
    both.rest(0)
    drive(both, heard)
    assert both.idle(True) and not heard
    both.go_on(0)
    both.cancel(0)
    assert both.idle(True) and both._promoted.empty and both._candidate is not None and both._candidate.empty


def test_what_nobody_reads_is_given_up_in_both_also_while_the_candidate_writes() -> None:
    both, heard = pair(seats=2), dict[int, Heard]()
    submit(both, 0, replace(REQUEST, candidate=0))
    drive(both, heard, steps=3)
    both.rest(0)
    submit(both, 1, replace(OTHER, candidate=1))
    drive(both, heard, steps=2, admit=False)
    assert both._candidate is not None and [row.key for row in both._candidate.running] == [1]
    assert both.begun and both.end_resting("ask again") == ((0, Failed("ask again")),) and not both.begun
    drive(both, heard)
    assert not heard[0].done and heard[1].done.keys() == {0, 1}


def test_what_one_of_them_cannot_read_fails_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    both, read = pair(), Decoder.read
    submit(both, 0, replace(REQUEST, candidate=0))
    both.step(True)

    def failing(self: Decoder, *_: Any) -> None:
        monkeypatch.setattr(Decoder, "read", read)
        raise RuntimeError("a passing fault")

    monkeypatch.setattr(Decoder, "read", failing)
    assert [(key, type(event)) for key, event in both.read()] == [(0, Failed)]
    assert both.idle(True) and both._promoted.empty and both._candidate is not None and both._candidate.empty
