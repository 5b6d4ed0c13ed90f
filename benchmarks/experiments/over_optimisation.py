"""Over-optimisation: what is liked, beside what is scored, the further a policy goes from where it began.

    python -m benchmarks.experiments.over_optimisation --folder from-nothing

The two curves of Gao et al. 2022 (Scaling laws for reward model overoptimization) and Coste et al. 2023: the score of
the reward model that is optimised, and the crowd's taste, which it was to learn, against the root of the KL. Both ways
to optimise: best of n, and PPO with nothing to hold it (no KL penalty, no plain text, no warning heeded). Reward models
of one member and of three, from verdicts as the crowd gave them and from the same with a quarter turned round. Where
the run would have been stopped, and which version it would have returned, is taken down on the way. Beside it a run as
`make from-nothing` has it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.experiments import PAGE, results
from benchmarks.experiments.world import (
    DRAWN,
    MEASURED,
    Pool,
    World,
    accuracy,
    best_of,
    best_of_kl,
    draw,
    judged,
    kept,
    learn,
    material,
    measured,
    open_world,
    requests,
    scores,
)
from benchmarks.publish import ROOT, replace_between
from manners.metrics import RunLog
from manners.models.branches import Branch
from manners.ppo.guard import Act, Warned
from manners.ppo.learner import Learner, Validation
from manners.ppo.train import train
from manners.reward.ensemble import RewardModel
from manners.types import Dialogue

PICTURE = ROOT / "docs" / "pictures" / "over-optimisation.png"
ARMS = {
    "one member": (1, 0.0),
    "three members": (3, 0.0),
    "one member, 25 % turned round": (1, 0.25),
    "three members, 25 % turned round": (3, 0.25),
}
"""Members, and share of the verdicts turned round."""
TRAIN = 128
"""Requests that are compared and trained on, three answers each."""
CHOICES = (1, 2, 4, 8, 16, 32, 64, 128)
UPDATES, EVERY = 60, 4
ANSWERS = 4
"""To each request, by which a version of PPO is measured."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: Path = Path("from-nothing")
    """What `make from-nothing` has left."""
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    ppo_seeds: tuple[int, ...] = (0,)
    """Seeds that PPO is run with too."""
    held: tuple[str, ...] = ("one member", "one member, 25 % turned round")
    """Arms that are also run as the example runs PPO."""


def main(options: Options) -> None:
    """Run what has not been run, and publish table and figure."""
    world = open_world(options.folder)
    done = results("over_optimisation")
    chosen: dict[str, list[Any]] = {}
    climbed: dict[str, list[Any]] = {}
    held: dict[str, list[Any]] = {}
    for arm in options.arms:
        for seed in options.seeds:
            work = partial(choose, world, arm, seed)
            chosen.setdefault(arm, []).append(done.part(f"best of n, {arm}, seed {seed}", sizes(world), work))
        for seed in options.ppo_seeds:
            work = partial(climb, world, arm, seed)
            climbed.setdefault(arm, []).append(done.part(f"PPO, {arm}, seed {seed}", sizes(world), work))
            if arm in options.held:
                work = partial(climb, world, arm, seed, held=True)
                held.setdefault(arm, []).append(done.part(f"PPO as it ships, {arm}, seed {seed}", sizes(world), work))
    said = (
        f"Accuracy and best of n: means of {len(options.seeds)} seeds; PPO: a value for each of"
        f" {len(options.ppo_seeds)}. {done.measured()}"
    )
    replace_between(PAGE, "over-optimisation", f"{table(chosen, climbed, held)}\n\n{said}")
    picture(chosen, climbed, held)


def sizes(world: World) -> dict[str, Any]:
    """Return what decides the parts beside the code."""
    return {
        "train": TRAIN,
        "measured": MEASURED,
        "drawn": DRAWN,
        "updates": UPDATES,
        "every": EVERY,
        "world": world.made_of,
    }


@cache
def compared(world: World) -> Pool:
    """Three answers to each of the requests that are trained on."""
    return kept(world, requests(TRAIN, 1), 3, 1)


