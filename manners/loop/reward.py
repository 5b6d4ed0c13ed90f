"""Reward training: the ensemble learns from all verdicts, is measured on what was set aside, and is kept."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.keep import keep
from manners.loop.plan import Disk, Part, Plan, make_plan
from manners.loop.prompts import short_enough
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs, Options
from manners.models import versions
from manners.models.answer import answer
from manners.models.cost import own_bytes, rows_at_once, states_bytes, step_bytes, trunk_work
from manners.models.states import kept_bytes
from manners.models.trunk import Trunk
from manners.results import RewardResult
from manners.reward import measure
from manners.reward.ensemble import RewardModel, score_rendered
from manners.reward.groups import divided, set_aside
from manners.reward.labelled import LabelledPair
from manners.reward.pairs import read, render_compared
from manners.reward.train import CURVE_SHARES, Trained
from manners.reward.train import train as train_members
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.text import Rendered, pack
from manners.training import training_bytes
from manners.types import AskedHow, Comparison, VersionKind

RESULT = RewardResult
DISAGREEMENT = "disagreement"
"""Name of the facts that tell the queue where the members of the newest reward model differ."""
REFERENCE_ANSWERS = 64
"""Answers of the start version that rewards are normalised on, where the held-out pairs hold too few."""
VERDICT, COMPARISON, PAIRS = "the newest verdict", "the newest comparison", "the labelled pairs"
"""What says in a reward run's checkpoints how the record stood when it was begun."""
LONGEST = 32
"""Exchanges, those of most characters, that are turned into tokens to find the longest."""


@dataclass(frozen=True, kw_only=True)
class RewardInputs(Inputs):
    """What a reward model learns from."""

    watermark: int
    """The newest verdict."""
    comparisons: list[Comparison]


def inputs(session: Session, _: Options, begun: Mapping[str, Any]) -> RewardInputs:
    """Take the record as it is now, or as it was when the run that goes on was begun: what came since is for the next.

    Raises MannersError where what it learned from was changed since.
    """
    watermark, comparisons = _as_begun(session, begun)
    pairs = _labelled(session, comparisons)
    _refuse_changed(session, begun, pairs)
    newest = comparisons[-1].id if comparisons else 0
    decides = {VERDICT: watermark, COMPARISON: newest, PAIRS: pairs}
    return RewardInputs(decides=decides, watermark=watermark, comparisons=comparisons)


