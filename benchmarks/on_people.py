"""What real people's verdicts teach: `python -m benchmarks.on_people`, an hour and a quarter on two idle cores.

Agreement and ceilings of four crowds; a plain reward model beside one that weighs or softens their verdicts, and one
that tells annotators apart; and on Anthropic's harmless transcripts what each hardening does to accuracy on other
conversations, to pairs whose worse answer looks better, and to the audit's probes. MANNERS_DATA names the folder with
the sets. The trunk reads every text once a set. `--quick` does all of it with a tiny model, to see that it runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import tyro

from benchmarks.evidence import Results, contents
from benchmarks.kept_states import KeptStates
from benchmarks.people import CROWDS, TRANSCRIPTS, by_opening, dense, files_of, looks_better, rows, transcripts
from benchmarks.people_tables import MEASURES, crowds_table, hard_table, people_table, three
from benchmarks.publish import ROOT, replace_between
from manners.audit.material import Material, material, preferred
from manners.errors import MannersError
from manners.feedback.agreement import alpha, pairwise
from manners.feedback.judges import PREFERS_LEFT
from manners.feedback.statistics import Floats
from manners.loop.learning import TEXTS
from manners.models.pretrained import Pretrained, load
from manners.reward.baselines import characters, longer_wins
from manners.reward.camps import Said, find
from manners.reward.ceiling import ceiling
from manners.reward.ensemble import Exchange
from manners.reward.labelled import LabelledPair
from manners.reward.pairs import render_compared
from manners.reward.train import Trained, train
from manners.reward.verdicts import label
from manners.settings import ModelSettings, RewardSettings
from manners.types import AnnotatorKind, Choice, Comparison

PAGE = ROOT / "docs" / "experiments.md"
RESULTS = ROOT / "benchmarks" / "results"
LAST = "on-people-hard"
"""Below the last table it says on what all of them were measured."""
CROWD_ARMS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "`reward.reliability`": {"reliability": True},
    "`reward.smoothing`": {"smoothing": True},
}
HARD_ARMS: Mapping[str, Mapping[str, Any]] = {
    "three members": {"members": 3},
    "`reward.augment` = 0.3": {"augment": 0.3},
    "`reward.length_head`": {"length_head": True},
}
DRILLED = ("other_prompt", "cut", "one_character", "thought_process")
"""Probes of the kinds that `reward.augment` makes pairs of."""
MOST_STATES = 32
"""First components of the states in which annotators are told apart, as `loop.camps` has it; one for each 20 pairs."""


@dataclass(frozen=True)
class Size:
    """How much of each set."""

    crowd: int = 160
    train: int = 300
    outside: int = 160
    probed: int = 30
    looks: int = 100
    epochs: int = 2


QUICK = Size(crowd=40, train=24, outside=12, probed=6, looks=6, epochs=1)


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: Path = Path(os.environ.get("MANNERS_DATA", "data"))
    seeds: tuple[int, ...] = (0, 1, 2)
    crowds: tuple[str, ...] = tuple(CROWDS)
    page: Path | None = None
    """Where tables go; None: docs/experiments.md, or nowhere if quick."""
    results: Path | None = None
    """Where parts are kept; None: benchmarks/results, or nowhere if quick: it would write over a whole run's."""
    quick: bool = False
    """A tiny model and a few pairs of each set: shows that it runs, and finds nothing."""


@dataclass
class World:
    """The model, and what is read of each set."""

    options: Options
    folder: Path
    kept: dict[str, KeptStates] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        """How much is read."""
        return QUICK if self.options.quick else Size()

    @cached_property
    def pretrained(self) -> Pretrained:
        """The model that everything begins as."""
        if self.options.quick:
            from tests.worlds import tiny_pretrained

            return tiny_pretrained()
        return load(ModelSettings(context=512))

    def states(self, name: str) -> KeptStates:
        """Return the states of a set."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return self.kept.setdefault(name, KeptStates(folder))

    def crowd(self, name: str) -> list[Comparison]:
        """Return the part of a crowd's comparisons that is learned from and measured on."""
        return dense(CROWDS[name](self.options.data), self.size.crowd)

    def known(self, name: str) -> dict[int, LabelledPair]:
        """Return these as pairs, by number."""
        return {pair.comparison_id or 0: pair for pair in label(self.crowd(name)).pairs}

    def train(self, name: str, comparisons: Sequence[Comparison], seed: int, share: float, arm: Any) -> Trained:
        """Train a reward model on states that are kept."""
        settings = replace(RewardSettings(members=1, epochs=self.size.epochs, set_aside=share, curve=False), **arm)
        with patch("manners.reward.pairs.StateStore", self.states(name).view):
            return train(settings, seed, self.pretrained, comparisons, texts=TEXTS)

    @cached_property
    def parted(self) -> tuple[list[Comparison], list[LabelledPair], list[LabelledPair]]:
        """Transcripts to learn from, outside pairs, and others whose worse answer looks better: no opening in two."""
        comparisons = transcripts(self.options.data)
        order = by_opening(label(comparisons).pairs)
        outside = order[: self.size.outside]
        aside = {pair.group for pair in outside}
        looks = [pair for pair in order if pair.group not in aside and looks_better(pair)][: self.size.looks]
        aside |= {pair.group for pair in looks}
        learned = [pair.comparison_id for pair in order if pair.group not in aside][: self.size.train]
        return [one for one in comparisons if one.id in set(learned)], outside, looks

    @cached_property
    def asked(self) -> Material:
        """What the outside pairs are probed with."""
        outside = self.parted[1]
        found = material(outside, outside[: self.size.probed])
        return replace(found, opinions=(), ties=(), swaps={})

    @cached_property
    def exchanges(self) -> list[Exchange]:
        """Everything that a hardened model scores."""
        beside = [(pair.prompt, side) for pair in self.parted[2] for side in (pair.left, pair.right)]
        return list(dict.fromkeys([*self.asked.exchanges(), *beside]))


