"""Weights that were handed over: what arrives is what was sent, and what is not the trainer's is told apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.scale.handover import PROBE_TOKENS, Held, digest, fault, held, parcel, probe_of, unpack
from manners.text import Rendered
from tests.ppo.scripted import VALIDATION
from tests.worlds import END_IDS, tiny_pretrained

OURS = Held(4, "aaaa", (-1.0, -2.0, -3.0))


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def moved(world: Pretrained, seed: int) -> Branch:
    """A policy that has learnt something."""
    branch = Branch(world.trunk, trainable=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.own_tensors().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return branch


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (OURS, None),
        (replace(OURS, logprobs=(-1.0, -2.0, -3.3)), None),  # off by 0.1 on average
        (replace(OURS, number=3), "its weights are stale: those of hand-over 3, and this is number 4"),
        (replace(OURS, number=5), "its weights are stale: those of hand-over 5, and this is number 4"),
        (replace(OURS, digest="bbbb"), "its weights are not the trainer's (bbbb, and should be aaaa)"),
        (
            replace(OURS, logprobs=(-1.0, -2.0, -3.6)),
            "with the trainer's weights its log-probabilities are off by 0.2 nats a token",
        ),
        (
            replace(OURS, logprobs=(-1.0, -2.0, math.nan)),
            "with the trainer's weights its log-probabilities are off by nan nats a token",
        ),
        (
            replace(OURS, logprobs=(-1.0, -2.0)),
            "with the trainer's weights its log-probabilities are off by nan nats a token",
        ),
    ],
)
def test_what_is_stale_corrupted_or_computes_something_else_is_named(theirs: Held, says: str | None) -> None:
    assert fault(OURS, theirs, 0.11) == says


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_arrives_is_what_was_sent_to_the_bit(world: Pretrained, dtype: torch.dtype) -> None:
    sent, received = (moved(world, seed).to(dtype) for seed in (1, 2))
    assert digest(sent) != digest(received)
    unpack(parcel(sent), received)
    theirs = received.own_tensors()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in sent.own_tensors().items())
    assert digest(sent) == digest(received)


def test_a_parcel_is_as_large_as_the_branch_and_no_larger(world: Pretrained) -> None:
    branch = moved(world, 1)
    own = [p for p in branch.parameters() if p.requires_grad]
    assert sum(data.nbytes for data in parcel(branch).values()) == sum(p.numel() * 4 for p in own)


def test_every_bit_and_every_name_counts(world: Pretrained) -> None:
    sent, received = moved(world, 1), moved(world, 1)
    contents = parcel(sent)
    for name in contents:
        wrong = {other: np.array(data) for other, data in contents.items()}
        wrong[name].flat[-1] ^= 128
        unpack(wrong, received)
        assert digest(received) != digest(sent), name
    name, *others = contents
    with pytest.raises(KeyError):
        unpack({other: contents[other] for other in others}, received)
    with pytest.raises((KeyError, RuntimeError)):
        unpack({**contents, name: contents[name][..., :-8]}, received)
    with pytest.raises(KeyError):
        unpack({**contents, "another": contents[name]}, received)


def test_the_probe_is_what_the_policy_thinks_likeliest(world: Pretrained) -> None:
    policy = moved(world, 1)
    found = probe_of(policy, world, VALIDATION[0])
    assert found.prompt_ids == VALIDATION[0] and 0 < len(found.response_ids) <= PROBE_TOKENS
    whole = policy.assembled(world.trunk)
    ids = list(VALIDATION[0])
    unseen = world.trunk.vocabulary.unseen.tolist()
    for token in found.response_ids:
        with torch.no_grad():
            logits = whole(torch.tensor([ids])).logits[0, -1]
        logits[unseen] = -torch.inf
        if token not in END_IDS:  # several tokens end an answer, and count together
            assert int(logits.argmax()) == token
        ids.append(token)


def test_the_same_weights_look_the_same_and_others_do_not(world: Pretrained) -> None:
    policy = moved(world, 1)
    probe = probe_of(policy, world, VALIDATION[0])
    ours = held(1, policy, world, probe)
    assert held(1, moved(world, 1), world, probe) == ours
    other = held(1, moved(world, 2), world, probe)
    assert other.digest != ours.digest and other.logprobs != ours.logprobs


def test_a_trunk_that_is_not_the_trainers_shows_in_the_log_probabilities_alone() -> None:
    here, there = tiny_pretrained(), tiny_pretrained()
    probe = Rendered(VALIDATION[0], (50, 60, 70))
    with torch.no_grad():
        for parameter in there.trunk.whole.get_input_embeddings().parameters():
            parameter.mul_(1.5)
    ours, theirs = (held(1, Branch(one.trunk, trainable=True), one, probe) for one in (here, there))
    assert ours.digest == theirs.digest
    assert (fault(ours, theirs, 0.02) or "").startswith("with the trainer's weights its log-probabilities are off by")
