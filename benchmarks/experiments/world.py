"""The world of the experiments: a small model that answers requests, a crowd, and what the crowd really likes."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations, islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from benchmarks.evidence import contents
from benchmarks.publish import ROOT
from manners.feedback.crowd import Crowd, ask, find_taste, recruit, true_score
from manners.loop.prompts import prose
from manners.loop.session import Session, digest
from manners.metrics import RunLog
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.ppo.course import Material
from manners.ppo.train import PPOResult
from manners.ppo.train import train as run_ppo
from manners.reward.ensemble import RewardModel, score_rendered
from manners.reward.train import train
from manners.settings import RewardSettings
from manners.settings_load import load
from manners.types import (
    Annotator,
    AskedHow,
    Comparison,
    Dialogue,
    FinishReason,
    Interval,
    PromptUse,
    Response,
    Role,
    Turn,
)
from manners.workspace import Workspace, atomic_write

MEASURED, DRAWN = 48, 128
"""Requests that reward models and policies are measured by, and answers to each, of which the best are chosen."""
CANDIDATES, EACH = 300, 4
"""Requests that may be asked about, and answers to each: six comparisons a request."""
EXAMPLE = ROOT / "examples" / "from-nothing"
BAND = 0.02
"""Difference of taste below which neither of two answers is the better one."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class World:
    """A workspace whose model has learned to answer, and what the crowd likes."""

    session: Session
    drawn: Path
    """Where answers are kept that are drawn once."""

    @property
    def pretrained(self) -> Pretrained:
        """The model that everything begins as."""
        return self.session.pretrained

    @property
    def made_of(self) -> str:
        """What makes it this world and no other: whole model, template, settings, and what requests are written from.

        It stands in the settings of every part, so that no table has parts of two worlds.
        """
        hashes = self.pretrained.trunk.initial_hash, self.pretrained.renderer.template_hash
        sources = (EXAMPLE / name for name in ("stories.py", "grammar.toml", "words.toml"))
        settings = self.session.settings
        return digest((hashes, replace(settings, model=replace(settings.model, name="")), contents(*sources)))

    @property
    def crowd(self) -> Crowd:
        """The annotators, who share one taste."""
        return recruit(self.session.settings.crowd, self.session.settings.seed)

    def begun(self) -> Branch:
        """Return the version that everything begins as: what learning from pairs left."""
        return Branch(self.pretrained.trunk, trainable=False)

    def liked(self, prompt: Dialogue, response: Response) -> float:
        """Return what the crowd's taste, without its noise, makes of an answer."""
        return true_score(find_taste(self.session.settings.crowd.taste), prompt, response).total


@dataclass(frozen=True)
class Pool:
    """Requests, as many answers to each, and what the crowd's taste makes of them."""

    prompts: tuple[Dialogue, ...]
    answers: tuple[tuple[Response, ...], ...]
    liked: Floats
    """(prompts, answers)."""

    @property
    def words(self) -> float:
        """Words of an answer, on average."""
        return float(np.mean([len(one.text.split()) for some in self.answers for one in some]))

    def in_deviations(self, liked: Floats) -> Floats:
        """Put a taste into deviations among these answers to one request, from their mean."""
        deviation = float(np.sqrt(self.liked.var(axis=1, ddof=1).mean()))
        return (liked - float(self.liked.mean())) / deviation

    def comparisons(self) -> list[Comparison]:
        """Return every pair of different answers to a request, in the order in which they were drawn."""
        return [
            Comparison(prompt, a, b, AskedHow.RANDOM, id=number)
            for number, (prompt, a, b) in enumerate(
                (prompt, a, b)
                for prompt, some in zip(self.prompts, self.answers, strict=True)
                for a, b in combinations(some, 2)
                if a.text.strip() and b.text.strip() and a.text != b.text
            )
        ]


