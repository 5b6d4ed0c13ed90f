"""Who would have noticed: judges of a policy's versions beside the crowd's taste, on a run that over-optimises.

    python -m benchmarks.experiments.judges --folder from-nothing

PPO with nothing to hold it, on a reward model from verdicts of which a quarter were turned round
(`benchmarks.experiments.over_optimisation`): the taste rises for a few updates and falls while the score rises on, and
the member kept out of the reward does not notice. Would another judge? Reward models from other comparisons, few or
many, as wrong as the reward's verdicts or not, judge the answers of every version. For each it is taken down when the
rule of `ppo.guard` would have stopped the run, which version would have been kept, and what that is liked. The seed
draws comparisons, heads and order; the run is the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tyro

from benchmarks.experiments import PAGE, over_optimisation, results
from benchmarks.experiments.over_optimisation import climb, compared, peak, reward_of
from benchmarks.experiments.world import (
    MEASURED,
    Pool,
    World,
    accuracy,
    draw,
    judged,
    kept,
    learn,
    measured,
    open_world,
    read,
    requests,
    scores,
    written,
)
from benchmarks.publish import replace_between
from manners.loop.session import digest
from manners.ppo.guard import over_optimisation as noticed
from manners.ppo.learner import UNMEASURED, Best, Validation
from manners.reward.ensemble import RewardModel
from manners.settings import RewardSettings
from manners.types import Dialogue
from manners.workspace import atomic_write

ARM, NOISE = "one member, 25 % turned round", 0.25
JUDGES = {
    "77 others, as wrong": (77, NOISE),
    "384 others, as wrong": (384, NOISE),
    "77 others, as given": (77, 0.0),
    "384 others, as given": (384, 0.0),
}
"""Verdicts that a judge learns from, on other comparisons than the reward, and share of them turned round."""
OTHERS = 640
"""Requests whose answers other judges learn from."""
SEEN = 16
"""Answers of the first version to a request by which a judge's accuracy is measured."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: Path = Path("from-nothing")
    """What `make from-nothing` has left."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Version:
    """A version on the way, with its answers."""

    update: int
    kl: float
    score: float
    """By the reward model that is optimised."""
    answers: Pool


def main(options: Options) -> None:
    """Run what has not been run, and publish the table."""
    world = open_world(options.folder)
    done = results("judges")
    sizes = over_optimisation.sizes(world) | {"seen": SEEN, "others": OTHERS}
    kept_out = done.part("the member kept out", sizes, partial(kept_out_of, world))
    found = {
        name: [done.part(f"{name}, seed {seed}", sizes, partial(judge, world, name, seed)) for seed in options.seeds]
        for name in JUDGES
    }
    text = table({"the member kept out, as it ships": [kept_out], **found})
    replace_between(PAGE, "judges", f"{text}\n\n{done.measured()}")


@cache
def run(world: World) -> tuple[Version, ...]:
    """Return the versions of the run, each with its answers; drawn once, and kept beside the other answers.

    A run of other code, in another world or of another length is another run.
    """
    key = digest((results("over_optimisation").code, over_optimisation.sizes(world)))
    file = world.drawn / f"over-optimised-{key}.json"
    if not file.exists():
        drawn = list[Pool]()

        def keeping(*asked: Any) -> Pool:
            drawn.append(draw(*asked))
            return drawn[-1]

        with patch.object(over_optimisation, "draw", keeping):
            points = climb(world, ARM, 0)["points"]
        rows = [point | {"answers": written(one)} for point, one in zip(points, drawn, strict=True)]
        world.drawn.mkdir(exist_ok=True)
        atomic_write(file, json.dumps(rows))
    asked = requests(MEASURED, 2)
    return tuple(
        Version(row["update"], row["kl"], row["score"], read(world, asked, row["answers"]))
        for row in json.loads(file.read_text(encoding="utf-8"))
    )


def judge(world: World, name: str, seed: int) -> dict[str, Any]:
    """Have a judge learn from other comparisons, and judge every version."""
    count, noise = JUDGES[name]
    others = kept(world, others_than(compared(world).prompts), 3, 11)
    comparisons = others.comparisons()
    mine = np.random.default_rng(seed).permutation(len(comparisons))[:count]
    verdicts = judged(world, [comparisons[i] for i in sorted(mine)], 50 + seed, noise)
    settings = RewardSettings(set_aside=0.02)  # nothing is measured on it
    model = learn(world, verdicts, compared(world), 1, seed, settings=settings)
    first = Pool(
        measured(world).prompts,
        tuple(some[:SEEN] for some in measured(world).answers),
        measured(world).liked[:, :SEEN],
    )
    return looked_at(world, model, first)


def others_than(known: Sequence[Dialogue]) -> list[Dialogue]:
    """Return as many requests as other judges learn from, none of which the reward has learned from."""
    return [one for one in requests(OTHERS + len(known), 11) if one not in set(known)][:OTHERS]


def kept_out_of(world: World) -> dict[str, Any]:
    """Return the same of the member kept out of the reward."""
    model = reward_of(world, ARM, 0).witness
    assert model is not None
    return looked_at(world, model, measured(world))


def looked_at(world: World, model: RewardModel, first: Pool) -> dict[str, Any]:
    """Have a reward model judge every version; its marks count from their mean on answers of the first version."""
    of_first = scores(world, model, first)[0]
    marks = [scores(world, model, version.answers)[0] - float(of_first.mean()) for version in run(world)]
    return {"accuracy": accuracy(of_first, first.liked), **verdict(world, marks)}


def verdict(world: World, marks: Sequence[Any]) -> dict[str, Any]:
    """Say when a judge's marks would have stopped the run, which version would have been kept, and how it is liked.

    `marks` are (requests, answers) of each version. As in a run, a version is kept that is not behind the best by more
    than the error of the difference (`Best.after`), up to the stop.
    """
    versions = run(world)
    liked = [float(measured(world).in_deviations(version.answers.liked).mean()) for version in versions]
    best, stopped = Best(0, UNMEASURED, {}, UNMEASURED), None
    points = []
    for version, mark in zip(versions, marks, strict=True):
        of_requests = tuple(mark.mean(axis=1).tolist())
        found = Validation(of_requests, version.score, float(mark.mean()), version.kl, 0.0)
        best = best.after(version.update, found, forgetting_limit=0.0, tensors=dict)
        points.append(found.metrics())
        if noticed(points) is not None:
            stopped = version.update
            break
    there = next(at for at, version in zip(liked, versions, strict=True) if version.update == best.update)
    return {
        "marks": [float(mark.mean()) for mark in marks],
        "liked": liked,
        "stopped": stopped,
        "kept": best.update,
        "of_peak": there / peak([{"liked": one} for one in liked]),
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of who would have noticed."""
    lines = [
        "| who judges | accuracy | would have stopped the run | at update | version kept | liked there, of the most |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        stops = [one["stopped"] for one in runs]
        cells = (
            name,
            ", ".join(f"{one['accuracy']:.0%}" for one in runs),
            f"{len(stops) - stops.count(None)} of {len(stops)}",
            ", ".join("-" if at is None else str(at) for at in stops),
            ", ".join(str(one["kept"]) for one in runs),
            ", ".join(f"{one['of_peak']:.0%}" for one in runs),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
