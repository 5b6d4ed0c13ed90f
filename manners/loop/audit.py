"""The audit of a reward model: people's pairs, in other forms and probed, and samples of the policy, all scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manners.audit import gate
from manners.audit import reward as measures
from manners.audit.figures import Floats
from manners.audit.material import Material, material
from manners.audit.rules import REWARD, held, rules
from manners.checkpoint import AUDITED, Run
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import as_begun, draw_prompts, fitting, parts, until
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs
from manners.loop.verdicts import named
from manners.models import versions
from manners.models.answer import answer
from manners.models.cost import drawing_bytes, head_bytes, layer_bytes, own_bytes, rows_at_once
from manners.progress import steps
from manners.results.audit import FAIL, AuditResult, Check, Gate
from manners.reward import stored
from manners.reward.ensemble import Exchange, RewardModel, score_rendered
from manners.reward.groups import divided, uniform
from manners.reward.labelled import LabelledPair
from manners.reward.pairs import laid_out, render_compared
from manners.reward.verdicts import label, to_measure_on
from manners.settings_load import from_dict
from manners.store import Newest
from manners.store.files.mapping import mapping_of, words_of
from manners.store.files.reading import survey
from manners.store.files.rows import Reason
from manners.store.files.transfer import comparisons_of
from manners.types import Answer, Dialogue, PromptUse, VersionKind, opening
from manners.workspace import Workspace

if TYPE_CHECKING:
    from manners.loop.options import AuditOptions

REWARD_MODEL, PAIRS_OF = "the reward model", "the file of its pairs"
COLUMNS, WORDS = "what its columns mean", "what its verdicts mean"
BAD_LINES = "whether its bad lines are left out"
"""What says in a run's checkpoints what it is about."""
LEARNED = "about an opening that the reward model learned from"
"""Why pairs of a file are left out."""
AT_ONCE = 128
"""Exchanges that are scored between two occasions for a checkpoint, and more where as many have one prompt: which stand
together is fixed, as rounding is."""


@dataclass(frozen=True, kw_only=True)
class AuditInputs(Inputs):
    """What is measured, and on what."""

    version: str
    policy: str
    """Whose samples the members are compared on."""
    source: str
    outside: tuple[LabelledPair, ...]
    learned: tuple[LabelledPair, ...]
    known: int | None
    """Pairs of a file about openings that have verdicts here; None without a file, which the gate then hears of."""
    left_out: Mapping[str, int]
    upto: Newest | None
    """How far the record goes of whose prompts the policy is sampled."""


def before_the_gate(workspace: Workspace, version: str | None) -> Facts:
    """Return where a policy stands, the newest if none is named; raises Blocked where the gate does not let it by."""
    name = version or versions.latest(workspace, VersionKind.POLICY)
    if versions.describe(workspace, name).kind is not VersionKind.POLICY:
        raise MannersError(f"{name} is no policy: the gate is about which policy is promoted")
    found = gate.standing(workspace, name)
    if found.gate.blocks:
        raise gate.blocked(found)
    return gate.facts(found)


def inputs(session: Session, options: AuditOptions, begun: Mapping[str, Any]) -> AuditInputs:
    """Gather the pairs: of a file, or those that were set aside when the reward model was trained.

    A run that goes on is about what it was begun with.
    """
    workspace, upto = session.workspace, as_begun(session, begun)
    name = options.version or begun.get(REWARD_MODEL) or versions.latest(workspace, VersionKind.REWARD)
    options = _of_the_file(options, begun)
    versions.fitting(workspace, name, VersionKind.REWARD, session.pretrained)
    learned, aside = trained_on(session, name, upto)
    known, left_out = None, dict[str, int]()
    if options.comparisons is None:
        outside, source = aside, f"comparisons set aside from the training of {name}"
    else:
        outside, left_out = _of_file(session, options, {opening(pair.prompt) for pair in learned})
        seen = {opening(comparison.prompt) for comparison in session.store.comparisons() if comparison.verdicts}
        known, source = sum(opening(pair.prompt) in seen for pair in outside), options.comparisons.name
    outside = [pair for pair in outside if pair.counts.decided]
    if (openings := len({pair.group for pair in outside})) < 2:
        raise MannersError(
            f"an audit needs comparisons with verdicts on at least 2 openings that {name} did not learn from, and"
            f" {source} has {openings}: name a file of them with --comparisons"
        )
    chosen = _drawn(outside, session.settings.audit.most, session.settings.seed)
    return AuditInputs(
        version=name,
        policy=_taught(session, name),
        source=source,
        outside=chosen,
        learned=_drawn(
            [pair for pair in learned if pair.measures], session.settings.audit.pairs, session.settings.seed
        ),
        known=known,
        left_out=left_out,
        decides={
            REWARD_MODEL: name,
            AUDITED: named(str(len(chosen)), chosen, begun.get(AUDITED)),
            PAIRS_OF: _known_as(options.comparisons, begun),
            **({COLUMNS: list(options.mapping)} if options.mapping else {}),
            **({WORDS: list(options.verdict)} if options.verdict else {}),
            **({BAD_LINES: True} if options.skip_bad else {}),
            **until(upto),
        },
        upto=upto,
    )