def open_world(folder: Path) -> World:
    """Open what `make from-nothing` has left in a folder."""
    workspace = folder / "workspace"
    if not (workspace / "models" / "sft-1").is_dir():
        raise SystemExit(
            f"{folder} holds no model that has learned to answer; run `make from-nothing`, or name another"
        )
    opened = Workspace.open(workspace)
    return World(Session(opened, load(opened.toml).settings), folder / "experiments")


def requests(count: int, seed: int) -> list[Dialogue]:
    """Return requests for stories, each another one."""
    stories = _stories()
    rng = Random(f"experiments {seed}")
    asked: dict[str, None] = {}
    while len(asked) < count:
        asked.setdefault(stories.request(stories.story(rng).parameters, rng).text)
    return [(Turn(Role.USER, text),) for text in islice(asked, count)]


def _stories() -> Any:
    """Return the example's generator, which is a script and no package."""
    name = "stories"
    if name not in sys.modules:
        spec = spec_from_file_location(name, EXAMPLE / "stories.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def ids(world: World, prompts: Sequence[Dialogue]) -> list[tuple[int, ...]]:
    """Return prompts as the model reads them."""
    room = world.session.settings.sample.max_new_tokens
    return [world.pretrained.renderer.prompt_ids(prompt, room)[0] for prompt in prompts]


def draw(world: World, policy: Branch, prompts: Sequence[Dialogue], each: int, seed: int) -> Pool:
    """Have a policy answer requests."""
    answers: list[list[Response]] = [[] for _ in prompts]
    for batch in answer(policy, world.pretrained, prompts, each, world.session.settings.sample, seed, "drawn"):
        for place, given in zip(batch.places, batch.answers, strict=True):
            answers[place].append(given.response)
    return pool(world, prompts, answers)


def pool(world: World, prompts: Sequence[Dialogue], answers: Sequence[Sequence[Response]]) -> Pool:
    """Put answers beside what the crowd's taste makes of them."""
    liked = [[world.liked(p, one) for one in some] for p, some in zip(prompts, answers, strict=True)]
    return Pool(tuple(prompts), tuple(map(tuple, answers)), np.array(liked))


def kept(world: World, prompts: Sequence[Dialogue], each: int, seed: int) -> Pool:
    """Return answers of the version that everything begins as; drawn once."""
    key = digest((world.pretrained.trunk.initial_hash, prompts, each, seed, world.session.settings.sample))
    file = world.drawn / f"{key}.json"
    if not file.exists():
        drawn = draw(world, world.begun(), prompts, each, seed)
        world.drawn.mkdir(exist_ok=True)
        atomic_write(file, json.dumps(written(drawn)))
    return read(world, prompts, json.loads(file.read_text(encoding="utf-8")))


def written(answers: Pool) -> list[list[tuple[str, str]]]:
    """Return answers in JSON's types, to be kept in a file."""
    return [[(one.text, str(one.finish_reason)) for one in some] for some in answers.answers]


def read(world: World, prompts: Sequence[Dialogue], rows: Sequence[Sequence[tuple[str, str]]]) -> Pool:
    """Return what `written` was made from."""
    return pool(world, prompts, [[Response(text, "drawn", FinishReason(end)) for text, end in some] for some in rows])


@cache
def measured(world: World) -> Pool:
    """Return many answers to each of the requests by which everything is measured."""
    return kept(world, requests(MEASURED, 2), DRAWN, 2)


@cache
def candidates(world: World) -> Pool:
    """Return what may be asked about."""
    return kept(world, requests(CANDIDATES, 5), EACH, 5)


def material(world: World, asked: Sequence[Dialogue]) -> Material:
    """Return what PPO reads, where it is trained on these requests."""
    text = prose(world.session).by_use
    return Material(ids(world, asked), ids(world, requests(40, 3)), text[PromptUse.TRAIN], text[PromptUse.VALIDATE])


def judged(world: World, comparisons: Sequence[Comparison], seed: int, noise: float = 0.0) -> list[Comparison]:
    """Have one annotator of the crowd judge each, and turn a share of the verdicts that choose a side round."""
    given = ask(world.crowd, comparisons, 1, seed)
    rng = Random(f"noise {seed}")
    found = []
    for comparison, (verdict,) in zip(comparisons, given, strict=True):
        turned = replace(verdict, choice=verdict.choice.swapped()) if rng.random() < noise else verdict
        found.append(replace(comparison, verdicts=(turned,)))
    return found


def learn(
    world: World,
    comparisons: Sequence[Comparison],
    known: Pool,
    members: int,
    seed: int,
    judges: AbstractSet[Annotator] = frozenset(),
    settings: RewardSettings | None = None,
) -> RewardModel:
    """Train a reward model as the stage does, in units of what answers of `known` to one request differ by."""
    chosen = replace(settings or RewardSettings(), members=members, curve=False)
    trained = train(chosen, seed, world.pretrained, comparisons, judges=judges)
    places = [place for place, some in enumerate(known.answers) for _ in some]
    reward = trained.reward.normalised_on(_score(world, trained.reward, known), places)
    if reward.witness is None:
        return reward
    return replace(reward, witness=reward.witness.normalised_on(_score(world, reward.witness, known), places))


def fine_tuned(
    world: World,
    reward: RewardModel,
    asked: Material,
    updates: int,
    seed: int,
    begin_as: Branch | None = None,
) -> PPOResult:
    """Run PPO by a reward model, as the example's settings say but for its length."""
    chosen = world.session.settings
    settings = replace(chosen.ppo, updates=updates, validate_every=2)
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder)) as log:
        return run_ppo(settings, chosen.sample, seed, world.pretrained, reward, asked, log, begin_as=begin_as)


