"""AI feedback: what an admitted judge adds to verdicts of people, and whether a drifting one is stopped in time.

    python -m benchmarks.experiments.ai_feedback --folder from-nothing

The crowd plays people: two of them judge each comparison. A planted judge, who is as they are on a good day, says what
it thinks of these and of 1,500 more. It is held against people as `manners judge` holds one (`feedback.admission`), and
a reward model learns from people alone, and from both (`reward.annotators = "human+ai"`). Then the judge drifts: more
and more of its verdicts follow length alone. At every stage it is held against as many *fresh* verdicts of people, and
the table says beside that what its verdicts would have done. Once with few verdicts of people, which admit nobody, and
once with enough.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    Pool,
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
from manners.types import Annotator, AnnotatorKind, Choice, Comparison, Interval, Verdict

JUDGE = Annotator("judge:planted", AnnotatorKind.AI)
FEW, JUDGED = 75, 1500
"""Comparisons that two people judge, and those that the judge alone does."""
TO_PEOPLE = 600
"""Requests whose answers are put before people: other ones than the judge has to itself."""
DRIFTS, MORE_DRIFTS = (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75)
"""Share of its verdicts that follow length alone: with few verdicts of people, and with enough."""
MEMBERS = 1
ASKED, UPDATES, PLAYED = 130, 30, 96
"""Requests that PPO learns on, its updates, and requests that the policy is measured by."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: Path = Path("from-nothing")
    """What `make from-nothing` has left."""
    seeds: tuple[int, ...] = (0, 1, 2)


def main(options: Options) -> None:
    """Run what has not been run, and publish the table."""
    world = open_world(options.folder)
    done = results("ai_feedback")
    tables = []
    for people, drifts in ((FEW, DRIFTS), (enough(world), MORE_DRIFTS)):
        sizes: Found = {"people": people, "judged": JUDGED, "measured": MEASURED, "drawn": DRAWN, "members": MEMBERS}
        sizes |= {"asked": ASKED, "updates": UPDATES, "played": PLAYED, "world": world.made_of}
        name = "few" if people == FEW else "enough"
        alone = [
            done.part(f"{name} people, seed {s}", sizes, partial(people_alone, world, people, s)) for s in options.seeds
        ]
        helped = {
            drift: [
                done.part(
                    f"{name} people and a judge {drift:.0%} length, seed {s}",
                    sizes,
                    partial(with_judge, world, people, drift, s),
                )
                for s in options.seeds
            ]
            for drift in drifts
        }
        tables.append(table(people, alone, helped))
    replace_between(PAGE, "ai-feedback", "\n\n".join([*tables, f"Differences are paired by seed. {done.measured()}"]))


def enough(world: World) -> int:
    """Return how many comparisons two people judge for a judge like them to be admitted.

    As `manners judge` counts it, and half as many again: a tie of theirs tells nothing, and of the seeds hardly one is
    to be in the fifth that would not do.
    """
    everything = to_people(world).comparisons()
    _, held = asked(world, len(everything), 0.0, 0)
    needed = held_against(held).needed
    return len(everything) if needed is None else min(len(everything), math.ceil(1.5 * needed / 2))


def to_people(world: World) -> Pool:
    """Return what people may be asked about."""
    return kept(world, requests(TO_PEOPLE, 8), EACH, 8)


def people_alone(world: World, people: int, seed: int) -> Found:
    """Learn from people alone."""
    comparisons, _ = asked(world, people, 0.0, seed)
    return came_to(world, [one for one in comparisons if people_of(one)], seed, judged=False)


def with_judge(world: World, people: int, drift: float, seed: int) -> Found:
    """Learn from people and from a judge, and hold the judge against fresh verdicts of people."""
    comparisons, fresh = asked(world, people, drift, seed)
    held = held_against(fresh)
    told: Found = {"admitted": held.admitted, "failed": list(held.failed), "cannot_tell": list(held.cannot_tell)}
    for name, check in (("apart", "agreement"), ("slope", "length_slope")):
        figure = held.value(check)
        told |= {name: None if figure is None else figure.estimate}
    return told | came_to(world, comparisons, seed, judged=True)


def held_against(fresh: Sequence[Comparison]) -> Admission:
    """Hold the judge against people; a planted one reads no text, so that no probe of the text is asked."""
    return admission(cases(fresh, JUDGE), {})


