"""Learning: a reward model from verdicts, and a policy from the reward model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manners import metrics
from manners.checkpoint import Run, begun_with
from manners.data import plain_text
from manners.errors import MannersError
from manners.loop.asking import answerable, short_enough
from manners.loop.planning import announce, plan_policy, plan_reward
from manners.loop.session import Facts, Session, digest, now
from manners.models import versions
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.versions import Version
from manners.ppo.train import Material, PPOResult
from manners.ppo.train import train as train_ppo
from manners.reward import measure
from manners.reward.data import label, set_aside
from manners.reward.ensemble import RewardModel, score_exchanges, score_rendered
from manners.reward.train import CURVE_SHARES, Trained
from manners.reward.train import train as train_members
from manners.store import Version as StoredVersion
from manners.text import Rendered
from manners.types import AskedHow, Comparison, PromptUse, VersionKind
from manners.workspace import INITIAL

DISAGREEMENT = "disagreement"
"""Name of the facts that tell the queue where the members of the newest reward model differ."""
REFERENCE_ANSWERS = 64
"""Answers of the initial model that rewards are normalised on, where the held-out pairs hold too few."""
VERDICT, COMPARISON, PAIRS = "the newest verdict", "the newest comparison", "the labelled pairs"
"""What says in a reward run's checkpoints how the record stood when it was begun."""


def train_reward(session: Session, *, resume: bool = False) -> Facts:
    """Train the ensemble on all verdicts, measure it on what was set aside, normalise it, and keep it as a version.

    A run that goes on learns from the record as it was when it began: what was added since is for the next one. Raises
    MannersError where what it learned from was changed since.
    """
    with session.run_lock("reward"):
        folder = session.workspace.runs / "reward"
        begun = begun_with(folder) if resume else {}
        watermark, comparisons = _as_begun(session, begun)
        data: Facts = {VERDICT: watermark, COMPARISON: comparisons[-1].id if comparisons else 0}
        data |= {PAIRS: _labelled(session, comparisons)}
        _refuse_changed(session, folder, begun, data[PAIRS])
        run = session.begin("reward", ("sample", "reward"), data, resume=resume)
        if not isinstance(run, Run):
            return run
        return session.finish("reward", run, _reward(session, run, watermark, comparisons))


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


def _refuse_changed(session: Session, folder: Path, begun: Mapping[str, Any], pairs: str) -> None:
    """Raise MannersError where a run was begun with other pairs, and no setting says why."""
    settings = session.settings.reward
    chosen = {"reward.annotators": settings.annotators, "reward.user_share": settings.user_share}
    if begun.get(PAIRS, pairs) != pairs and all(begun.get(name) == value for name, value in chosen.items()):
        raise MannersError(
            f"the unfinished run in {folder} was begun with {begun[PAIRS]}, and of what was there then {pairs} are left"
            " as they were: verdicts were taken back since, or comparisons deleted or reported; remove that folder to"
            " begin anew with what there is now"
        )


def _reward(session: Session, run: Run, watermark: int, comparisons: Sequence[Comparison]) -> Facts:
    announce(plan_reward(session, comparisons))
    settings = session.settings
    name = run.state.setdefault("version", session.workspace.next_version_name(VersionKind.REWARD))
    scratch = session.workspace.runs / "trunk-states"
    trained = train_members(settings.reward, settings.seed, session.pretrained, comparisons, run, scratch)
    reward = _normalised(session, trained)
    margins = np.asarray(trained.margins.double())
    facts = Facts(measure.measure(margins, trained.split.train, trained.split.held_out, settings.seed))
    if settings.reward.curve:
        facts |= measure.curve_facts(trained.curve, (*CURVE_SHARES, 1.0))
    facts |= {
        "members": settings.reward.members,
        "trained_on": len(trained.split.train),
        "set_aside": len(trained.split.held_out),
        "source": str(trained.labelled.kind),
        "left_out": {str(reason): n for reason, n in trained.labelled.left_out.items()},
        "users_limited": trained.labelled.limited,
        "users_outlying": trained.labelled.outlying,
        "shortened": trained.shortened,
        "optimizer_steps": trained.optimizer_steps,
        "pairs_per_second": trained.pairs_per_second,
        "ensemble_spread": float(reward_scores(trained, reward).std(dim=0, correction=0).mean()),
        "version": name,
    }
    _keep(session, name, VersionKind.REWARD, reward, facts, watermark)
    session.save_facts(DISAGREEMENT, {"version": name, "spread": disagreement(session, reward, comparisons)})
    return facts


