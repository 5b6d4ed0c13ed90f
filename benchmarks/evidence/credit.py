"""Which credit assignment learns everywhere? `python -m benchmarks.evidence.credit`: ways x planted worlds x seeds.

Nothing but the way differs: the same episodes, the same rate. Unless others are named, two ways in six worlds, the
reward being at the first, a middle or the last of 10 or 40 tokens, three seeds each: 36 runs of 3 to 6 seconds of a
processor. What is done is not done again: each run is a line of `results/credit.jsonl`, and one whose settings or code
have changed is run anew. The table goes to docs/ppo.md, with how many runs ended below the initial model, and in how
many worlds a way comes to nine tenths of the best one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, cast
from unittest.mock import patch

import torch
import tyro
from torch import Tensor

from benchmarks.evidence import digest
from benchmarks.publish import ROOT, replace_between
from manners.maths import whiten
from manners.metrics import RunLog
from manners.models.branches import Branch
from manners.ppo import rollout as rollout_module
from manners.ppo import train as train_module
from manners.ppo.course import Material
from manners.ppo.learner import Learner
from manners.ppo.objective import gae
from manners.settings import PPOSettings
from tests.planted import PROMPTS, WORLDS, World, fast, world

RESULTS = ROOT / "benchmarks" / "evidence" / "results" / "credit.jsonl"
PAGE = ROOT / "docs" / "ppo.md"
UPDATES = 32
"""2,048 episodes: what 512 prompts get by default."""
SETTINGS = PPOSettings(
    updates=UPDATES,
    learning_rate=5e-3,
    kl_stop=10_000.0,
    unfinished_penalty=0.0,
    prose_coefficient=0.0,
    forgetting_limit=1000.0,
    validate_every=UPDATES,
)
"""The defaults, but for what a model of one layer and eight words has no use for; the rate fits its size."""
RIDGE = 0.01
"""Of the regression by which a critic is warmed up, as a share of its features' mean square."""


@dataclass(frozen=True)
class Way:
    """A way to tell which tokens earned the reward."""

    settings: Mapping[str, Any]
    critic: bool = False
    """Whether the critic learns full returns (lambda 1) whatever lambda the policy has."""
    warm: bool = False
    """Whether its head is fitted to the first rollout before the policy moves."""


WAYS = {
    "lambda 0.95": Way({"lam": 0.95, "answers": 1}),
    "lambda 1": Way({"lam": 1.0, "answers": 1}),
    "lambda 1, 4 answers": Way({"lam": 1.0, "answers": 4}),
    "lambda 0.95, critic 1, warmed up": Way({"lam": 0.95, "answers": 1}, critic=True, warm=True),
}


@dataclass(frozen=True)
class Run:
    """What a run came to, in standard deviations of what the initial model earns."""

    way: str
    world: str
    seed: int
    start: float
    kept: float
    """By the version that was kept."""
    end: float
    """By the policy at the end of the run, kept or not."""
    tokens: float
    """Mean length of its answers."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Settings that it was run with, and a digest of the code."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    ways: tuple[str, ...] = ("lambda 1", "lambda 1, 4 answers")
    """Of those in `WAYS`."""
    worlds: tuple[str, ...] = tuple(f"{place} of {n}" for n in (10, 40) for place in ("first", "middle", "last"))
    """Of those in `tests.planted`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    results: Path = RESULTS
    page: Path | None = PAGE


def main(options: Options) -> None:
    """Run what has not been run, and publish the table."""
    done = read(options.results)
    known = [(r.way, r.world, r.seed, r.recipe) for r in done]
    jobs = [(name, way, seed) for seed in options.seeds for name in options.worlds for way in options.ways]
    missing = [job for job in jobs if (job[1], job[0], job[2], _recipe(job[1])) not in known]
    options.results.parent.mkdir(exist_ok=True)
    workers = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,))
    with workers, options.results.open("a", encoding="utf-8") as lines:
        for run in workers.map(_work, missing):
            done.append(run)
            lines.write(json.dumps(asdict(run)) + "\n")
            lines.flush()
            print(
                f"{run.way} | {run.world} | {run.seed}: {run.start:.2f} -> {run.kept:.2f} ({run.end:.2f})",
                file=sys.stderr,
            )
    chosen = [r for r in done if r.way in WAYS and r.recipe == _recipe(r.way)]
    if options.page is not None:
        replace_between(options.page, "credit", table(chosen))
    print(table(chosen))


def _work(job: tuple[str, str, int]) -> Run:
    name, way, seed = job
    return measured(world(WORLDS[name]), way, seed)