@cache
def reward_of(world: World, arm: str, seed: int) -> RewardModel:
    """Train the reward model of an arm."""
    members, noise = ARMS[arm]
    comparisons = judged(world, compared(world).comparisons(), seed, noise)
    return learn(world, comparisons, compared(world), members, seed)


def choose(world: World, arm: str, seed: int) -> dict[str, Any]:
    """Choose the best of more and more answers by the reward model's mean score."""
    answers = measured(world)
    scored = scores(world, reward_of(world, arm, seed), answers).mean(axis=0)
    scored = scored - scored.mean()
    points = [
        {
            "kl": best_of_kl(n),
            "score": best_of(scored, scored, n),
            "liked": best_of(scored, answers.in_deviations(answers.liked), n),
        }
        for n in CHOICES
    ]
    return {"accuracy": accuracy(scored, answers.liked), "points": points}


@dataclass
class _Watch:
    """What is taken down of a run, which nothing stops unless it is held."""

    held: bool
    versions: list[tuple[int, Validation, dict[str, torch.Tensor]]]
    stop: Warned | None = None
    returned: int = 0
    """The update whose version the run would have returned."""

    def offer(self, learner: Learner, update: int, found: Validation, limit: float) -> None:
        """Keep every version, beside the choice that a run makes among them."""
        self.versions.append((update, found, {name: t.clone() for name, t in learner.policy.own_tensors().items()}))
        _OFFER(learner, update, found, limit)
        if self.stop is None:
            self.returned = learner.best.update

    def heed(self, learner: Learner, warnings: Sequence[Warned]) -> None:
        """Note the first warning that stops the run, or would have, and do nothing about any where it is not held."""
        self.stop = self.stop or next((one for one in warnings if one.act is Act.STOP), None)
        if self.held:
            _HEED(learner, warnings)


_OFFER, _HEED = Learner.offer, Learner.heed
LOOSE: dict[str, Any] = {"updates": UPDATES, "kl_coefficient": 0.0, "prose_coefficient": 0.0, "forgetting_limit": 1e3}
"""Settings of PPO with nothing to hold it."""


def climb(world: World, arm: str, seed: int, held: bool = False) -> dict[str, Any]:
    """Run PPO with nothing to hold it, or as the example does, and measure every version that was validated."""
    reward = reward_of(world, arm, seed)
    chosen = world.session.settings
    settings = replace(chosen.ppo, validate_every=EVERY, **({} if held else LOOSE))
    asked = requests(MEASURED, 2)
    watch = _Watch(held, [])
    with (
        tempfile.TemporaryDirectory() as folder,
        RunLog(Path(folder)) as log,
        patch.object(Learner, "offer", lambda learner, *found: watch.offer(learner, *found)),
        patch.object(Learner, "heed", lambda learner, warnings: watch.heed(learner, warnings)),
    ):
        train(settings, chosen.sample, seed, world.pretrained, reward, material(world, requests(TRAIN, 1)), log)
    level = float(scores(world, reward, measured(world)).mean())
    points = [version(world, reward, level, asked, *one) for one in watch.versions]
    return {
        "points": points,
        "stopped": watch.stop.update if watch.stop else None,
        "why": watch.stop.sentence if watch.stop else None,
        "returned": watch.returned,
    }


def version(
    world: World,
    reward: RewardModel,
    level: float,
    asked: Sequence[Dialogue],
    update: int,
    found: Validation,
    tensors: dict[str, torch.Tensor],
) -> dict[str, float]:
    """Have a version answer the requests that everything is measured by; scores are told from the first one's mean."""
    policy = Branch(world.pretrained.trunk, trainable=True)
    policy.load_tensors(tensors)
    policy.requires_grad_(False)
    answers = draw(world, policy, asked, ANSWERS, 4)
    return {
        "update": update,
        "kl": found.kl,
        "score": float(scores(world, reward, answers).mean() - level),
        "kept_out": found.pessimistic,
        "liked": float(measured(world).in_deviations(answers.liked).mean()),
        "words": answers.words,
    }


def peak(points: Sequence[dict[str, float]]) -> float:
    """Return the most that was liked on the way, each point averaged with its neighbours against noise."""
    liked = [one["liked"] for one in points]
    smooth = [np.mean(liked[max(0, i - 1) : i + 2]) for i in range(len(liked))]
    return float(max(smooth))


