"""AI feedback: what an admitted judge adds to a few verdicts of people, and whether a drifting one is stopped in time.

    python -m benchmarks.experiments.ai_feedback --folder from-nothing

The crowd plays people: 75 comparisons with two verdicts each. A planted judge, surer of itself than they are, says what
it thinks of these and of 1,500 more. It is held against people as `manners judge` holds one (`feedback.admission`), and
a reward model learns from people alone, and from both (`reward.annotators = "human+ai"`). Then the judge drifts: more
and more of its verdicts follow length alone. At every stage it is held against as many *fresh* verdicts of people, and
the table says beside that what its verdicts would have done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.experiments import PAGE, results
from benchmarks.experiments.world import (
    DRAWN,
    EACH,
    MEASURED,
    World,
    accuracy,
    best_of,
    candidates,
    draw,
    fine_tuned,
    kept,
    learn,
    material,
    measured,
    open_world,
    paired,
    requests,
    scores,
)
from benchmarks.publish import replace_between
from manners.feedback.admission import Admission, admission, cases
from manners.feedback.crowd import ask, judge
from manners.settings import RewardSettings
from manners.types import Annotator, AnnotatorKind, Choice, Comparison, Verdict

JUDGE = Annotator("judge:planted", AnnotatorKind.AI)
PEOPLE, JUDGED = 75, 1500
"""Comparisons that two people judge, and those that the judge alone does."""
DRIFTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Share of its verdicts that follow length alone."""
SURE = 0.15
"""Its noise: that of the surest people."""
MEMBERS = 1
ASKED, UPDATES, PLAYED = 130, 30, 96
"""Requests that PPO learns on, its updates, and requests that the policy is measured by."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: Path = Path("from-nothing")
    """What `make from-nothing` has left."""
    seeds: tuple[int, ...] = (0, 1, 2)
    drifts: tuple[float, ...] = DRIFTS


def main(options: Options) -> None:
    """Run what has not been run, and publish the table."""
    world = open_world(options.folder)
    done = results("ai_feedback")
    sizes = {"people": PEOPLE, "judged": JUDGED, "measured": MEASURED, "drawn": DRAWN, "members": MEMBERS}
    sizes |= {"asked": ASKED, "updates": UPDATES, "played": PLAYED}
    alone = [done.part(f"people, seed {s}", sizes, partial(people_alone, world, s)) for s in options.seeds]
    helped = {
        drift: [
            done.part(f"judge {drift:.0%} length, seed {s}", sizes, partial(with_judge, world, drift, s))
            for s in options.seeds
        ]
        for drift in options.drifts
    }
    replace_between(PAGE, "ai-feedback", table(alone, helped))


def people_alone(world: World, seed: int) -> dict[str, float]:
    """Learn from people alone."""
    comparisons, _ = asked(world, 0.0, seed)
    return came_to(world, [one for one in comparisons if people_of(one)], seed, judged=False)


def with_judge(world: World, drift: float, seed: int) -> dict[str, Any]:
    """Learn from people and from a judge, and hold the judge against fresh verdicts of people."""
    comparisons, fresh = asked(world, drift, seed)
    held = held_against(fresh)
    told = {"admitted": held.admitted, "failed": list(held.failed), "cannot_tell": list(held.cannot_tell)}
    agreement = held.value("agreement")
    told |= {"apart": None if agreement is None else agreement.estimate}
    return told | came_to(world, comparisons, seed, judged=True)


def held_against(fresh: Sequence[Comparison]) -> Admission:
    """Hold the judge against people; a planted one reads no text, so that no probe of the text is asked."""
    return admission(cases(fresh, JUDGE), {})


def asked(world: World, drift: float, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Return what is learned from, and what the judge is held against: comparisons of people, fresh for each stage."""
    rng = np.random.default_rng([seed, 7])
    everything = candidates(world).comparisons()
    order = [everything[i] for i in rng.permutation(len(everything))]
    first, rest = order[:PEOPLE], order[PEOPLE : PEOPLE + JUDGED]
    fresh = order[-PEOPLE:] if drift else first
    by_people = {id(one): answers for one, answers in zip(first, _people(world, first, seed), strict=True)}
    by_others = _people(world, fresh, seed + 1000 * (1 + DRIFTS.index(drift))) if drift else list(by_people.values())
    says = partial(_says, world, drift, rng)
    learned = [replace(one, verdicts=by_people[id(one)]) for one in first]
    learned += [replace(one, verdicts=(says(one),)) for one in rest]
    held = [replace(one, verdicts=(*v, says(one))) for one, v in zip(fresh, by_others, strict=True)]
    return learned, held


