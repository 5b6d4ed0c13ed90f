"""What the experiments on a small world measure: by hand, and by trying every case."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import ai_feedback, asking, judges, over_optimisation, rounds, world
from benchmarks.experiments.world import EACH, Pool, accuracy, best_of, best_of_kl, paired, requests
from manners.feedback.crowd import recruit
from manners.models.pretrained import Pretrained
from manners.settings import CrowdSettings, Settings
from manners.types import FinishReason, Response, Role, Turn
from tests.worlds import tiny_pretrained


def test_the_best_of_n_is_the_mean_over_every_choice() -> None:
    rng = np.random.default_rng(0)
    scored, values = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    for n in range(1, 7):
        every = [
            value[max(chosen, key=lambda i: score[i])]
            for score, value in zip(scored, values, strict=True)
            for chosen in combinations(range(6), n)
        ]
        assert best_of(scored, values, n) == pytest.approx(np.mean(every))


def test_the_kl_of_best_of_n_is_that_of_its_density() -> None:
    """The best of n has the density n u^(n-1) over ranks u in [0, 1]."""
    ranks = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 4, 64):
        density = n * ranks ** (n - 1)
        assert best_of_kl(n) == pytest.approx(float((density * np.log(density + 1e-300)).mean()), abs=1e-3)
    assert best_of_kl(1) == 0.0


def test_accuracy_counts_pairs_of_one_request_of_which_one_is_better() -> None:
    liked = np.array([[1.0, 2.0, 2.01], [0.0, 1.0, 3.0]])  # 2 and 2.01 are alike
    assert accuracy(liked, liked) == 1.0
    assert accuracy(-liked, liked) == 0.0
    scored = np.array([[0.0, 1.0, -1.0], [0.0, 1.0, 0.5]])
    assert accuracy(scored, liked) == pytest.approx(3 / 5)
    with pytest.raises(ZeroDivisionError):
        accuracy(np.zeros((1, 2)), np.zeros((1, 2)))


def test_requests_are_different_and_follow_from_the_seed() -> None:
    asked = requests(40, 1)
    assert len(set(asked)) == 40
    assert asked == requests(40, 1) and requests(20, 1) == asked[:20]
    assert not set(asked) & set(requests(40, 2))


def test_verdicts_saved_are_read_off_the_curve() -> None:
    steps = np.array(asking.STEPS, dtype=float)
    chance = np.tile(0.5 + 0.2 * steps / 480, (4, 1))
    twice = np.tile(0.5 + 0.4 * steps / 480, (4, 1))
    assert "needs -50% verdicts" in asking.saved(chance, twice) and "it saves verdicts" in asking.saved(chance, twice)
    assert "it costs verdicts" in asking.saved(twice, chance)
    assert "cannot be told" in asking.saved(chance, chance)
    # 0.58 and 0.62 lie between steps, and the curve falls back between them: it is come to first on the way up.
    bent = np.array([0.55, 0.6, 0.5, 0.64, 0.7, 0.7])
    assert asking._first(0.58, bent) == pytest.approx(60 + 60 * 0.6)
    assert asking._first(0.62, bent) == pytest.approx(180 + 60 * 0.5)
    assert asking._first(0.7, bent) == 360 and asking._first(0.5, bent) == 60


def test_of_two_ways_of_asking_that_are_the_same_neither_is_ahead() -> None:
    """Flat ends, where the best of many noisy steps passes what the last one came to: exchanged, the sign changes."""
    rng = np.random.default_rng(0)
    curve = 0.79 - 0.09 * np.exp(-(np.array(asking.STEPS) - 60) / 110)
    said = ""
    for _ in range(40):
        one, other = curve + rng.normal(0, 0.012, (2, 8, len(curve)))
        said += asking.saved(one, other)
        assert asking._log_ratio(one[0], other[0]) == pytest.approx(-asking._log_ratio(other[0], one[0]))
    assert said.count("cannot be told") >= 36


def test_no_request_is_of_two_uses() -> None:
    """What is measured on is not learned from, and a judge learns from other requests than the reward."""
    uses = {
        "compared": requests(over_optimisation.TRAIN, 1),
        "measured": requests(world.MEASURED, 2),
        "validated": requests(40, 3),
        "candidates": requests(world.CANDIDATES, 5),
        "others": requests(asking.OTHERS, 6),
        "to people": requests(ai_feedback.TO_PEOPLE, 8),
        "played": requests(max(ai_feedback.PLAYED, rounds.MEASURED), 12),
        "judges": judges.others_than(requests(over_optimisation.TRAIN, 1)),
    }
    assert len(uses["judges"]) == judges.OTHERS
    for one, other in combinations(uses, 2):
        assert not set(uses[one]) & set(uses[other]), (one, other)
    asked = {*requests(rounds.ROUNDS * rounds.ASKED, 11), *requests(ai_feedback.ASKED, 11)}
    assert not any(asked & set(uses[one]) for one in ("measured", "validated", "played"))


def test_another_world_or_another_code_is_another_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its run that over-optimises another file: a table never has parts of two."""
    tiny = tiny_pretrained()
    chosen = Settings()

    def made(pretrained: Pretrained, settings: Settings) -> world.World:
        session: Any = SimpleNamespace(pretrained=pretrained, settings=settings)
        return world.World(session, tmp_path)

    same = made(tiny, replace(chosen, model=replace(chosen.model, name="another folder")))
    assert same.made_of == made(tiny, chosen).made_of
    other, digest = tiny_pretrained(num_hidden_layers=5), made(tiny, chosen).made_of
    assert made(other, chosen).made_of != digest
    assert made(tiny, replace(chosen, ppo=replace(chosen.ppo, updates=7))).made_of != digest
    asked: list[str] = []

    def climbed(there: world.World, arm: str, seed: int) -> dict[str, Any]:
        asked.append(there.made_of)
        return {"points": []}

    monkeypatch.setattr(judges, "climb", climbed)
    for code in ("one", "other", "one"):
        monkeypatch.setattr(judges, "results", lambda name, code=code: SimpleNamespace(code=code))
        assert judges.run(made(tiny, chosen)) == ()
    assert len(asked) == 2