def main(options: Options) -> None:
    """Run what has not been run, and publish the tables."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(options, Path(folder))
        kept = options.results or (Path(folder) / "results" if options.quick else RESULTS)
        done = Results("on_people", kept, Path(__file__))
        files = {name: contents(*files_of(name, options.data)) for name in (*options.crowds, TRANSCRIPTS)}
        sizes = {"quick": options.quick, **vars(world.size), "files": files}
        people = {
            name: done.part(f"{name}: people", {"file": files[name]}, partial(said, options.data, name))
            for name in options.crowds
        }
        crowds = {
            (name, arm): [
                done.part(f"{name}: {arm}, seed {seed}", sizes, partial(crowd, world, name, arm, seed))
                for seed in options.seeds
            ]
            for name in options.crowds
            for arm in CROWD_ARMS
        }
        hard = {
            arm: [done.part(f"hh: {arm}, seed {s}", sizes, partial(hardened, world, arm, s)) for s in options.seeds]
            for arm in HARD_ARMS
        }
        tables = {
            "on-people": people_table(people),
            "on-people-crowds": crowds_table(crowds, {name: world.known(name) for name in options.crowds}),
            LAST: hard_table(by_model(world, hard)),
        }
    page = options.page or (None if options.quick else PAGE)
    for name, text in tables.items():
        if page is not None:
            replace_between(page, name, f"{text}\n\n{done.measured() if name == LAST else ''}".rstrip())


def said(data: Path, name: str) -> dict[str, Any]:
    """Return how far a crowd agrees, and what that leaves possible."""
    comparisons = CROWDS[name](data)
    pairs = label(comparisons).pairs
    top = ceiling(pairs, 0)
    return {
        "pairs": len(comparisons),
        "empty": sum(1 for _ in rows(files_of(name, data)[0])) - len(comparisons),
        "verdicts": sum(len(one.verdicts) for one in comparisons),
        "people": len({v.annotator for one in comparisons for v in one.verdicts}),
        "agree": three(pairwise(comparisons, AnnotatorKind.HUMAN, 0)),
        "alpha": three(alpha(comparisons, AnnotatorKind.HUMAN, 0)),
        "ceiling": None if top is None else [top.low, top.high],
        "longer": three(longer_wins(characters(pairs), pairs, 0)),
    }


def crowd(world: World, name: str, arm: str, seed: int) -> dict[str, Any]:
    """Train on a part of a crowd's verdicts, and return the margins of the rest; whether annotators are told apart."""
    try:
        trained = world.train(name, world.crowd(name), seed, 0.3, CROWD_ARMS[arm])
    except MannersError as error:
        return {"refused": str(error)}
    held = [pair.comparison_id for pair in trained.split.held_out]
    found = {"held": held, "margins": np.asarray(trained.margins.double()).round(6).tolist()}
    return found | (told_apart(world, name, trained, seed) if arm == "plain" else {})