def _people(world: World, comparisons: Sequence[Comparison], seed: int) -> list[tuple[Verdict, ...]]:
    """Have two of the crowd judge each, as people."""
    return [
        tuple(replace(v, annotator=replace(v.annotator, kind=AnnotatorKind.HUMAN)) for v in some)
        for some in ask(world.crowd, comparisons, 2, seed)
    ]


def _says(world: World, drift: float, rng: np.random.Generator, one: Comparison) -> Verdict:
    """Return the judge's verdict: by length, with the chance of its drift, and else by the taste, surely."""
    if rng.random() < drift:
        longer = len(one.left.text) > len(one.right.text)
        return Verdict(Choice.LEFT if longer else Choice.RIGHT, JUDGE)
    person = replace(world.crowd.annotators[0], noise=SURE, lapse=0.0, side_bias=0.0)
    verdict = judge(replace(world.crowd, annotators=(person,)), one, 0, rng)
    return Verdict(verdict.choice, JUDGE)


def people_of(comparison: Comparison) -> bool:
    """Return whether people have judged it."""
    return any(v.annotator.kind is AnnotatorKind.HUMAN for v in comparison.verdicts)


def came_to(world: World, comparisons: Sequence[Comparison], seed: int, judged: bool) -> dict[str, float]:
    """Return how often a reward model agrees with the taste, and what it is worth to the crowd: best of 32, and PPO."""
    settings = RewardSettings(annotators="human+ai" if judged else "human")
    judges = frozenset({JUDGE}) if judged else frozenset[Annotator]()
    reward = learn(world, comparisons, candidates(world), MEMBERS, seed, judges, settings)
    scored, answers = scores(world, reward, measured(world)).mean(axis=0), measured(world)
    liked = best_of(scored, answers.in_deviations(answers.liked), 32)
    tuned = fine_tuned(world, reward, material(world, requests(ASKED, 11)), UPDATES, seed)
    begun = kept(world, requests(PLAYED, 12), EACH, 12)
    played = draw(world, tuned.policy, begun.prompts, EACH, seed + 1)
    return {
        "accuracy": accuracy(scored, answers.liked),
        "liked": liked,
        "ppo": float(begun.in_deviations(played.liked).mean()),
        "kl": tuned.kl,
    }


def table(alone: Sequence[dict[str, float]], helped: dict[float, list[dict[str, Any]]]) -> str:
    """Return what people alone come to, and what with a judge, the further it has drifted."""
    lines = [
        "| learned from | admitted | what speaks against it | agreement less that among people | accuracy"
        " | over people alone [95 %] | taste of the best of 32 | over people alone [95 %]"
        " | taste after PPO | over people alone [95 %] |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {2 * PEOPLE} verdicts of people | - | - | - | {_mean(alone, 'accuracy'):.1%} | -"
        f" | {_mean(alone, 'liked'):.2f} | - | {_mean(alone, 'ppo'):.2f} | - |",
    ]
    for drift, runs in helped.items():
        apart = [run["apart"] for run in runs if run["apart"] is not None]
        cells = [
            f"and {JUDGED:,} of the judge" + (f", {drift:.0%} of them by length" if drift else ""),
            f"{sum(run['admitted'] for run in runs)} of {len(runs)}",
            _against(runs),
            f"{100 * float(np.mean(apart)):+.0f} points" if apart else "-",
            f"{_mean(runs, 'accuracy'):.1%}",
            _over(runs, alone, "accuracy", 100, " points"),
            f"{_mean(runs, 'liked'):.2f}",
            _over(runs, alone, "liked", 1, ""),
            f"{_mean(runs, 'ppo'):.2f}",
            _over(runs, alone, "ppo", 1, ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{len(alone)} seeds; differences are paired by seed."])


def _against(runs: Sequence[dict[str, Any]]) -> str:
    """Name the checks that a judge fails, and those that too little is known for, with the number of seeds."""
    told = []
    for key, words in (("failed", "fails"), ("cannot_tell", "cannot be told:")):
        counts = Counter(check for run in runs for check in run[key])
        if counts:
            told.append(f"{words} {', '.join(f'`{check}` ({n})' for check, n in counts.most_common())}")
    return "; ".join(told) or "nothing"


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def _over(runs: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]], name: str, times: float, unit: str) -> str:
    """Return the mean difference, paired by seed, with its interval."""
    gain = paired(*([times * run[name] for run in ways] for ways in (runs, alone)))
    digits = 1 if times > 1 else 2
    return f"{gain.estimate:+.{digits}f} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]{unit}"


if __name__ == "__main__":
    main(tyro.cli(Options))