def read(file: Path) -> list[Run]:
    """Read the runs that are done."""
    return [Run(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _recipe(way: str) -> dict[str, Any]:
    chosen = WAYS[way]
    settings = asdict(replace(SETTINGS, **chosen.settings))
    more = {"critic": chosen.critic, "warm": chosen.warm, "code": _code()}
    recipe: dict[str, Any] = json.loads(json.dumps(settings | more))
    return recipe


@cache
def _code() -> str:
    """What a run does hangs on more than its settings."""
    return digest(Path(__file__))


def measured(there: World, way: str, seed: int) -> Run:
    """Train in a world in a way, and measure the version that was kept and the last one on fresh answers."""
    last: dict[str, Tensor] = {}
    offer = Learner.offer

    def offered(learner: Learner, *given: Any) -> None:
        offer(learner, *given)
        last.update({name: tensor.clone() for name, tensor in learner.policy.own_tensors().items()})

    settings = replace(SETTINGS, **WAYS[way].settings)
    material = Material(PROMPTS, PROMPTS * 5, (), ())
    with ExitStack() as stack:
        _arrange(stack, WAYS[way])
        stack.enter_context(patch.object(Learner, "offer", offered))
        log = stack.enter_context(RunLog(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        result = train_module.train(settings, there.sample, seed, there.pretrained, there.reward, material, log)
    start, _ = there.worth(Branch(there.pretrained.trunk, trainable=False))
    kept, tokens = there.worth(result.policy)
    end = kept
    if result.best_update != settings.updates:
        result.policy.load_tensors(last)
        end, tokens = there.worth(result.policy)
    return Run(way, there.planted.name, seed, start, kept, end, tokens, _recipe(way))


def _arrange(stack: ExitStack, way: Way) -> None:
    """Let PPO draw from tiny models fast, all at once, and learn in a way that is no setting of it."""
    stack.enter_context(fast())
    if way.critic:
        stack.enter_context(patch.object(rollout_module, "gae", _decoupled))
    if way.warm:
        _warm_up(stack)


def _decoupled(rewards: Tensor, values: Tensor, keep: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages by lambda, and returns by lambda 1."""
    return gae(rewards, values, keep, gamma, lam)[0], gae(rewards, values, keep, gamma, 1.0)[1]


def _warm_up(stack: ExitStack) -> None:
    """Fit the critic's head to full returns by ridge regression on the first rollout, before its advantages are taken.

    The rollout is learnt from all the same: a critic that is warmed up takes no episode more.
    """
    heads: list[Tensor] = []
    make = train_module._value_function

    def made(*given: Any) -> Any:
        parts, value = make(*given)
        heads.append(cast(Tensor, parts[0].weight))
        return parts, value

    def collected(roles: Any, prompts: Any, settings: PPOSettings, *given: Any, **named: Any) -> Any:
        rollout = rollout_module.collect(roles, prompts, settings, *given, **named)
        if not named or not heads:  # only an update's rollout is watched while it is drawn
            return rollout
        keep = rollout.batch.keep
        with torch.no_grad():
            whole = roles.policy.hidden(rollout.states, rollout.batch)
            x, y = whole[:, :-1][keep], gae(rollout.rewards, torch.zeros_like(rollout.values), keep, 1.0, 1.0)[1][keep]
            square = x.T @ x + RIDGE * len(x) * x.square().mean() * torch.eye(x.shape[1])
            heads.pop().copy_(torch.linalg.solve(square, x.T @ y).unsqueeze(0))
            values = torch.where(keep, roles.value(rollout.states, whole, rollout.batch), 0.0)
        advantages, returns = _decoupled(rollout.rewards, values, keep, settings.gamma, settings.lam)
        return replace(rollout, values=values, advantages=whiten(advantages, keep), returns=returns)

    stack.enter_context(patch.object(train_module, "_value_function", made))
    stack.enter_context(patch.object(train_module, "collect", collected))


def table(runs: Sequence[Run]) -> str:
    """Return, by world and way, what was earned over the seeds' mean: by the version kept, and by the last policy.

    Below that, which share of the two criteria each way meets: no run below the initial model, nine tenths of the best.
    """
    ways = [way for way in WAYS if any(run.way == way for run in runs)]
    lines = [f"| world | at the start | {' | '.join(ways)} | seeds |", "|---|" + "---|" * (len(ways) + 2)]
    for name in WORLDS:
        here = [run for run in runs if run.world == name]
        if not here:
            continue
        cells = []
        for way in ways:
            some = [run for run in here if run.way == way]
            cells.append(f"{mean(r.kept for r in some):.2f} ({min(r.end for r in some):.2f})" if some else "")
        seeds = len({run.seed for run in here})
        lines.append(f"| {name} | {mean(run.start for run in here):.2f} | {' | '.join(cells)} | {seeds} |")
    lines += [
        f"| {words} | | {' | '.join(shares[way] for way in ways)} | |" for words, shares in criteria(runs).items()
    ]
    return "\n".join(lines)


def criteria(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return for each criterion how many runs or worlds of a way meet it, and of how many.

    Within a tenth of the best: of the best way's mean over the seeds, among the ways that were run in a world.
    """
    earned: dict[str, dict[str, float]] = {}
    for run in runs:
        here = [r.kept for r in runs if (r.world, r.way) == (run.world, run.way)]
        earned.setdefault(run.world, {})[run.way] = mean(here)
    below: dict[str, str] = {}
    near: dict[str, str] = {}
    for way in WAYS:
        kept = [run.kept >= run.start for run in runs if run.way == way]
        found = [here[way] >= 0.9 * max(here.values()) for here in earned.values() if way in here]
        below[way], near[way] = (f"{sum(met)} of {len(met)}" for met in (kept, found))
    return {"runs not below the start": below, "worlds within a tenth of the best way": near}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