def disagreement(session: Session, reward: RewardModel, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Measure how far the members differ about each comparison that nobody has judged yet, by the comparison's number.

    It is the standard deviation over members of the normalised margin: what to ask people about next.
    """
    unseen = (AskedHow.EVALUATION, AskedHow.GOLD)
    waiting = [c for c in comparisons if not c.verdicts and c.asked_how not in unseen]
    exchanges = [(c.prompt, side) for c in waiting for side in (c.left, c.right)]
    scored = [s.members for s in score_exchanges(reward, session.pretrained, exchanges)]
    if not scored:
        return {}
    members = torch.cat(scored, dim=1)
    spread = (members[:, 0::2] - members[:, 1::2]).std(dim=0, correction=0)
    return {str(c.id): round(float(value), 4) for c, value in zip(waiting, spread, strict=True)}


def reward_scores(trained: Trained, reward: RewardModel) -> torch.Tensor:
    """Normalised margins (K, pairs) of every member on the held-out pairs."""
    return (trained.member_scores[..., 0] - trained.member_scores[..., 1]) / reward.scale


def _normalised(session: Session, trained: Trained) -> RewardModel:
    """Normalise on answers of the initial model that nothing was trained on: held-out ones, or fresh draws."""
    own = [
        (row, side)
        for row, pair in enumerate(trained.split.held_out)
        for side, response in enumerate((pair.left, pair.right))
        if response.author == INITIAL
    ]
    if len(own) >= REFERENCE_ANSWERS:
        rows, sides = zip(*own, strict=True)
        return trained.reward.normalised_on(trained.member_scores[:, list(rows), list(sides)])
    prompts = short_enough(session, [pair.prompt for pair in trained.split.held_out])
    random.Random(session.settings.seed).shuffle(prompts)
    initial = versions.load_policy(session.workspace, INITIAL, session.pretrained)
    sample = session.settings.sample
    drawn = answer(initial, session.pretrained, prompts[:REFERENCE_ANSWERS], 1, sample, session.settings.seed, INITIAL)
    rendered = [r for batch in drawn for r in batch.generated.rendered]
    return trained.reward.normalised_on(score_rendered(trained.reward, session.pretrained, rendered))


def initial_answers(session: Session, watermark: int | None) -> list[Rendered]:
    """Return the initial model's answers that were set aside when a reward model learned up to a watermark.

    Of very many some are drawn; none where the store does not hold any more what was learned from.
    """
    settings, seed = session.settings.reward, session.settings.seed
    try:
        labelled = label(session.store.comparisons(as_of=watermark), settings.annotators, settings.user_share)
        held_out = set_aside(labelled.pairs, settings.set_aside, seed).held_out
    except MannersError:
        return []
    sides = dict.fromkeys((pair.prompt, side) for pair in held_out for side in (pair.left, pair.right))
    own = [exchange for exchange in sides if exchange[1].author == INITIAL]
    drawn = random.Random(seed).sample(own, min(len(own), 8 * REFERENCE_ANSWERS))
    return [session.pretrained.renderer.render(*exchange) for exchange in drawn]


def train_policy(session: Session, *, resume: bool = False) -> Facts:
    """Run PPO against the newest reward model and keep the best policy as a version; only evaluation promotes it."""
    with session.run_lock("ppo"):
        reward_name = versions.latest(session.workspace, VersionKind.REWARD)
        reward = versions.load_reward(session.workspace, reward_name, session.pretrained)
        prompts, validation = (_prompt_ids(session, use) for use in (PromptUse.TRAIN, PromptUse.VALIDATE))
        if not prompts or not validation:
            raise MannersError(
                f"PPO needs prompts to train on ({len(prompts)} there) and others to choose the best version by"
                f" ({len(validation)} there); `manners prompts import FILE --use train`, or `--use validate`, adds some"
            )
        data = {"the reward model": reward_name, "the prompts": digest((prompts, validation))}
        run = session.begin("ppo", ("sample", "ppo"), data, resume=resume)
        if not isinstance(run, Run):
            return run
        return session.finish("ppo", run, _policy(session, run, reward_name, reward, prompts, validation))


def _policy(
    session: Session,
    run: Run,
    reward_name: str,
    reward: RewardModel,
    prompts: list[tuple[int, ...]],
    validation: list[tuple[int, ...]],
) -> Facts:
    announce(plan_policy(session))
    settings = session.settings
    name = run.state.setdefault("version", session.workspace.next_version_name(VersionKind.POLICY))
    with metrics.RunLog(session.workspace.runs / name, run.state.get("curves", 0)) as log:
        result = train_ppo(
            settings.ppo,
            settings.sample,
            settings.seed,
            session.pretrained,
            reward,
            Material(prompts, validation, plain_text(PromptUse.TRAIN), plain_text(PromptUse.VALIDATE)),
            log,
            run,
        )
    facts = _ppo_facts(result, log.points) | {"version": name, "reward": reward_name}
    _keep(session, name, VersionKind.POLICY, result.policy, facts, None)
    return facts


def _prompt_ids(session: Session, use: PromptUse) -> list[tuple[int, ...]]:
    fitting = short_enough(session, answerable(session, use))
    return [session.pretrained.renderer.prompt_ids(p, session.settings.sample.max_new_tokens)[0] for p in fitting]


def _ppo_facts(result: PPOResult, points: list[Facts]) -> Facts:
    updates = [p for p in points if "episode" in p]
    validated = [p for p in points if "validate/measure" in p]
    names = sorted({name for p in updates for name in p if not name.startswith("validate/")} - {"step"})
    curves: Facts = {name: [p.get(name) for p in updates] for name in names}
    curves["update"] = [p["step"] for p in updates]
    curves["validate/update"] = [p["step"] for p in validated]
    curves["validate/score"] = [p["validate/measure"] for p in validated]
    return {
        "episodes": result.episodes,
        "optimizer_steps": result.optimizer_steps,
        "kl": result.kl,
        "episodes_per_second": result.episodes / max(result.seconds, 1e-9),
        "stopped": result.stopped,
        "best_update": result.best_update,
        "curves": curves,
        "warnings": [str(warned) for warned in result.warned],
    }


def _keep(
    session: Session, name: str, kind: VersionKind, model: RewardModel | Branch, facts: Facts, watermark: int | None
) -> None:
    """Write the version's folder, then its row."""
    trunk = session.pretrained.trunk
    reward = model if isinstance(model, RewardModel) else None
    version = Version(
        name=name,
        kind=kind,
        base=session.settings.model.name,
        trunk_hash=trunk.hash,
        cut=trunk.cut,
        template_hash=session.pretrained.renderer.template_hash,
        dtype=session.settings.model.dtype,
        created_at=now(),
        parent=INITIAL if kind is VersionKind.POLICY else None,
        watermark=watermark,
        settings=asdict(session.settings),
        metrics={k: v for k, v in facts.items() if isinstance(v, int | float | str)},
        shifts=reward.shifts if reward else (),
        scale=reward.scale if reward else 1.0,
    )
    branches = model.members if isinstance(model, RewardModel) else (model,)
    if name not in versions.names(session.workspace, kind):  # or a process was killed just after it had written it
        versions.save(session.workspace, version, branches)
    ensure_rows(session)


def ensure_rows(session: Session) -> None:
    """Record every version that has a folder but no row yet, as a process killed between the two leaves it."""
    recorded = {version.name for version in session.store.versions()}
    for kind in VersionKind:
        for name in versions.names(session.workspace, kind):
            if name in recorded:
                continue
            version = versions.describe(session.workspace, name)
            path = str((session.workspace.models / name).relative_to(session.workspace.root))
            row = StoredVersion(name, kind, path, None, version.metrics, version.watermark or 0)
            session.store.add_version(row)