def _of_the_file(options: AuditOptions, begun: Mapping[str, Any]) -> AuditOptions:
    """Return the options with the file named from wherever it goes on, and read as it was when the run was begun."""
    if options.comparisons is not None:
        return replace(options, comparisons=options.comparisons.absolute())
    if not begun.get(PAIRS_OF):
        return options
    mapping, verdict = (tuple(begun.get(name, ())) for name in (COLUMNS, WORDS))
    skip_bad = bool(begun.get(BAD_LINES))
    return replace(options, comparisons=Path(begun[PAIRS_OF]), mapping=mapping, verdict=verdict, skip_bad=skip_bad)


def _known_as(file: Path | None, begun: Mapping[str, Any]) -> str:
    """Return a file's whole path, or the one that an older run was begun with, where it leads there."""
    if file is None:
        return ""
    before = begun.get(PAIRS_OF)
    return str(before if before and Path(before).absolute() == file.absolute() else file)


def trained_on(
    session: Session, name: str, upto: Newest | None = None
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Return the pairs that a reward model learned from, and those set aside: by its settings, as they were.

    With `upto`, what candidates' comparisons of later keep from training is not left out, and bets of later are none.
    """
    version = versions.describe(session.workspace, name)
    settings = from_dict(version.settings)
    try:
        chosen = settings.reward
        newest, bet = (None, None) if upto is None else (upto.comparison, upto.bet)
        comparisons = session.store.comparisons(as_of=version.watermark, newest=newest, newest_bet=bet)
        labelled = label(comparisons, chosen.annotators, chosen.user_share, chosen.account_share, settings.serve)
        pairs = laid_out(session.pretrained.renderer, labelled).pairs
        split = divided(pairs, chosen, settings.seed)
    except MannersError:
        return [], []  # the store does not hold any more what it learned from
    return list(split.train), list(split.held_out)


def _of_file(
    session: Session, options: AuditOptions, learned: Collection[str]
) -> tuple[list[LabelledPair], dict[str, int]]:
    """Return the pairs of a file on openings that were not `learned` from, and what was left out of it by reason."""
    assert options.comparisons is not None, "it was named"
    file: Path = options.comparisons
    skipped = Counter[Reason]()
    reading = survey(file, mapping_of(options.mapping), None, words_of(options.verdict))
    rows = comparisons_of(reading, skipped=skipped if options.skip_bad else None)
    comparisons, chosen = to_measure_on(rows)
    labelled = laid_out(session.pretrained.renderer, label(comparisons, session.settings.reward.annotators))
    fresh = [pair for pair in labelled.pairs if opening(pair.prompt) not in learned]
    counted = [
        *labelled.left_out.items(),
        *chosen.items(),
        *skipped.items(),
        (LEARNED, len(labelled.pairs) - len(fresh)),
    ]
    return fresh, {str(reason): count for reason, count in counted if count}


def _drawn(pairs: Sequence[LabelledPair], most: int, seed: int) -> tuple[LabelledPair, ...]:
    """Return at most so many pairs, by a hash of the pair itself: it stays chosen when others come."""
    order = sorted(pairs, key=lambda p: uniform("audit", seed, digest((p.prompt, p.left.text, p.right.text))))
    return tuple(order[:most])


def _taught(session: Session, reward: str) -> str:
    """Return the newest policy that was trained against a reward model, or else the current one."""
    names = versions.names(session.workspace, VersionKind.POLICY)
    taught = [name for name in names if versions.describe(session.workspace, name).reward == reward]
    return taught[-1] if taught else session.workspace.current_policy()


def plan(session: Session, inputs: AuditInputs) -> Plan:
    """Memory of drawing two samples to each prompt, or of scoring a batch, and how much is scored."""
    trunk, sample = session.pretrained.trunk, session.settings.sample
    asked = _material(session, inputs, ())
    prompts = _prompts(session, inputs.upto)
    new = sample.max_new_tokens
    longest = session.pretrained.renderer.context
    distinct = max(1, min(-(-sample.batch // 2), len(prompts)))
    scoring = layer_bytes(trunk, rows_at_once(trunk, longest) * longest) + head_bytes(trunk)
    drawing = drawing_bytes(trunk, 2 * distinct, distinct, max(1, longest - new), new)
    needed = [
        Part("reward_members", session.settings.reward.branches * own_bytes(trunk, head=False), "reward.members"),
        max(
            Part("drawing_responses", drawing + own_bytes(trunk, head=True), "sample.batch"),
            Part("scoring_responses", scoring, "model.context"),
            key=lambda part: part.size,
        ),
    ]
    work = {
        "pairs": len(inputs.outside),
        "exchanges": len(asked.exchanges()) + 2 * len(prompts),
        "prompts": len(prompts),
    }
    return make_plan(session, "audit", work, needed)


def run(session: Session, run: Run, inputs: AuditInputs) -> AuditResult:
    """Draw samples, score everything with every member, and hold each figure against the gate's rules."""
    asked_for = rules(session.workspace.root)
    # 1. What is scored.
    asked = _material(session, inputs, _samples(session, run, inputs))
    exchanges = asked.exchanges()
    # 2. Its scores, by member.
    reward = stored.load_reward(session.workspace, inputs.version, session.pretrained)
    found, shortened = _scored(session, run, reward, exchanges)
    scores = measures.in_units(found, _log_odds(session, inputs.version), asked.pairs)
    # 3. Figures, and what is asked of them.
    figures = measures.figures(scores, asked, session.settings.seed)
    checks = tuple(held(f.name, asked_for.of(REWARD, f.name), f.value, f.n, f.sentence) for f in figures)
    kept = checks
    if inputs.known is None:  # of a file the gate learns nothing: somebody chose what is in it
        kept = gate.keep(session.workspace, inputs.version, REWARD, checks)
    decided = gate.decide(kept)
    return AuditResult(
        version=inputs.version,
        checks=checks,
        gate=decided,
        sentence=_sentence(inputs, checks, decided),
        source=inputs.source,
        pairs=len(asked.pairs),
        changed=len(asked.longer),
        known_prompts=inputs.known,
        unit=scores.unit,
        policy=inputs.policy if asked.sampled else None,
        exchanges=len(exchanges),
        shortened=shortened,
        left_out=inputs.left_out,
        slices=measures.slices(scores, asked.pairs, session.settings.seed),
        examples=tuple(case for figure in figures for case in figure.worst),
    )


def _log_odds(session: Session, name: str) -> float | None:
    """Return what a unit of a reward model is worth in log-odds, as it was measured when it was trained."""
    found = versions.describe(session.workspace, name).metrics.get("unit_log_odds")
    return None if found is None else float(found)


def _sentence(inputs: AuditInputs, checks: Sequence[Check], decided: Gate) -> str:
    """Say what it comes to."""
    measured = sum(check.value is not None for check in checks)
    failed = [check.name for check in checks if check.verdict == FAIL]
    said = f"it fails {len(failed)}: {', '.join(failed)}." if failed else "it is not shown to fail any."
    said = f"Of {len(checks)} checks of {inputs.version} on {inputs.source}, {measured} could be measured; {said}"
    if inputs.known is not None:
        return f"{said} A file tells the gate nothing: that goes by what was set aside from training."
    if decided.cannot_tell:
        said += f" Of what is required cannot be told: {', '.join(decided.cannot_tell)}."
    return said + failed_before(checks, decided)


def failed_before(checks: Sequence[Check], decided: Gate) -> str:
    """Say what blocks that these checks do not find to fail, and an earlier audit did."""
    now = {check.name for check in checks if check.verdict == FAIL}
    older = [name for name in decided.failed if name not in now]
    return f" Failed before, and not shown to pass: {', '.join(older)}." if older else ""


def _material(session: Session, inputs: AuditInputs, sampled: Sequence[tuple[Answer, Answer]]) -> Material:
    return material(inputs.outside, inputs.outside[: session.settings.audit.pairs], inputs.learned, sampled)


def _prompts(session: Session, upto: Newest | None) -> list[Dialogue]:
    """Return the prompts that the policy answers twice, of those that nothing is trained on."""
    dialogues = [stored_prompt.dialogue for stored_prompt in session.store.prompts(PromptUse.EVALUATE, upto=upto)]
    found = list[Dialogue]()
    with suppress(MannersError):  # none is there, or none leaves room for an answer: the members are not compared then
        found = fitting(session, PromptUse.EVALUATE, dialogues).prompts
    return draw_prompts(found, min(len(found), session.settings.audit.pairs), session.settings.seed)


def _samples(session: Session, run: Run, inputs: AuditInputs) -> list[tuple[Answer, Answer]]:
    """Have the policy answer each prompt twice, a part at a time; prompts with one and the same answer are left out."""
    prompts = _prompts(session, inputs.upto)
    policy = versions.load_policy(session.workspace, inputs.policy, session.pretrained)
    sample = session.settings.sample
    with steps(f"samples of {inputs.policy}", 2 * len(prompts)) as advance:

        def work(part: tuple[list[int], int]) -> list[tuple[int, Answer]]:
            places, seed = part
            chosen = [prompts[i] for i in places]
            drawn = answer(policy, session.pretrained, chosen, 2, sample, seed, inputs.policy, False, advance)
            return [(places[i], a) for some in drawn for i, a in zip(some.places, some.answers, strict=True)]

        todo = parts(range(len(prompts)), session.settings.seed + 23) if prompts else []
        advance(2 * sum(len(places) for places, _ in todo[: run.done("samples")]))
        found: dict[int, list[Answer]] = {}
        for rows in run.each("samples", todo, work):
            for place, given in rows:
                found.setdefault(place, []).append(given)
    pairs = [(some[0], some[1]) for _, some in sorted(found.items())]
    return [(a, b) for a, b in pairs if a.response.text != b.response.text]


def _scored(
    session: Session, run: Run, reward: RewardModel, exchanges: Sequence[Exchange]
) -> tuple[dict[Exchange, Floats], int]:
    """Return each member's score of every exchange, and how many were shortened; answers to one prompt see the same."""
    renderer = session.pretrained.renderer
    some = _by_prompt(exchanges)
    with steps("scoring what the audit asks", len(exchanges)) as advance:

        def work(together: Sequence[Exchange]) -> tuple[Any, int]:
            rendered = list(render_compared(renderer, together).values())
            advance(len(rendered))
            return score_rendered(reward, session.pretrained, rendered), sum(r.dropped > 0 for r in rendered)

        advance(sum(map(len, some[: run.done("scores")])))
        done = list(run.each("scores", some, work))
    columns = [column for scores, _ in done for column in np.asarray(scores.double()).T]
    scored = [exchange for together in some for exchange in together]
    return dict(zip(scored, columns, strict=True)), sum(cut for _, cut in done)


def _by_prompt(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """Divide distinct exchanges into parts of about `AT_ONCE`, all that is said to a prompt in one."""
    by_prompt: dict[Dialogue, list[Exchange]] = {}
    for exchange in exchanges:
        by_prompt.setdefault(exchange[0], []).append(exchange)
    found: list[list[Exchange]] = []
    for some in by_prompt.values():
        if not found or len(found[-1]) + len(some) > AT_ONCE:
            found.append([])
        found[-1].extend(some)
    return found
