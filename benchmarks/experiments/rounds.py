"""Do rounds pay? Five short rounds, each with a reward model that has seen more, beside one long PPO on the first.

    python -m benchmarks.experiments.rounds --folder from-nothing

Both get as many verdicts, as many answers to learn from and as many updates. In rounds, a fifth of the requests at a
time is answered by the policy as it is by then, the crowd compares, a reward model learns from all verdicts so far, and
PPO goes on from that policy, its KL penalty against the version that everything began as. The other way asks about all
requests at once, trains one reward model, and runs PPO through. No policy is refused: what the gate does is another
question. Measured by the crowd's taste without noise, on requests of no other use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from benchmarks.experiments import PAGE, results
from benchmarks.experiments.world import (
    Pool,
    World,
    accuracy,
    draw,
    fine_tuned,
    judged,
    learn,
    material,
    open_world,
    paired,
    requests,
    scores,
)
from benchmarks.publish import replace_between
from manners.models.branches import Branch
from manners.reward.ensemble import RewardModel
from manners.types import Comparison

ROUNDS, ASKED, EACH, UPDATES = 5, 26, 3, 6
"""Rounds; requests asked about in each; answers to each of them; updates of PPO in each."""
MEASURED, ANSWERS = 96, 4
MEMBERS = 2


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: Path = Path("from-nothing")
    """What `make from-nothing` has left."""
    seeds: tuple[int, ...] = (0, 1, 2)


def main(options: Options) -> None:
    """Run what has not been run, and publish the table."""
    world = open_world(options.folder)
    done = results("rounds")
    sizes: dict[str, int | str] = {
        "rounds": ROUNDS,
        "asked": ASKED,
        "each": EACH,
        "updates": UPDATES,
        "measured": MEASURED,
    }
    sizes |= {"world": world.made_of}
    found = {
        name: [done.part(f"{name}, seed {seed}", sizes, partial(play, world, seed, rounds)) for seed in options.seeds]
        for name, rounds in (("five rounds", ROUNDS), ("one long PPO", 1))
    }
    replace_between(PAGE, "rounds", f"{table(found)} {done.measured()}")


def play(world: World, seed: int, rounds: int) -> list[dict[str, float]]:
    """Play so many rounds over all requests and updates; return where each of them ended."""
    asked = requests(ROUNDS * ASKED, 11)
    begun = draw(world, world.begun(), asked, EACH, seed)
    first = draw(world, world.begun(), requests(MEASURED, 12), ANSWERS, seed)
    read = material(world, asked)
    comparisons: list[Comparison] = []
    policy: Branch | None = None
    points = []
    size = len(asked) // rounds
    for turn in range(rounds):
        some = asked[turn * size : (turn + 1) * size]
        answers = begun if rounds == 1 else draw(world, policy or world.begun(), some, EACH, seed + 100 * turn)
        comparisons += judged(world, answers.comparisons(), seed + 100 * turn)
        numbered = [replace(one, id=number) for number, one in enumerate(comparisons)]
        reward = learn(world, numbered, begun, MEMBERS, seed)
        found = fine_tuned(world, reward, read, UPDATES * ROUNDS // rounds, seed + turn, policy)
        policy = found.policy
        points.append(_point(world, policy, reward, first, found.kl, len(comparisons), seed))
    return points


def _point(
    world: World, policy: Branch, reward: RewardModel, first: Pool, kl: float, verdicts: int, seed: int
) -> dict[str, float]:
    """Measure a policy: `liked` is in deviations among the first version's answers to one request, from their mean."""
    answers = draw(world, policy, first.prompts, ANSWERS, seed + 1)
    return {
        "verdicts": verdicts,
        "liked": float(first.in_deviations(answers.liked).mean()),
        "kl": kl,
        "accuracy": accuracy(scores(world, reward, answers).mean(axis=0), answers.liked),
        "words": answers.words,
    }


def table(found: dict[str, list[list[dict[str, float]]]]) -> str:
    """Return where each way ended, and the difference, paired by seed."""
    lines = [
        "| | verdicts | taste, by seed | mean | KL | accuracy of its reward model on its answers | words |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        for turn in range(len(runs[0])):
            points = [run[turn] for run in runs]
            told = name if len(runs[0]) == 1 else f"round {turn + 1} of {len(runs[0])}"
            lines.append(_row(told, points))
    rounds, once = ([run[-1]["liked"] for run in runs] for runs in found.values())
    gain = paired(rounds, once)
    told = "rounds are better" if gain.low > 0 else "rounds are worse" if gain.high < 0 else "cannot tell"
    interval = f"{gain.estimate:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    return "\n".join([*lines, "", f"Five rounds over one long PPO, {len(once)} seeds: {interval}: {told}."])


def _row(name: str, points: Sequence[dict[str, float]]) -> str:
    mean = {key: float(np.mean([point[key] for point in points])) for key in points[0]}
    cells = [
        name,
        f"{mean['verdicts']:.0f}",
        ", ".join(f"{point['liked']:+.2f}" for point in points),
        f"{mean['liked']:+.2f}",
        f"{mean['kl']:.1f}",
        f"{mean['accuracy']:.1%}",
        f"{mean['words']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(tyro.cli(Options))
