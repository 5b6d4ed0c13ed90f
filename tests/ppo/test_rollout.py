"""A batch of experience, against the whole model in plain transformers, one response at a time and without padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from manners import ranks
from manners.launched import Place
from manners.models.branches import Branch
from manners.models.generate import Generated, generate
from manners.models.pretrained import Pretrained
from manners.ppo import rollout
from manners.ppo.course import Roles
from manners.ppo.curves import retokenised, rollout_metrics
from manners.ppo.rollout import Drawer, Drawn, Rollout, collect, draw, draw_weights, measure, micro_batches
from manners.reward.ensemble import Scored
from manners.settings import PPOSettings, SampleSettings
from manners.text import Rendered, collate
from manners.types import FinishReason
from tests.ppo.scripted import LIKED, PROMPTS, likes, roles
from tests.worlds import BOS, END, END_IDS, EOS, PAD, START, tiny_pretrained

SAMPLE = SampleSettings(temperature=0.8, max_new_tokens=12)
SETTINGS = PPOSettings(unfinished_penalty=0.5, gamma=0.9, lam=0.8)
COEFFICIENT = 0.3


@pytest.fixture(scope="module")
def world() -> Pretrained:
    """A model that ends about half of its responses: the end tokens' logits are raised."""
    pretrained = tiny_pretrained()
    with torch.no_grad():
        head = pretrained.trunk.whole.get_output_embeddings().weight
        head[sorted(END_IDS)] *= 3
    return pretrained


@pytest.fixture(scope="module")
def players(world: Pretrained) -> Roles:
    """Roles with a policy that has moved away from the reference."""
    found = roles(world, likes(world))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return found