def told_apart(world: World, name: str, trained: Trained, seed: int) -> dict[str, Any]:
    """Look for camps of annotators in what was learned from, and foretell what they said of the rest.

    As `loop.camps` does it, on states that are kept.
    """
    pairs, first = (*trained.split.train, *trained.split.held_out), len(trained.split.train)
    exchanges: list[Exchange] = [(pair.prompt, side) for pair in pairs for side in (pair.left, pair.right)]
    rendered = render_compared(world.pretrained.renderer, exchanges)
    order = {exchange: place for place, exchange in enumerate(rendered)}
    ends = torch.zeros((len(rendered), world.pretrained.trunk.width))
    [member] = trained.reward.members
    with torch.no_grad():
        for bucket, states, batch in world.states(name).batches(world.pretrained, list(rendered.values())):
            ends[bucket] = member.ends(states, batch).cpu()
        raw = np.asarray(member.of_ends(ends.to(world.pretrained.trunk.device)).cpu().double())
    left, right = np.array([order[exchange] for exchange in exchanges]).reshape(-1, 2).T
    apart = np.asarray(ends.double())[left] - np.asarray(ends.double())[right]
    values, vectors = np.linalg.eigh(apart[:first].T @ apart[:first] / first)
    count = max(1, min(MOST_STATES, first // 20, apart.shape[1]))
    read = apart @ (vectors[:, ::-1][:, :count] / np.sqrt(np.maximum(values[::-1][:count], 1e-12)))
    who = {one: number for number, one in enumerate(sorted({v.who for p in pairs for v in p.voices}, key=repr))}
    rows = [
        (place, PREFERS_LEFT[v.choice], who[v.who])
        for place, pair in enumerate(pairs)
        for v in pair.voices
        if v.choice is not Choice.SKIP
    ]
    at, sides, people = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    everything = Said((raw[left] - raw[right])[at], read[at], sides, people, [pairs[place].group for place in at])
    known = np.isin(people, people[at < first])
    aside = everything.of((at >= first) & known)
    found = find(everything.of(at < first), aside, len(who), 4, seed)
    camps = 1 if found.mixture is None else len(found.mixture.shares)
    return {"gain": three(found.gain), "camps": camps, "known": len(aside), "people": len(set(people[at < first]))}


def hardened(world: World, arm: str, seed: int) -> dict[str, Any]:
    """Train on transcripts, and return the raw scores of everything that is asked, a row a member."""
    learned, _, _ = world.parted
    trained = world.train("hh", learned, seed, 0.05, HARD_ARMS[arm])
    rendered = [world.pretrained.renderer.render(*exchange) for exchange in world.exchanges]
    scores = np.zeros((len(trained.reward.members), len(rendered)))
    with torch.no_grad():
        for bucket, states, batch in world.states("hh").batches(world.pretrained, rendered):
            scores[:, bucket] = [member.scores(states, batch).cpu().tolist() for member in trained.reward.members]
    return {"scores": scores.round(6).tolist(), "trained_on": len(trained.split.train), "made": len(trained.made.pairs)}


def models(world: World, arm: str, found: Mapping[str, Any]) -> dict[str, Floats]:
    """Return the scores (N,) of each model of an arm, in units of what two outside answers usually differ by."""
    raw = np.array(found["scores"])
    place = {exchange: at for at, exchange in enumerate(world.exchanges)}
    sides = np.array([(place[p.prompt, p.left], place[p.prompt, p.right]) for p in world.parted[1]])
    margins = raw[:, sides[:, 0]] - raw[:, sides[:, 1]]
    unit = np.maximum(np.sqrt(np.square(margins).mean(axis=1)), 1e-9)
    raw = (raw - raw[:, sides.ravel()].mean(axis=1, keepdims=True)) / unit[:, None]
    if len(raw) == 1:
        return {arm: raw[0]}
    return {"one member": raw[0], "mean of three": raw.mean(axis=0), "lowest of three": raw.min(axis=0)}


def by_model(world: World, found: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, tuple[Floats, list[str]]]]]:
    """Return what each model does, a seed after the other."""
    done: dict[str, list[dict[str, tuple[Floats, list[str]]]]] = {}
    for arm, runs in found.items():
        for run in runs:
            for name, scores in models(world, arm, run).items():
                done.setdefault(name, []).append(measures(world, scores))
    return done


def measures(world: World, scores: Floats) -> dict[str, tuple[Floats, list[str]]]:
    """Return what a model does on each case of each measure (N,), with the group that the case is of."""
    of = dict(zip(world.exchanges, scores.tolist(), strict=True))
    asked, found = world.asked, dict[str, list[tuple[float, str]]]((name, []) for name in MEASURES)

    def above(pair: LabelledPair, better: Any, worse: Any) -> tuple[float, str]:
        return float(1 + np.sign(of[pair.prompt, better] - of[pair.prompt, worse])) / 2, pair.group

    for name, pairs in (("outside", asked.pairs), ("looks better", world.parted[2])):
        for pair in pairs:
            if (liked := preferred(pair)) is not None:
                found[name].append(above(pair, liked, pair.right if liked == pair.left else pair.left))
    for name, some in asked.probes.items():
        kind = "drilled" if name in DRILLED else "other probes"
        found[kind] += [above(one.pair, one.liked, one.probe) for one in some]
    for written in (one for some in asked.forms.values() for one in some):
        pair = written.pair
        was = of[pair.prompt, pair.left] - of[pair.prompt, pair.right]
        now = of[pair.prompt, written.left] - of[pair.prompt, written.right]
        found["turned"].append((float(was * now < 0), pair.group))
    for one in asked.longer:
        for old, new in ((one.pair.left, one.left), (one.pair.right, one.right)):
            doublings = np.log2(len(new.text) / max(1, len(old.text)))
            gain = of[one.pair.prompt, new] - of[one.pair.prompt, old]
            found["length"].append((float(gain / doublings), one.pair.group))
    return {name: (np.array([v for v, _ in cases]), [g for _, g in cases]) for name, cases in found.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