def test_a_judge_that_sees_the_fall_stops_the_run_and_keeps_what_was_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """The taste rises to 1 at the third version and falls; one judge goes along with it, one with the score."""
    tastes, scored = [0.0, 0.5, 1.0, 0.6, 0.2], [0.0, 0.5, 1.0, 1.3, 1.5]
    first = Pool((), (), np.array([[-1.0, 1.0], [1.0, -1.0]]))
    deviation = math.sqrt(2)
    pools = [Pool((), (), np.full((2, 2), taste * deviation)) for taste in tastes]
    versions = tuple(
        judges.Version(4 * place, 1.0, score, answers)
        for place, (score, answers) in enumerate(zip(scored, pools, strict=True))
    )
    monkeypatch.setattr(judges, "run", lambda world: versions)
    monkeypatch.setattr(judges, "measured", lambda world: first)
    sees = judges.verdict(None, [np.full((2, 2), taste) for taste in tastes])  # type: ignore[arg-type]
    assert sees["liked"] == pytest.approx(tastes)
    assert (sees["stopped"], sees["kept"]) == (12, 8)
    most = (0.5 + 1.0 + 0.6) / 3
    assert sees["of_peak"] == pytest.approx(1.0 / most)
    blind = judges.verdict(None, [np.full((2, 2), score) for score in scored])  # type: ignore[arg-type]
    assert (blind["stopped"], blind["kept"]) == (None, 16) and blind["of_peak"] == pytest.approx(0.2 / most)
    said = judges.table({"one": [{**sees, "accuracy": 0.5}, {**blind, "accuracy": 0.75}]})
    assert "| one | 50%, 75% | 1 of 2 | 12, - | 8, 16 |" in said