def drawn(players: Roles) -> Rollout:
    return collect(players, PROMPTS, SETTINGS, SAMPLE, COEFFICIENT, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batch_of(players: Roles) -> Rollout:
    return drawn(players)


def test_the_world_has_responses_of_both_kinds(batch_of: Rollout) -> None:
    assert set(batch_of.draws.finish) == {FinishReason.STOP, FinishReason.LENGTH}
    assert len({len(r.response_ids) for r in batch_of.draws.rendered}) > 3


def alone(model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """Log-probabilities of a response's tokens, one forward of the whole model without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / SAMPLE.temperature
    logits[:, END] = logits[:, [EOS, END]].logsumexp(dim=1)  # which of them ends it nobody sees, and no other special
    logits[:, [PAD, BOS, EOS, START]] = -torch.inf
    logprobs: Tensor = logits.log_softmax(-1)[range(len(response)), list(response)]
    return logprobs


def test_kl_is_that_of_the_whole_models(batch_of: Rollout, players: Roles, world: Pretrained) -> None:
    policy = players.policy.assembled(world.trunk)
    for row, r in enumerate(batch_of.draws.rendered):
        length = len(r.response_ids)
        of_policy, of_reference = (alone(m, r.prompt_ids, r.response_ids) for m in (policy, world.trunk.whole))
        for found in (batch_of.draws.logprobs, batch_of.logprobs):
            torch.testing.assert_close(found[row, :length], of_policy, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch_of.kl[row, :length], of_policy - of_reference, atol=1e-4, rtol=1e-4)
        assert not batch_of.kl[row, length:].any()
    assert float(batch_of.kl.sum(dim=1).mean()) > 0.1


def test_every_drawn_token_counts_and_no_other(batch_of: Rollout) -> None:
    keep = batch_of.batch.keep
    for row, (r, finish) in enumerate(zip(batch_of.draws.rendered, batch_of.draws.finish, strict=True)):
        length = len(r.response_ids)
        assert keep[row].tolist() == [True] * length + [False] * (keep.shape[1] - length)
        assert batch_of.batch.response_ids[row, :length].tolist() == list(r.response_ids)
        ended = r.response_ids[-1] in END_IDS
        assert ended == (finish is FinishReason.STOP)
        assert not END_IDS & set(r.response_ids[:-1])


def test_the_score_less_the_penalty_comes_at_the_last_token(batch_of: Rollout) -> None:
    penalties = batch_of.rewards + COEFFICIENT * batch_of.kl
    for row, (r, finish) in enumerate(zip(batch_of.draws.rendered, batch_of.draws.finish, strict=True)):
        score = 4 * sum(i < LIKED for i in r.response_ids) / len(r.response_ids) - 0.5 * (finish is FinishReason.LENGTH)
        expected = torch.zeros(batch_of.batch.keep.shape[1])
        expected[len(r.response_ids) - 1] = score
        torch.testing.assert_close(penalties[row], expected, atol=1e-5, rtol=1e-5)
        assert float(batch_of.scores[row]) == pytest.approx(score, abs=1e-5)


def test_advantages_are_those_of_the_definition_whitened_over_the_batch(batch_of: Rollout) -> None:
    raw = []
    for row, r in enumerate(batch_of.draws.rendered):
        length = len(r.response_ids)
        rewards = batch_of.rewards[row].tolist()
        values = [t / 10 for t in range(length)] + [0.0]
        deltas = [rewards[t] + 0.9 * values[t + 1] - values[t] for t in range(length)]
        raw += [sum(0.72 ** (u - t) * deltas[u] for u in range(t, length)) for t in range(length)]
    keep = batch_of.batch.keep
    unwhitened = torch.tensor(raw)
    torch.testing.assert_close(
        batch_of.advantages[keep], (unwhitened - unwhitened.mean()) / unwhitened.std(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close((batch_of.returns - batch_of.values)[keep], unwhitened, atol=1e-4, rtol=1e-4)
    assert float(batch_of.advantages[keep].mean()) == pytest.approx(0, abs=1e-5)
    assert not batch_of.advantages[~keep].any()


def test_what_was_drawn_with_other_rounding_weighs_as_much_as_it_would_have_come(
    players: Roles, batch_of: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sampler's own log-probabilities are made wrong by a known amount: ratios and the KL know nothing of it.
    off = torch.tensor([-1.0, -0.1, 0.0, 0.3, 0.69, 0.7, 3.0])
    sampled = generate

    def elsewhere(*given: Any) -> Generated:
        draws = sampled(*given)
        columns = torch.arange(draws.logprobs.shape[1])
        shifted = draws.logprobs - off[columns % len(off)]
        return replace(draws, logprobs=torch.where(draws.batch.keep, shifted, 0.0))

    monkeypatch.setattr(rollout, "generate", elsewhere)
    found, keep = drawn(players), batch_of.batch.keep
    expected = off[torch.arange(keep.shape[1]) % len(off)].expand(keep.shape)
    torch.testing.assert_close(found.drift[keep], expected[keep], atol=1e-4, rtol=1e-4)
    weights = torch.tensor([math.exp(-1.0), math.exp(-0.1), 1.0, math.exp(0.3), math.exp(0.69), 2.0, 2.0])
    by_hand = batch_of.advantages * weights[torch.arange(keep.shape[1]) % len(off)]
    torch.testing.assert_close(found.advantages[keep], by_hand[keep], atol=1e-3, rtol=1e-3)
    for name in ("logprobs", "kl", "rewards", "values", "returns"):
        torch.testing.assert_close(getattr(found, name), getattr(batch_of, name), atol=1e-4, rtol=1e-4)
    curves = rollout_metrics(found, players.pretrained.renderer)
    assert curves["policy/draw_weight_max"] == pytest.approx(math.exp(3.0), rel=1e-3)
    assert curves["policy/draw_weight_cut"] == pytest.approx(float((expected > math.log(2.0))[keep].float().mean()))
    assert curves["policy/draw_weight_avg"] == pytest.approx(float(expected.exp().clamp(max=2)[keep].mean()), rel=1e-3)
    curves = rollout_metrics(batch_of, players.pretrained.renderer)
    assert curves["policy/draw_weight_avg"] == pytest.approx(1.0, abs=1e-4)


def test_a_weighted_mean_over_what_was_drawn_is_the_mean_over_what_is_trained() -> None:
    trained, drawn_from = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.35, 0.25])
    worth = torch.tensor([1.0, -2.0, 5.0])
    weights = draw_weights((trained / drawn_from).log().unsqueeze(0))[0]
    assert float((drawn_from * weights * worth).sum()) == pytest.approx(float((trained * worth).sum()))


@pytest.mark.parametrize("answers", [2, 4])
def test_several_answers_to_a_prompt_are_measured_against_each_other(players: Roles, answers: int) -> None:
    prompts = [prompt for prompt in PROMPTS[:6] for _ in range(answers)]
    settings = replace(SETTINGS, lam=1.0, gamma=1.0, answers=answers)
    found = collect(players, prompts, settings, SAMPLE, 0.0, torch.Generator().manual_seed(1))
    values = torch.arange(found.batch.keep.shape[1]) / 10
    for row, score in enumerate(found.scores.tolist()):
        first = row // answers * answers
        others = [found.scores[i] for i in range(first, first + answers) if i != row]
        gained = score - float(sum(others)) / (answers - 1)  # with lambda 1 and no KL, every token's return
        length = int(found.batch.keep[row].sum())
        torch.testing.assert_close(found.returns[row, :length], torch.full((length,), gained), atol=1e-4, rtol=1e-4)
    keep = found.batch.keep
    raw = (found.returns - values)[keep]
    torch.testing.assert_close(found.advantages[keep], (raw - raw.mean()) / raw.std(), atol=1e-4, rtol=1e-4)
    assert float(found.rewards.sum()) == pytest.approx(float(found.scores.sum()), rel=1e-4), "curves show whole scores"


def test_micro_batches_change_nothing(players: Roles, batch_of: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(micro_batches(batch_of.batch, range(24))) < 3
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 100)
    assert len(micro_batches(batch_of.batch, range(24))) > 3
    again = drawn(players)
    for name in ("kl", "rewards", "values", "advantages", "returns", "scores"):
        torch.testing.assert_close(getattr(again, name), getattr(batch_of, name), atol=1e-4, rtol=1e-4)


def test_micro_batches_hold_rows_of_similar_length_and_what_all_begin_with_counts_as_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = tuple(range(20, 29))
    lengths = [2, 5, 1, 9, 3]
    batch = collate([Rendered((*common, 40 + row), (50,) * length) for row, length in enumerate(lengths)], PAD)
    assert batch.common == 9
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 1)
    assert micro_batches(batch, range(5)) == [[3], [1], [4], [0], [2]], "the longest first, each alone"
    assert micro_batches(batch, [4, 2, 1]) == [[1], [4], [2]]
    # Beside the common tokens each has one more of its prompt: 3, 4 and 2 tokens, which take 12 side by side.
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 12)
    assert micro_batches(batch, [0, 4, 2]) == [[4, 0, 2]]
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 11)
    assert micro_batches(batch, [0, 4, 2]) == [[4, 0], [2]]


def test_without_a_reward_model_there_are_scores_of_no_member(players: Roles, batch_of: Rollout) -> None:
    scored, (logprobs,), values = measure(batch_of.draws, None, (players.policy,), SAMPLE.temperature)
    assert scored.members.shape == (0, 24) and scored.camps is None and not values.any()
    torch.testing.assert_close(logprobs, batch_of.logprobs, atol=1e-4, rtol=1e-4)


def in_shares(players: Roles, edges: Sequence[int], drawn: list[Drawn]) -> Drawer:
    """What draws the rows between these edges each by themselves, and puts them together."""

    def drawer(
        policy: Branch, prompts: Sequence[tuple[int, ...]], uniform: Tensor, on_step: Callable[[int], None]
    ) -> Drawn:
        pretrained = players.pretrained
        for start, stop in pairwise(edges):
            some = prompts[start:stop], uniform[start:stop]
            drawn.append(draw(policy, players.reference, players.reward, pretrained, SAMPLE, *some))
        return Drawn.together(drawn, pretrained, {"workers/count": 2.0})

    return drawer


@pytest.mark.parametrize("edges", [(0, 24), (0, 1, 24), (0, 1, 9, 24)])
@pytest.mark.parametrize("layers", [2, "all"])
def test_shares_that_others_draw_make_the_same_rollout(edges: Sequence[int], layers: int | Literal["all"]) -> None:
    world = tiny_pretrained(trainable_layers=layers)
    with torch.no_grad():
        world.trunk.whole.get_output_embeddings().weight[sorted(END_IDS)] *= 3
    players = roles(world, likes(world))
    parts = list[Drawn]()
    generators = (torch.Generator().manual_seed(1) for _ in range(2))
    whole, shared = (
        collect(players, PROMPTS, SETTINGS, SAMPLE, COEFFICIENT, generator, drawer=drawer)
        for generator, drawer in zip(generators, (None, in_shares(players, edges, parts)), strict=True)
    )
    widths = {(part.draws.batch.prompt_width, part.draws.batch.keep.shape[1]) for part in parts}
    assert len(widths) > 1 or len(edges) == 2, "shares of one shape would not show how they are laid side by side"
    assert shared.draws.rendered == whole.draws.rendered and shared.draws.finish == whole.draws.finish
    assert torch.equal(shared.batch.ids, whole.batch.ids) and torch.equal(shared.batch.attend, whole.batch.attend)
    assert shared.batch.common == whole.batch.common
    attend = whole.batch.attend
    torch.testing.assert_close(shared.states[attend], whole.states[attend], atol=1e-5, rtol=1e-5)
    assert not bool(shared.states[~attend].any()) or layers == "all"
    for name in ("scores", "logprobs", "drift", "kl", "rewards", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(shared, name), getattr(whole, name), atol=1e-5, rtol=1e-5)
    now, before = (rollout_metrics(one, world.renderer) for one in (shared, whole))
    assert now["workers/count"] == 2.0 and "workers/count" not in before


def test_responses_that_are_read_in_other_tokens_than_were_drawn_are_counted(players: Roles) -> None:
    """Of four the second spells a word by letters, and the third shows half a character; the fourth was cut off."""
    renderer = players.pretrained.renderer
    word = renderer.text_ids("the train")
    letters = tuple(i for letter in "the train" for i in renderer.text_ids(letter))
    [half, *_] = renderer.text_ids("\U0001f600")
    assert renderer.decode(letters) == renderer.decode(word) and len(letters) > len(word)
    said = [(*word, END), (*letters, END), (half, END), word]
    rendered = tuple(Rendered(PROMPTS[0], ids) for ids in said)
    finish = (*[FinishReason.STOP] * 3, FinishReason.LENGTH)
    draws = Generated(rendered, finish, collate(rendered, 0), torch.zeros(4, len(letters) + 1), None)
    assert retokenised(draws, renderer) == 0.5


def test_what_camps_of_annotators_like_is_put_together_too(players: Roles, world: Pretrained) -> None:
    drawn = [
        Drawn(part.draws, Scored(part.scored.members, camps=part.scored.members.repeat(3, 1)), part.ref_logprobs)
        for part in [
            draw(
                players.policy, players.reference, players.reward, world, SAMPLE, PROMPTS[i : i + 4], torch.rand(4, 12)
            )
            for i in (0, 4)
        ]
    ]
    found = Drawn.together(drawn, world, {}).scored
    assert found.camps is not None and found.camps.shape == (3, 8)
    torch.testing.assert_close(found.camps[2], found.members[0])


@pytest.mark.parametrize("count", [2, 3])
def test_what_several_processes_measure_comes_to_the_whole(
    count: int, players: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = drawn(players)

    def measured() -> tuple[Tensor, Tensor, Tensor]:
        scored, (logprobs,), values = measure(
            found.draws, players.reward, (players.policy,), SAMPLE.temperature, players.value, shared=True
        )
        return scored.members, logprobs, values

    whole = measured()
    added = list[int]()
    monkeypatch.setattr(ranks, "add", lambda tensors: added.append(len(list(tensors))))
    parts = list[tuple[Tensor, Tensor, Tensor]]()
    for number in range(count):
        monkeypatch.setattr(ranks, "place", lambda number=number: Place(number, count))
        parts.append(measured())
    assert added == [3] * count, "scores, log-probabilities and values"
    for alone, *shares in zip(whole, *parts, strict=True):
        assert all(0 < int((share != 0).sum()) < int((alone != 0).sum()) for share in shares), "each has read some"
        assert torch.allclose(sum(shares, torch.zeros(())), alone, atol=1e-5)