def plan(session: Session, inputs: RewardInputs | None = None) -> Plan:
    """Memory and forward-backward work of reward training; raises MannersError when there is nothing to learn from.

    It learns from the comparisons of a run, or from all there are.
    """
    settings = session.settings.reward
    trunk = session.pretrained.trunk
    pairs = label(inputs.comparisons if inputs else session.store.comparisons(), settings.annotators).pairs
    split = divided(pairs, settings, session.settings.seed)
    learned = len(split.train)
    runs = settings.members * [learned] + [round(share * learned) for share in CURVE_SHARES if settings.curve]
    prompt, response = _longest_exchange(session, pairs)
    work: Facts = {
        "comparisons": len(pairs),
        "trained_on": learned,
        "optimizer_steps": settings.epochs * sum(-(-run // settings.batch) for run in runs),
        "pair_passes": settings.epochs * sum(runs),
        "work_with_trunk": trunk_work(trunk),
    }
    disk = _disk(session, [*split.train, *split.held_out], prompt + response)
    return make_plan(session, "reward", work, memory_parts(trunk, settings, prompt, response), disk)


def memory_parts(trunk: Trunk, settings: RewardSettings, prompt: int, response: int) -> list[Part]:
    """What training takes beside the model, where the longest exchange has so many tokens."""
    members = settings.members + (len(CURVE_SHARES) if settings.curve else 0)
    together = pack([Rendered((0,) * prompt, (0,) * response)] * 2, trunk.compute.shares_prompts, 0)
    rows = min(settings.batch * len(together.ids), rows_at_once(trunk, together.ids.shape[1]))
    step = step_bytes(trunk, together, rows)
    own = own_bytes(trunk, head=False)
    return [
        Part("members", members * own, "reward.members"),
        Part("gradient_and_adam", training_bytes(own, trunk.whole.dtype), "model.trainable_layers"),
        Part("forward_and_backward", step, "model.context"),
    ]


def run(session: Session, run: Run, inputs: RewardInputs) -> RewardResult:
    """Train the ensemble on all verdicts, measure it on what was set aside, normalise it, and keep it as a version."""
    # 1. Members, trained on single verdicts; whole groups of comparisons are set aside.
    settings = session.settings
    name = run.state.setdefault("version", session.workspace.next_version_name(VersionKind.REWARD))
    scratch = session.workspace.runs / "trunk-states"
    trained = train_members(settings.reward, settings.seed, session.pretrained, inputs.comparisons, run, scratch)
    # 2. Scores in units of the start version's answers.
    reward = _normalised(session, trained)
    # 3. Accuracy, calibration and rivals on what was set aside.
    result = _result(session, trained, reward, name)
    # 4. A version, and what the queue asks about next.
    keep(session, name, reward, result, inputs.watermark)
    spread = disagreement(session, reward, inputs.comparisons)
    session.save_facts(DISAGREEMENT, {"version": name, "spread": spread})
    return result


def _result(session: Session, trained: Trained, reward: RewardModel, name: str) -> RewardResult:
    """Measure the trained members on what was set aside."""
    settings = session.settings
    margins = np.asarray(trained.margins.double())
    measured = measure.measure(margins, trained.split.train, trained.split.held_out, settings.seed)
    curve = measure.curve_facts(trained.curve, (*CURVE_SHARES, 1.0)) if settings.reward.curve else {}
    return RewardResult(
        **vars(measured),
        **curve,
        members=settings.reward.members,
        trained_on=len(trained.split.train),
        set_aside=len(trained.split.held_out),
        divided=trained.split.divided,
        source=str(trained.labelled.kind),
        left_out={str(reason): n for reason, n in trained.labelled.left_out.items()},
        users_limited=trained.labelled.limited,
        users_outlying=trained.labelled.outlying,
        shortened=trained.shortened,
        optimizer_steps=trained.optimizer_steps,
        pairs_per_second=trained.pairs_per_second,
        ensemble_spread=float(_margins(trained, reward).std(dim=0, correction=0).mean()),
        version=name,
    )


def _margins(trained: Trained, reward: RewardModel) -> torch.Tensor:
    """Normalised margins (K, pairs) of every member on the held-out pairs."""
    return (trained.member_scores[..., 0] - trained.member_scores[..., 1]) / reward.scale


def _as_begun(session: Session, begun: Mapping[str, Any]) -> tuple[int, list[Comparison]]:
    """Return the newest verdict and the comparisons of a run: of now, or of when the one that goes on was begun."""
    watermark = int(begun.get(VERDICT, session.store.watermark()))
    comparisons = session.store.comparisons(as_of=watermark)
    newest = begun.get(COMPARISON)
    return watermark, [c for c in comparisons if newest is None or (c.id or 0) <= newest]


def _labelled(session: Session, comparisons: Sequence[Comparison]) -> str:
    """Say how many pairs and verdicts there are to learn from, with a digest of them."""
    settings = session.settings.reward
    pairs = label(comparisons, settings.annotators, settings.user_share).pairs
    verdicts = round(sum(sum(pair.counts) for pair in pairs))
    return f"{verdicts} verdicts on {len(pairs)} comparisons ({digest(pairs)})"


def _refuse_changed(session: Session, begun: Mapping[str, Any], pairs: str) -> None:
    """Raise MannersError where a run was begun with other pairs, and no setting says why."""
    settings = session.settings.reward
    folder = session.workspace.runs / "reward"
    chosen = {"reward.annotators": settings.annotators, "reward.user_share": settings.user_share}
    if begun.get(PAIRS, pairs) != pairs and all(begun.get(name) == value for name, value in chosen.items()):
        raise MannersError(
            f"the unfinished run in {folder} was begun with {begun[PAIRS]}, and of what was there then {pairs} are left"
            " as they were: verdicts were taken back since, comparisons deleted or reported, or prompts kept for"
            " evaluation; remove that folder to begin anew with what there is now"
        )


def _normalised(session: Session, trained: Trained) -> RewardModel:
    """Normalise on answers of the start version that nothing was trained on: held-out ones, or fresh draws."""
    own = [
        (row, side)
        for row, pair in enumerate(trained.split.held_out)
        for side, response in enumerate((pair.left, pair.right))
        if response.author == session.start
    ]
    if len(own) >= REFERENCE_ANSWERS:
        rows, sides = zip(*own, strict=True)
        return trained.reward.normalised_on(trained.member_scores[:, list(rows), list(sides)])
    prompts = short_enough(session, [pair.prompt for pair in trained.split.held_out])
    random.Random(session.settings.seed).shuffle(prompts)
    start = versions.load_policy(session.workspace, session.start, session.pretrained)
    sample = session.settings.sample
    seed = session.settings.seed
    drawn = answer(start, session.pretrained, prompts[:REFERENCE_ANSWERS], 1, sample, seed, session.start)
    rendered = [r for batch in drawn for r in batch.generated.rendered]
    return trained.reward.normalised_on(score_rendered(trained.reward, session.pretrained, rendered))


def disagreement(session: Session, reward: RewardModel, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Measure how far the members differ about each comparison that nobody has judged yet, by the comparison's number.

    It is the standard deviation over members of the normalised margin: what to ask people about next.
    """
    unseen = (AskedHow.EVALUATION, AskedHow.GOLD)
    waiting = [c for c in comparisons if not c.verdicts and c.asked_how not in unseen]
    exchanges = [(c.prompt, side) for c in waiting for side in (c.left, c.right)]
    if not exchanges:
        return {}
    rendered = render_compared(session.pretrained.renderer, exchanges)
    members = score_rendered(reward, session.pretrained, [rendered[exchange] for exchange in exchanges])
    spread = (members[:, 0::2] - members[:, 1::2]).std(dim=0, correction=0)
    return {str(c.id): round(float(value), 4) for c, value in zip(waiting, spread, strict=True)}


def reference_answers(session: Session, start: str, watermark: int | None) -> list[Rendered]:
    """Return the start version's answers that were set aside when a reward model learned up to a watermark.

    Of very many some are drawn; none where the store does not hold any more what was learned from.
    """
    settings = session.settings.reward
    seed = session.settings.seed
    try:
        counted = label(session.store.comparisons(as_of=watermark), settings.annotators, settings.user_share)
        labelled, rendered = read(session.pretrained.renderer, counted)
        held_out = set_aside(labelled.pairs, settings.set_aside, seed).held_out
    except MannersError:
        return []
    sides = dict.fromkeys((pair.prompt, side) for pair in held_out for side in (pair.left, pair.right))
    own = [exchange for exchange in sides if exchange[1].author == start]
    drawn = random.Random(seed).sample(own, min(len(own), 8 * REFERENCE_ANSWERS))
    return [rendered[exchange] for exchange in drawn]


def _longest_exchange(session: Session, pairs: tuple[LabelledPair, ...]) -> tuple[int, int]:
    """Return the tokens of prompt and response of the longest exchange, found among those of most characters."""
    exchanges = {(pair.prompt, side) for pair in pairs for side in (pair.left, pair.right)}
    characters = {e: sum(len(turn.text) for turn in e[0]) + len(e[1].text) for e in exchanges}
    chosen = sorted(exchanges, key=lambda e: -characters[e])[:LONGEST]
    rendered = [session.pretrained.renderer.render(*exchange) for exchange in chosen]
    longest = max(rendered, key=lambda r: r.length)
    return len(longest.prompt_ids), len(longest.response_ids)


def _disk(session: Session, pairs: Sequence[LabelledPair], longest: int) -> Disk:
    """Return what trunk states take on the workspace's disk: as if all were as long as the longest, if that fits.

    Only where it does not is every exchange turned into tokens, and counted.
    """
    runs = session.workspace.runs
    trunk = session.pretrained.trunk
    folder = runs if runs.is_dir() else session.workspace.root
    free = shutil.disk_usage(folder).free
    if not trunk.cut or not trunk.keeps_states:
        return Disk(folder, 0, free)
    most = states_bytes(trunk, 2 * len(pairs) * longest)
    if most > free:
        exchanges = dict.fromkeys((pair.prompt, side) for pair in pairs for side in (pair.left, pair.right))
        most = kept_bytes([session.pretrained.renderer.render(*exchange) for exchange in exchanges], trunk)
    return Disk(folder, most, free)
