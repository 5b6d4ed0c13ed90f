"""Who adds a term to PPO's objective touches one function: the example in the documentation is made, and run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from torch.distributions import Categorical

from manners import metrics
from manners.models.perplexity import PlainText
from manners.models.pretrained import Pretrained
from manners.ppo import terms
from manners.ppo import train as train_module
from manners.ppo.course import Course, Material
from manners.ppo.learner import Learner
from manners.ppo.rollout import collect
from manners.training import Term
from tests.conftest import some
from tests.ppo.scripted import PROMPTS, PROSE, SAMPLE, SETTINGS, VALIDATION, keep, likes, roles, run
from tests.worlds import tiny_pretrained

PAGE = Path(__file__).parents[2] / "docs" / "change-the-objective.md"
SHORT = replace(SETTINGS, updates=3, epochs=2, batch=24, minibatch=12, learning_rate=0.003, validate_every=3)
Objective = Callable[..., list[Term]]


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def patched(source: str, page: str) -> str:
    """The source with the page's change made: every hunk's place must be there, once."""
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
        assert source.count(before) == 1, f"the page changes what is not there:\n{before}"
        source = source.replace(before, after)
    return source


def with_entropy(weight: float) -> Objective:
    """The objective of the page, with another weight."""
    module = ModuleType("terms_with_entropy")
    source = patched(Path(terms.__file__).read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8"))
    assert source.count('"entropy", -0.01') == 1
    exec(source.replace('"entropy", -0.01', f'"entropy", {weight}'), module.__dict__)
    changed: Objective = module.objective
    return changed


def course(world: Pretrained, prose: tuple[str, ...] = PROSE) -> Course:
    played = roles(world, likes(world))
    read = PlainText(played.reference, world, prose)
    return Course(SHORT, 2, True, SAMPLE, 0, played, Material(PROMPTS, VALIDATION, prose, PROSE), read, read)


def test_terms_and_weights_are_those_of_the_settings(world: Pretrained) -> None:
    held = course(world)
    rollout = collect(held.roles, PROMPTS[:4], SHORT, SAMPLE, 0.1, torch.Generator().manual_seed(0))
    episodes = rollout.episodes([0, 1, 2, 3])
    shared = terms.objective(held, episodes, 0)
    assert [(t.name, t.weight, t.forward, t.once) for t in shared] == [
        ("policy", 1.0, "policy", False),
        ("value", SHORT.value_coefficient, "policy", False),
        ("prose", SHORT.prose_coefficient, "prose", True),
    ]
    separate = replace(held, settings=replace(SHORT, value="separate", prose_coefficient=0.0))
    assert [(t.name, t.forward) for t in terms.objective(separate, episodes, 0)] == [
        ("policy", "policy"),
        ("value", "value"),
    ]
    assert len(terms.objective(course(world, prose=()), episodes, 0)) == 2, "there is no prose to be held to"
    mixed = replace(held, settings=replace(SHORT, ptx_coefficient=0.3))
    assert [(t.name, t.weight, t.forward, t.once) for t in terms.objective(mixed, episodes, 0)][2:] == [
        ("prose", SHORT.prose_coefficient, "prose", True),
        ("ptx", 0.3, "ptx", True),
    ]


def test_the_entropy_of_the_example_is_that_of_the_next_token(world: Pretrained) -> None:
    held = course(world)
    rollout = collect(held.roles, PROMPTS[:4], SHORT, SAMPLE, 0.1, torch.Generator().manual_seed(0))
    episodes = rollout.episodes([3, 1])
    (bonus,) = [t for t in with_entropy(-0.5)(held, episodes, 0) if t.name == "entropy"]
    assert (bonus.weight, bonus.forward, bonus.once) == (-0.5, "policy", False)
    loss, _ = bonus.loss()

    whole = held.roles.policy.assembled(world.trunk)
    entropies = []
    for row, prompt in ((3, PROMPTS[3]), (1, PROMPTS[1])):
        response = rollout.draws.rendered[row].response_ids
        with torch.no_grad():
            logits = whole(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        predicted = logits[len(prompt) - 1 : -1] / SAMPLE.temperature
        entropies += Categorical(logits=predicted).entropy().tolist()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(sum(entropies) / len(entropies), abs=1e-5)


@pytest.mark.parametrize("value", some(["shared", "separate"], 1))
def test_the_example_does_what_it_says(
    world: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Literal["shared", "separate"]
) -> None:
    monkeypatch.setattr(Learner, "offer", keep)
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 200)  # several micro-batches a step
    settings = replace(SHORT, value=value)
    ends = {}
    for weight in (None, 0.0, -1.0):
        if weight is not None:
            monkeypatch.setattr(train_module, "objective", with_entropy(weight))
        result = run(settings, world, likes(world), tmp_path / str(weight), held_to=PROSE)
        points = metrics.read(tmp_path / str(weight))[1:]
        ends[weight] = result.policy.own_tensors(), points
    plain, nothing, bonus = ends.values()
    assert all(torch.equal(tensor, nothing[0][name]) for name, tensor in plain[0].items()), "a weight of 0 is no term"
    assert "loss/entropy_avg" not in plain[1][-1]
    assert bonus[1][-1]["loss/entropy_avg"] > nothing[1][-1]["loss/entropy_avg"] + 0.01
    assert bonus[1][-1]["policy/entropy_avg"] > plain[1][-1]["policy/entropy_avg"]