def asked(world: World, people: int, drift: float, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Return what is learned from, and what the judge is held against: comparisons of people, fresh for each stage."""
    rng = np.random.default_rng([seed, 7])
    others = candidates(world).comparisons()
    theirs = [replace(one, id=len(others) + (one.id or 0)) for one in to_people(world).comparisons()]
    first, rest = _some(theirs, people, rng), _some(others, JUDGED, rng)
    says = partial(_says, world, drift, rng)
    learned = _by_people(world, first, seed)
    fresh = learned
    if drift:
        fresh = _by_people(world, _some(theirs, people, rng), seed + 1000 * (1 + round(100 * drift)))
    held = [replace(one, verdicts=(*one.verdicts, says(one))) for one in fresh]
    return [*learned, *(replace(one, verdicts=(says(one),)) for one in rest)], held


def _some(comparisons: Sequence[Comparison], count: int, rng: np.random.Generator) -> list[Comparison]:
    return [comparisons[i] for i in rng.permutation(len(comparisons))[:count]]


def _by_people(world: World, comparisons: Sequence[Comparison], seed: int) -> list[Comparison]:
    """Have two of the crowd judge each, as people."""
    given = ask(world.crowd, comparisons, 2, seed)
    return [
        replace(
            one,
            verdicts=tuple(replace(v, annotator=replace(v.annotator, kind=AnnotatorKind.HUMAN)) for v in some),
        )
        for one, some in zip(comparisons, given, strict=True)
    ]


def _says(world: World, drift: float, rng: np.random.Generator, one: Comparison) -> Verdict:
    """Return the judge's verdict: by length, with the chance of its drift, and else as somebody in the crowd would.

    It always chooses a side, never by chance and never for being on the left.
    """
    if rng.random() < drift:
        longer = len(one.left.text) > len(one.right.text)
        return Verdict(Choice.LEFT if longer else Choice.RIGHT, JUDGE)
    somebody = world.crowd.annotators[rng.integers(len(world.crowd.annotators))]
    attentive = replace(somebody, lapse=0.0, side_bias=0.0, tie=0.0, strictness=-math.inf)
    verdict = judge(replace(world.crowd, annotators=(attentive,)), one, 0, rng)
    return Verdict(verdict.choice, JUDGE)


def people_of(comparison: Comparison) -> bool:
    """Return whether people have judged it."""
    return any(v.annotator.kind is AnnotatorKind.HUMAN for v in comparison.verdicts)


def came_to(world: World, comparisons: Sequence[Comparison], seed: int, judged: bool) -> Found:
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


def table(people: int, alone: Sequence[Found], helped: Mapping[float, Sequence[Found]]) -> str:
    """Return what people alone come to, and what with a judge, the further it has drifted."""
    lines = [
        "| learned from | admitted | what speaks against it | agreement less that among people | accuracy"
        " | over people alone [95 %] | taste of the best of 32 | over people alone [95 %]"
        " | taste after PPO | over people alone [95 %] |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {2 * people:,} verdicts of people | - | - | - | {_mean(alone, 'accuracy'):.1%} | -"
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
    return "\n".join([*lines, "", _in_time(people, alone, helped)])


def _in_time(people: int, alone: Sequence[Found], helped: Mapping[float, Sequence[Found]]) -> str:
    """Say at which drifts the judge is held back on every seed, and at which its verdicts are shown to do harm."""
    begun, *drifted = helped
    lost = [drift for drift in drifted if not any(run["admitted"] for run in helped[drift])]
    harm = [drift for drift, runs in helped.items() if _gain(runs, alone, "ppo").high < 0]
    held_back = f"and on none at {_stages(lost)} of its verdicts by length" if lost else "and on some at every stage"
    return (
        f"{2 * people:,} verdicts of people, {len(alone)} seeds: the judge is admitted on"
        f" {sum(run['admitted'] for run in helped[begun])} before it drifts, {held_back}; the taste"
        f" after PPO is shown to be below that by people alone at {_stages(harm)}."
    )


def _stages(drifts: Sequence[float]) -> str:
    return " and ".join(f"{drift:.0%}" for drift in drifts) or "no stage"


def _against(runs: Sequence[Found]) -> str:
    """Name the checks that a judge fails, and those that too little is known for, with the number of seeds."""
    told = []
    for key, words in (("failed", "fails"), ("cannot_tell", "cannot be told:")):
        counts = Counter(check for run in runs for check in run[key])
        if counts:
            told.append(f"{words} {', '.join(f'`{check}` ({n})' for check, n in counts.most_common())}")
    return "; ".join(told) or "nothing"


def _mean(runs: Sequence[Found], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def _gain(runs: Sequence[Found], alone: Sequence[Found], name: str) -> Interval:
    return paired(*([run[name] for run in ways] for ways in (runs, alone)))


def _over(runs: Sequence[Found], alone: Sequence[Found], name: str, times: float, unit: str) -> str:
    """Return the mean difference, paired by seed, with its interval."""
    gain = _gain(runs, alone, name)
    digits = 1 if times > 1 else 2
    estimate, low, high = (f"{times * end:+.{digits}f}" for end in (gain.estimate, gain.low, gain.high))
    return f"{estimate} [{low}, {high}]{unit}"


if __name__ == "__main__":
    main(tyro.cli(Options))