def scores(world: World, reward: RewardModel, answers: Pool) -> Floats:
    """Return what a reward model makes of all answers, in its units; (members, prompts, answers)."""
    found = _score(world, reward, answers)
    return found.double().numpy().reshape(len(found), *answers.liked.shape)


def _score(world: World, reward: RewardModel, answers: Pool) -> Tensor:
    rendered = [
        world.pretrained.renderer.render(prompt, one)
        for prompt, some in zip(answers.prompts, answers.answers, strict=True)
        for one in some
    ]
    return score_rendered(reward, world.pretrained, rendered)


def accuracy(scored: Floats, liked: Floats) -> float:
    """Return how often of two answers to one request the higher score belongs to the one that is liked better.

    `scored` and `liked` are (prompts, answers). Pairs of which neither is better do not count.
    """
    right = decided = 0
    for some, truth in zip(scored, liked, strict=True):
        apart = truth[:, None] - truth[None, :]
        better = np.triu(np.abs(apart) > BAND, 1)
        right += int((((some[:, None] - some[None, :]) * apart) > 0)[better].sum())
        decided += int(better.sum())
    return right / decided


def best_of(scored: Floats, values: Floats, n: int) -> float:
    """Return the mean value of the best of n answers by score, over every choice of n of the N that were drawn.

    With the answers to a request in ascending order of score, the i-th (from 1) is the best of C(i-1, n-1) of the
    C(N, n) choices. `scored` and `values` are (prompts, N).
    """
    total = values.shape[1]
    weights = np.array([math.comb(i, n - 1) / math.comb(total, n) for i in range(total)])
    order = np.argsort(scored, axis=1, kind="stable")
    return float((np.take_along_axis(values, order, axis=1) @ weights).mean())


def best_of_kl(n: int) -> float:
    """Return the KL of best-of-n to what it draws from, in nats: log n - (n - 1) / n, or less where scores tie."""
    return math.log(n) - (n - 1) / n


def paired(some: Sequence[float] | Floats, others: Sequence[float] | Floats) -> Interval:
    """Return the mean difference of what the same seeds came to in two ways, by Student's t over them."""
    gains = np.asarray(some) - np.asarray(others)
    mean, count = float(gains.mean()), len(gains)
    half = float(stats.t.ppf(0.975, count - 1) * gains.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Interval(mean, mean - half, mean + half)