def table(chosen: dict[str, list[Any]], climbed: dict[str, list[Any]], held: dict[str, list[Any]]) -> str:
    """Return what came of each arm, as Markdown."""
    lines = [
        "| reward model | accuracy | best of 128: score | liked | PPO: score at the end | liked at the end"
        " | most liked on the way | returned | liked there, of the most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in chosen.items():
        right = np.mean([run["accuracy"] for run in runs])
        score, liked = (np.mean([run["points"][-1][name] for run in runs]) for name in ("score", "liked"))
        cells = [arm, f"{right:.1%}", f"{score:.2f}", f"{liked:.2f}", *_climbed(climbed.get(arm, []))]
        lines.append("| " + " | ".join(cells) + " |")
        if arm in held:
            lines.append("| " + " | ".join([f"{arm}, PPO as it ships", "", "", "", *_climbed(held[arm])]) + " |")
    return "\n".join(lines)


def _climbed(runs: Sequence[Any]) -> list[str]:
    """Return the cells of the PPO runs of an arm, a value for each seed."""
    if not runs:
        return ["-"] * 5
    ends = [run["points"][-1] for run in runs]
    tops = [peak(run["points"]) for run in runs]
    there = [next(p for p in run["points"] if p["update"] == run["returned"]) for run in runs]
    return [
        ", ".join(f"{end['score']:.2f}" for end in ends),
        ", ".join(f"{end['liked']:.2f}" for end in ends),
        ", ".join(f"{top:.2f}" for top in tops),
        ", ".join(_returned(run) for run in runs),
        ", ".join(f"{one['liked'] / top:.0%}" for one, top in zip(there, tops, strict=True)),
    ]


def _returned(run: Any) -> str:
    """Say which version a run would have returned, and when it would have been stopped."""
    stopped = f"stopped at {run['stopped']}" if run["stopped"] else "not stopped"
    return f"update {run['returned']} ({stopped})"


def picture(chosen: dict[str, list[Any]], climbed: dict[str, list[Any]], held: dict[str, list[Any]]) -> None:
    """Draw score and taste against the root of the KL, a column a way to optimise, a row a share turned round."""
    matplotlib.use("agg")
    noises = sorted({ARMS[arm][1] for arm in chosen})
    figure, grid = pyplot.subplots(len(noises), 2, figsize=(10, 3.4 * len(noises)), squeeze=False, sharey="row")
    for axes, noise in zip(grid, noises, strict=True):
        for axis, found, name in zip(axes, (chosen, climbed), ("best of n", "PPO, nothing to hold it"), strict=True):
            for arm, runs in found.items():
                members = ARMS[arm][0]
                if ARMS[arm][1] == noise:
                    _curves(axis, runs, "C0" if members == 1 else "C1", f"{members} member{'s' * (members > 1)}")
            axis.set_title(f"{name}, {noise:.0%} of the verdicts turned round", fontsize=10)
            axis.set_xlabel("root of the KL, in nats")
            axis.spines[["top", "right"]].set_visible(False)
        for arm, runs in held.items():
            if ARMS[arm][1] == noise:
                _curves(axes[1], runs, "C2", "1 member, as it ships")
        axes[0].set_ylabel("deviations among answers\nto one request")
        for axis in axes:
            axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _curves(axis: Axes, runs: Sequence[Any], colour: str, label: str) -> None:
    """Draw the runs of an arm: score dashed, taste solid, a mark where the version stands that is returned."""
    for number, run in enumerate(runs):
        roots = [math.sqrt(max(0.0, point["kl"])) for point in run["points"]]
        for name, style in (("score", "--"), ("liked", "-")):
            said = f"{label}: {'score' if name == 'score' else 'taste'}" if number == 0 else None
            axis.plot(roots, [point[name] for point in run["points"]], style, color=colour, label=said, alpha=0.8)
        for place, point in enumerate(run["points"]):
            if point.get("update") == run.get("returned") and "returned" in run:
                axis.plot(roots[place], point["liked"], "o", color=colour)


if __name__ == "__main__":
    main(tyro.cli(Options))