def test_tables_say_what_was_found() -> None:
    point = {"kl": 4.0, "score": 2.0, "kept_out": 1.0, "liked": 0.5, "words": 9.0, "update": 0}
    points = [point, point | {"liked": 1.5, "update": 4}, point | {"update": 8}]
    run = {"points": points, "returned": 4, "stopped": 8}
    chosen = {"one member": [{"accuracy": 0.7, "points": [point]}]}
    said = over_optimisation.table(chosen, {"one member": [run]}, {"one member": [run]})
    assert (
        said.count("update 4 (stopped at 8)") == 2
        and "one member, PPO as it ships" in said
        and f"{1.5 / over_optimisation.peak(points):.0%}" in said
    )
    assert over_optimisation.peak(points) == pytest.approx(1.0)  # the mean of 0.5 and 1.5, at either end
    alone = [{"accuracy": 0.6, "liked": 1.0, "ppo": 0.2}, {"accuracy": 0.7, "liked": 1.2, "ppo": 0.4}]
    judge = {"accuracy": 0.7, "liked": 1.1, "ppo": 0.8, "apart": 0.1}
    good = [judge | {"admitted": True, "failed": [], "cannot_tell": []}] * 2
    drifted = [
        judge | {"admitted": False, "failed": ["drift"], "cannot_tell": [], "ppo": own["ppo"] - 1} for own in alone
    ]
    told = ai_feedback.table(450, alone, {0.0: good, 0.25: drifted, 0.5: drifted})
    assert "| 2 of 2 | nothing |" in told and "| 0 of 2 | fails `drift` (2) |" in told
    assert (
        "+10 points" in told and "+5.0" in told and "| 0.80 | +0.50 [" in told and "| 900 verdicts of people |" in told
    )
    assert "2 before it drifts, and on none at 25% and 50% of its verdicts by length" in told
    assert "shown to be below that by people alone at 25% and 50%." in told
    back = ai_feedback.table(450, alone, {0.0: good, 0.25: drifted, 0.5: good})
    assert "on none at 25% of its" in back and "alone at 25%." in back, "a stage says nothing of those behind it"
    steady = ai_feedback.table(75, alone, {0.0: good, 0.5: good})
    assert "and on some at every stage;" in steady and "people alone at no stage." in steady
    end = {"verdicts": 78, "liked": 1.0, "kl": 2.0, "accuracy": 0.6, "words": 90}
    better = rounds.table(
        {"five rounds": [[end], [end | {"liked": 1.1}]], "one long PPO": [[end | {"liked": 0.1}]] * 2}
    )
    assert "rounds are better" in better


@cache
def stories(count: int, seed: int) -> Pool:
    """Requests with four answers each, which are kind now and then and differ in length."""
    rng = np.random.default_rng(seed)
    kind = ["Thank you, my friend, I hope you enjoy it.", "Please take care.", "You can do it, congratulations!"]
    plain = [f"The {what} went home {how}." for what in ("dog", "king", "boat") for how in ("late", "first", "alone")]
    prompts, answers = [], []
    for number in range(count):
        prompts.append((Turn(Role.USER, f"Tell me a story of a king and number {number}."),))
        said = [[*rng.choice(plain, rng.integers(3, 9)), *rng.choice(kind, rng.integers(0, 3))] for _ in range(EACH)]
        answers.append(tuple(Response(" ".join(rng.permutation(one)), "x", FinishReason.STOP) for one in said))
    return Pool(tuple(prompts), tuple(answers), np.zeros((count, EACH)))


@pytest.mark.long
def test_few_verdicts_admit_no_judge_and_enough_the_good_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = SimpleNamespace(crowd=recruit(CrowdSettings(taste="stories"), 0))
    monkeypatch.setattr(ai_feedback, "candidates", lambda _: stories(20, 1))
    monkeypatch.setattr(ai_feedback, "to_people", lambda _: stories(250, 2))
    monkeypatch.setattr(ai_feedback, "JUDGED", 60)
    people = ai_feedback.enough(there)
    assert 300 < people < 1500

    def admitted(people: int, drift: float) -> int:
        held = (ai_feedback.asked(there, people, drift, seed)[1] for seed in range(2))
        return sum(ai_feedback.held_against(one).admitted for one in held)

    assert admitted(ai_feedback.FEW, 0.0) == 0
    assert admitted(people, 0.0) == 2
    assert admitted(people, ai_feedback.MORE_DRIFTS[1]) == 0
    learned, held = ai_feedback.asked(there, people, 0.25, 0)
    ids = [one.id for one in learned]
    assert len(set(ids)) == len(ids) == people + ai_feedback.JUDGED
    assert sum(map(ai_feedback.people_of, learned)) == people == len(held)


def test_differences_are_paired_by_seed_with_students_interval() -> None:
    found = paired([1.0, 2.0, 4.0], [0.0, 0.0, 1.0])
    half = 4.302652730 * 1.0 / math.sqrt(3)  # t of 2 degrees; 1, 2 and 3 deviate by 1
    assert (found.estimate, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert paired([1.0], [0.0]).low == -math.inf


def test_a_taste_is_told_in_deviations_among_the_answers_to_one_request() -> None:
    pool = Pool((), (), np.array([[0.0, 2.0], [10.0, 14.0]]))
    assert pool.in_deviations(np.array([6.5 + math.sqrt(5.0)])) == pytest.approx([1.0])  # variances 2 and 8
