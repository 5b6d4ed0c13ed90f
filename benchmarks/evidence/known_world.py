"""Does PPO reach the best policy where it is known? Three worlds at three KL coefficients; the suite tries one."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import pytest

from benchmarks.evidence import Results
from tests.ppo.known import to_the_end
from tests.ppo.test_known_world import divergence, learnt
from tests.worlds import known_world

COEFFICIENTS = (0.05, 0.2, 1.0)
WORLDS = (0, 1, 2)
UPDATES = 100


def main() -> None:
    """Go through all of them."""
    results = Results("known_world")
    for seed in WORLDS:
        for coefficient in COEFFICIENTS:
            settings = {"world": seed, "kl_coefficient": coefficient, "updates": UPDATES}
            name = f"world {seed}, c = {coefficient}"
            found = results.part(name, settings, partial(reached, seed, coefficient))
            print(f"{name}: {found['share']:.1%} of the optimum, {found['nats']:.3f} nats from it")


def reached(seed: int, coefficient: float) -> dict[str, float]:
    """Return which share of the optimum's worth a run reaches, and KL(optimum || policy) in nats."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        to_the_end(patch)
        world = known_world(seed)
        logprobs = learnt(world, coefficient, Path(folder), UPDATES)
    best = world.objective(world.optimum(coefficient), coefficient)
    share = world.objective(logprobs, coefficient) / best
    return {"share": share, "nats": divergence(world, logprobs, coefficient)}


if __name__ == "__main__":
    main()
