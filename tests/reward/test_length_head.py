"""The head that length goes to: its formulas, that it is dropped, and that what is left does not pay for length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from manners.audit.forms import FILLER, FORMS
from manners.audit.material import material
from manners.audit.probes import probes
from manners.audit.reward import figures, in_units
from manners.audit.rules import REWARD, held, rules
from manners.models.pretrained import Pretrained
from manners.results.audit import FAIL, PASS, Check
from manners.reward.augment import Texts
from manners.reward.ensemble import score_rendered
from manners.reward.labelled import Counts
from manners.reward.length import correlation, log_lengths, ruler, slopes
from manners.reward.pairs import ReadPairs, read
from manners.reward.train import Trained, train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.text import Rendered
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from tests.reward.killed import killed
from tests.worlds import tiny_pretrained, with_compute

SETTINGS = RewardSettings(members=1, epochs=8, batch=16, learning_rate=0.01, set_aside=0.35, curve=False)
WORDS = ("bread", "oven", "train", "sea", "noon", *(word for sentence in FILLER for word in sentence.split()))
ANNA = Annotator("anna", AnnotatorKind.HUMAN)


def comparisons(count: int, seed: int = 0) -> list[Comparison]:
    """Make comparisons of answers of 3 to 24 words, one of which says thanks: liked for that, and for twice the length.

    P(chosen) is a logistic function of 3 for thanks and 2 for each doubling of the words.
    """
    rng = random.Random(seed)
    made = []
    for number in range(count):
        words = [rng.randint(3, 24), rng.randint(3, 24)]
        texts = [" ".join(rng.choices(WORDS, k=k)) for k in words]
        polite = rng.random() < 0.5
        texts[polite] = f"Thanks. {texts[polite]}"
        worth = [3.0 * (side == polite) + 2.0 * np.log2(k) for side, k in enumerate(words)]
        left = rng.random() < 1 / (1 + np.exp(worth[1] - worth[0]))
        verdict = Verdict(Choice.LEFT if left else Choice.RIGHT, ANNA)
        one, other = (Response(text, "initial") for text in texts)
        prompt = (Turn(Role.USER, f"question {number}?"),)
        made.append(Comparison(prompt, one, other, AskedHow.RANDOM, 1.0, (verdict,), id=number + 1))
    return made


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def test_the_penalty_by_hand() -> None:
    # (3 + 1) / root(10 * 2); a pair that is shown the other way round says the same.
    margins, d, turn = torch.tensor([3.0, -1.0]), torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])
    assert float(correlation(margins, d)) == pytest.approx(4 / 20**0.5)
    assert float(correlation(margins * turn, d * turn)) == pytest.approx(4 / 20**0.5)
    # Without a mean it is that of all pairs and the same pairs turned round.
    both = np.corrcoef([3.0, -1.0, -3.0, 1.0], [1.0, -1.0, -1.0, 1.0])[0, 1]
    assert float(correlation(margins, d)) == pytest.approx(both)


def test_slopes_are_those_of_differences_and_leave_the_scale_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    margins, d = torch.randn((2, 7), generator=generator, dtype=torch.float64)
    found = slopes(margins, d)
    for row, step in enumerate(1e-6 * torch.eye(7, dtype=torch.float64)):
        apart = correlation(margins + step, d) ** 2 - correlation(margins - step, d) ** 2
        assert float(found[row]) == pytest.approx(float(apart) / 2e-6, abs=1e-6)
    assert float(found @ margins) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("margins", "d"), [([1.0, 2.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 2.0]), ([], [])])
def test_where_nothing_differs_nothing_is_pulled(margins: list[float], d: list[float]) -> None:
    assert slopes(torch.tensor(margins), torch.tensor(d)).tolist() == [0.0] * len(margins)
    assert float(correlation(torch.tensor(margins), torch.tensor(d))) == 0


def test_the_ruler_is_what_a_logistic_regression_says(world: Pretrained, tmp_path: Path) -> None:
    labelled, rendered = read(world.renderer, label(comparisons(120)))
    data = ReadPairs(world, labelled.pairs, rendered, tmp_path / "states", "reading")
    which = range(len(labelled.pairs))
    d = log_lengths(data, which)
    sides = [(pair.prompt, side) for pair in data.pairs for side in (pair.left, pair.right)]
    tokens = np.array([len(rendered[exchange].response_ids) for exchange in sides])
    assert d == pytest.approx(np.log(tokens[0::2] / tokens[1::2]))
    # The likelihood is level there: of the lengths that were chosen as much was observed as is expected.
    a = ruler(data, which)
    left = np.array([pair.weights.left for pair in data.pairs])
    assert 0.3 < a < 10 and float(d @ (left - 1 / (1 + np.exp(-a * d)))) == pytest.approx(0, abs=0.05)
    # What nobody has judged has no length, in the ruler or in the penalty.
    data.pairs = [replace(pair, made=True) for pair in data.pairs]
    assert not log_lengths(data, which).any()


@pytest.mark.parametrize("longer_is_better", [True, False])
def test_verdicts_that_all_follow_length_end_at_the_bound(longer_is_better: bool) -> None:
    tokens, chosen = [(2, 1), (1, 4)], [Counts(1.0, 0.0, 0.0), Counts(0.0, 1.0, 5.0)]
    rendered = [Rendered((), (1,) * count) for pair in tokens for count in pair]
    weights = chosen if longer_is_better else [Counts(right, left, tie) for left, right, tie in chosen]
    pairs = [SimpleNamespace(weights=of, made=False) for of in weights]
    data: Any = SimpleNamespace(rendered=rendered, sides=[(0, 1), (2, 3)], pairs=pairs)
    assert ruler(data, [0, 1]) == pytest.approx(20 if longer_is_better else -20, abs=0.01)
    assert log_lengths(data, [1, 0]) == pytest.approx([-np.log(4), np.log(2)])
    assert log_lengths(data, []).shape == (0,)


def weights(trained: Trained) -> list[torch.Tensor]:
    return [tensor for member in trained.reward.members for tensor in member.own_tensors().values()]


def test_micro_batches_change_nothing(world: Pretrained) -> None:
    settings = replace(SETTINGS, epochs=1, members=1, learning_rate=1e-3, length_head=True, augment=0.3)
    texts = Texts(probes, FORMS)
    whole = weights(train(settings, 0, world, comparisons(30), texts=texts))
    narrow = replace(world, trunk=with_compute(world.trunk, bucket_tokens=100))
    for a, b in zip(weights(train(settings, 0, narrow, comparisons(30), texts=texts)), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_is_kept_is_a_member_as_any_other(world: Pretrained) -> None:
    settings = replace(SETTINGS, epochs=1, members=1)
    plain = train(settings, 0, world, comparisons(30))
    found = train(replace(settings, length_head=True), 0, world, comparisons(30))
    shapes = [{name: t.shape for name, t in run.reward.members[0].own_tensors().items()} for run in (plain, found)]
    assert shapes[0] == shapes[1]
    pairs = found.split.held_out
    rendered = [world.renderer.render(pair.prompt, side) for pair in pairs for side in (pair.left, pair.right)]
    again = score_rendered(found.reward, world, rendered).view(-1, 2)
    torch.testing.assert_close(again, found.member_scores[0], atol=1e-4, rtol=1e-4)


def audited(world: Pretrained, trained: Trained) -> dict[str, Check]:
    """Audit a reward model on the pairs that were set aside."""
    pairs = trained.split.held_out
    asked = material(pairs, pairs, trained.split.train)
    exchanges = asked.exchanges()
    columns = np.asarray(score_rendered(trained.reward, world, [world.renderer.render(*e) for e in exchanges])).T
    by_exchange = dict(zip(exchanges, columns.astype(np.float64), strict=True))
    found = figures(in_units(by_exchange, trained.reward.unit, pairs), asked, 0)
    return {f.name: held(f.name, rules().of(REWARD, f.name), f.value, f.n, f.sentence) for f in found}


def knows_content(trained: Trained) -> float:
    """Return how often the answer that says thanks is above the other, on pairs set aside."""
    polite = np.array(["Thanks" in pair.left.text for pair in trained.split.held_out])
    return float(np.mean((np.asarray(trained.margins) > 0) == polite))


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_length_is_dropped_with_its_head_and_content_stays(world: Pretrained, seed: int) -> None:
    said: Sequence[Comparison] = comparisons(240, seed)
    plain = train(SETTINGS, seed, world, said)
    found = train(replace(SETTINGS, length_head=True), seed, world, said)
    caught, free = (audited(world, run)["length_slope"] for run in (plain, found))
    limit = rules().of(REWARD, "length_slope").margin
    assert caught.verdict != PASS and (caught.value or 0) > limit, "labels that follow length are caught"
    assert free.verdict != FAIL and abs(free.value or 0) < limit, "and this keeps within the limit of the audit"
    assert knows_content(found) >= knows_content(plain)


@pytest.mark.long
def test_a_run_that_was_killed_ends_as_one_that_never_was(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, epochs=2, members=1, length_head=True)
    whole = train(settings, 0, world, comparisons(60))
    run = killed(lambda run: train(settings, 0, world, comparisons(60), run), 3, tmp_path / "run", monkeypatch)
    assert torch.equal(train(settings, 0, world, comparisons(60), run).member_scores, whole.member_scores)
