"""Evaluation: the newest policy against the current one, on prompts that nothing was trained on or chosen by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from manners.audit import gate
from manners.audit.rules import EVALUATION, Rules, rules
from manners.checkpoint import PROMPTS, Run
from manners.data import questions
from manners.errors import MannersError
from manners.evaluate import forgetting, promotion, text_measures
from manners.evaluate.judged import Answered, Compared, Judgement, judged, liked_least, measured_on, taste_facts
from manners.evaluate.reading import read
from manners.evaluate.text_measures import TextMeasures
from manners.facts import from_facts, scalars
from manners.feedback.crowd import recruit
from manners.feedback.judges import Judge, TasteJudge, VerdictJudge
from manners.loop import bets, history, tried
from manners.loop.keep import ensure_rows
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import (
    Prose,
    as_begun,
    draw_prompts,
    evaluation_prompts,
    own_seed,
    parts,
    prompt_lengths,
    prose,
    refuse_alike,
    until,
)
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs
from manners.models import versions, whole
from manners.models.answer import WINDOW, answer
from manners.models.branches import Branch
from manners.models.cost import drawing_bytes, head_bytes, layer_bytes, own_bytes, rows_at_once, states_bytes
from manners.models.trunk import Trunk
from manners.ppo import rollout
from manners.progress import steps
from manners.results import RewardResult
from manners.results.audit import Gate
from manners.results.evaluation import BesideExample, EvaluationResult, Forgetting
from manners.reward import stored
from manners.reward.ensemble import RewardModel
from manners.settings import Settings
from manners.store import Outcome, Round
from manners.types import AnnotatorKind, Answer, Dialogue, PromptUse, VersionKind
from manners.workspace import INITIAL

if TYPE_CHECKING:  # by way of `asking`, which reads prompts as they are read here, it imports this module
    from manners.loop.options import EvaluateOptions

POLICY, AGAINST = "the policy", "the version compared with"
"""What `Inputs.decides` calls them."""
EXAMPLES = 12
"""Prompts whose answers before and after the report shows, and as many on which the policy was liked least."""


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs(Inputs):
    """What is compared, and on what."""

    version: str
    """The policy."""
    reward: str | None
    """The reward model that it was trained against; of a policy that had none, the newest, or None."""
    start: str
    """The version that it started from."""
    against: str
    """The version that it is compared with."""
    prompts: list[Dialogue]
    shortened: int
    """Of these, those that lose whole turns."""
    skipped: int
    """Prompts for evaluation that leave no room for a response."""
    prose: Prose


def inputs(session: Session, options: EvaluateOptions, begun: Mapping[str, Any]) -> EvaluationInputs:
    """Take the newest policy, or a round's, and the prompts for evaluation; raises MannersError where there is none.

    A run that goes on compares the policy that it was begun with, with the version of then unless another is named, and
    on the prompts of then.
    """
    name = begun.get(POLICY) or history.policy_at_work(session.workspace, session.turn)
    start = versions.describe(session.workspace, name).start
    reward = versions.reward_of(session.workspace, name)
    upto = as_begun(session, begun)
    found = evaluation_prompts(session, upto)
    prompts = draw_prompts(found.prompts, session.settings.evaluate.prompts, session.settings.seed)
    refuse_alike(prompts, session.settings.evaluate)
    against = rival(session, name, options.against or (begun.get(AGAINST, start) if begun else None))
    text = prose(session)
    decides = {POLICY: name, "the reward model": reward, PROMPTS: digest(prompts), **until(upto), **text.decides}
    if against != start:  # as runs were begun before there was another
        decides[AGAINST] = against
    return EvaluationInputs(
        decides=decides,
        version=name,
        reward=reward,
        start=start,
        against=against,
        prompts=prompts,
        shortened=len(found.shortened.intersection(prompts)),
        skipped=found.too_long,
        prose=text,
    )


def rival(session: Session, policy: str, named: str | None = None) -> str:
    """Return what a policy is compared with: the version that is named, or else the one whose place it would take.

    That is the current one; of a policy that is current itself, the one before it. Raises MannersError for a name that
    is no version, or the policy's own.
    """
    workspace = session.workspace
    if named is None:
        return gate.replaced_by(workspace, policy)
    if named == policy:
        raise MannersError(f"{policy} is the policy that is evaluated: compare it with another version than itself")
    if named != INITIAL:
        versions.fitting(workspace, named, VersionKind.POLICY, session.pretrained)
    return named


def plan(session: Session, inputs: EvaluationInputs | None = None) -> Plan:
    """Memory of answering the evaluation prompts version by version, and of scoring the answers a batch at a time.

    Beside the version at work, the start version is held, which costs nothing where it is the initial model.
    """
    sample = session.settings.sample
    evaluate = session.settings.evaluate
    prompts = prompt_lengths(session, PromptUse.EVALUATE)
    distinct = min(-(-sample.batch // evaluate.samples), evaluate.prompts, prompts.counts[PromptUse.EVALUATE].fit)
    held = 1 + ((inputs.start if inputs else session.start) != INITIAL)
    needed = memory_parts(session.pretrained.trunk, session.settings, distinct, held, prompts.longest)
    if inputs and inputs.reward is None:
        needed = [part for part in needed if part.name != "reward_members"]
    return make_plan(session, "evaluate", {"prompts": prompts.facts}, needed)


def memory_parts(trunk: Trunk, settings: Settings, distinct: int, held: int, longest: int) -> list[Part]:
    """What an evaluation takes beside the model: it answers so many prompts at a time, and holds so many versions."""
    new_tokens = settings.sample.max_new_tokens
    rows = distinct * settings.evaluate.samples
    drawing = drawing_bytes(trunk, rows, distinct, longest, new_tokens)
    length = longest + new_tokens
    scoring = layer_bytes(trunk, rows_at_once(trunk, length) * length) + head_bytes(trunk)
    return [
        Part("policy", held * own_bytes(trunk, head=True), "model.trainable_layers"),
        Part("reward_members", settings.reward.branches * own_bytes(trunk, head=False), "reward.members"),
        Part("trunk_states", states_bytes(trunk, WINDOW * rows * length), "sample.batch"),
        max(
            Part("drawing_responses", drawing, "sample.batch"),
            Part("scoring_responses", scoring, "sample.batch"),
            key=lambda part: part.size,
        ),
    ]


def run(session: Session, run: Run, inputs: EvaluationInputs) -> EvaluationResult:
    """Compare the newest policy with the current one, say in a few sentences what came out, and promote it or not.

    Where the verdicts are simulated, the crowd's hidden taste judges: here and nowhere else may it be looked at. With
    real people there is none; their blind verdicts (`--ask N`) judge, and the rest is measured without taste. Against a
    version that is not the current one nothing is decided.
    """
    settings = session.settings
    asked = rules(session.workspace.root)
    # 1. Answers of each version to the same prompts, scored; perplexity on plain text.
    compared, lost = _answers(session, run, inputs)
    # 2. The judge: whoever taught the reward model.
    judge = _judge(session, inputs)
    before, after = compared.against, compared.policy
    texts = text_measures.text_measures(before.answers, after.answers, settings.evaluate.bootstrap, settings.seed)
    drawn = digest(compared.drawn) if judge.on_record is None else None
    attempt = history.attempt(session.store.rounds(), inputs.version, inputs.against, drawn)
    level = promotion.level(attempt)
    judgement = judged(judge, compared, texts, settings.evaluate, asked, level)
    taste = {}
    if isinstance(judge, TasteJudge):
        taste = taste_facts(judge.taste, before, after, settings.evaluate.bootstrap, settings.seed)
    # 3. Promoted or not, and the round is on record, once.
    run.save()
    current = rival(session, inputs.version)
    decides = inputs.against == current
    if decides:
        alike = texts.before["most_common_answer"].estimate
        checks = promotion.checks(judgement.reasons, asked, measured_on(judge, compared), alike, level)
        gate.keep(session.workspace, inputs.version, EVALUATION, checks, inputs.against)
    found = gate.standing(session.workspace, inputs.version).gate
    promoted = not found.blocks if decides else None
    decision = _decision(inputs, judgement, current, asked, found, attempt)
    beside = tried.words(session.workspace, session.store, inputs.version)
    verdict = f"{judgement.verdict} {decision}{beside}{_initial(session)}"
    judgement = replace(judgement, verdict=verdict)
    result = EvaluationResult(
        **_text_facts(session, compared, texts),
        worst=_beside(before, after, liked_least(before, after, judge, EXAMPLES)),
        forgetting=lost,
        version=inputs.version,
        against=inputs.against,
        start=inputs.start,
        prompts_skipped=inputs.skipped,
        prompts_shortened=inputs.shortened,
        **vars(judgement),
        promoted=promoted,
        attempt=attempt if decides else None,
        drawn=drawn,
        **taste,
    )
    if promoted:
        gate.promote(session.workspace, inputs.version)
    if decides and judgement.source != "none":
        _record_round(session, inputs, result)
    return result


def _decision(
    inputs: EvaluationInputs, judgement: Judgement, current: str, asked: Rules, found: Gate, attempt: int
) -> str:
    """Say whether the policy is promoted, and if not, why; of one that is not the first to be tried, by what level."""
    if inputs.against == current:
        names = (*found.failed, *found.cannot_tell)
        words = promotion.promotion_words(judgement.reasons, inputs.against, inputs.start, asked, names)
        place = promotion.called(current, inputs.start)
        return f"{promotion.attempt_words(judgement.reasons, attempt, place)}{words}"
    return (
        f"Nothing is decided: a policy is promoted by how it does against the version that it would replace, {current}."
    )


def _initial(session: Session) -> str:
    """Say which version of the workspace the initial model is, where it is one."""
    name = session.settings.model.name
    return f" The initial model is {name} of this project." if whole.is_version(session.workspace, name) else ""


def _judge(session: Session, inputs: EvaluationInputs) -> Judge:
    """Return whoever gave the verdicts that the policy was trained on, itself or by way of its reward model.

    People who were asked about this policy come before an AI annotator, of which nothing shows yet that it agrees with
    them: it is read under its own name, and promotes nothing.
    """
    taught_by = (inputs.version, inputs.reward) if inputs.reward else (inputs.version,)
    said = [versions.describe(session.workspace, name).source for name in taught_by]
    return judge_of(session, inputs.version, next((kind for kind in said if kind), None) or last_source(session))


def judge_of(session: Session, version: str, source: AnnotatorKind) -> Judge:
    """Return who judges a version where verdicts are of a kind of annotator; of people, by what they were asked."""
    if source is AnnotatorKind.SIMULATED:
        return TasteJudge(recruit(session.settings.crowd, session.settings.seed))
    people = VerdictJudge(tuple(bets.asked(session, version)))
    if source is AnnotatorKind.AI and not people.raters:
        return replace(people, kind=source, may_promote=False)
    return people


def last_source(session: Session) -> AnnotatorKind:
    """Return whose verdicts the last reward run learned from, for a version that does not say: people's, if none."""
    facts = session.read_facts("reward")
    source = facts and from_facts(RewardResult, facts, "runs/reward.json").source
    return AnnotatorKind(source or AnnotatorKind.HUMAN)


def _answers(session: Session, run: Run, inputs: EvaluationInputs) -> tuple[Compared, Forgetting]:
    """Answers of each version; what the policy and the initial model make of plain text and questions."""
    settings = session.settings
    pretrained = session.pretrained
    reward = None if inputs.reward is None else stored.load_reward(session.workspace, inputs.reward, pretrained)
    start = versions.load_policy(session.workspace, inputs.start, pretrained)

    def answered(policy: Branch, name: str) -> Answered:
        return _answered(session, run, policy, start, reward, inputs.prompts, name)

    before = answered(start, inputs.start)
    against = before
    if inputs.against != inputs.start:
        against = answered(versions.load_policy(session.workspace, inputs.against, pretrained), inputs.against)
    policy = versions.load_policy(session.workspace, inputs.version, pretrained)
    after = answered(policy, inputs.version)
    initial = start if inputs.start == INITIAL else versions.load_policy(session.workspace, INITIAL, pretrained)
    unseen = inputs.prose.by_use[PromptUse.EVALUATE]
    asked = questions()
    was, became = read([initial, policy], pretrained, unseen, asked)
    change = text_measures.perplexity_change(
        was.nll, became.nll, was.tokens, settings.evaluate.bootstrap, settings.seed
    )
    lost = forgetting.forgetting(was, became, asked, before.answers, after.answers)
    method = versions.describe(session.workspace, inputs.version).method.upper()
    return Compared(start=before, against=against, policy=after, perplexity=change, method=method), lost


def _answered(
    session: Session,
    run: Run,
    policy: Branch,
    start: Branch,
    reward: RewardModel | None,
    prompts: Sequence[Dialogue],
    author: str,
) -> Answered:
    """Draw, score, and measure the KL of a version's answers, a part at a time; without a reward model no score is."""
    sample = session.settings.sample
    count = session.settings.evaluate.samples
    what = f"answers of {author}"
    branches = () if policy is start else (policy, start)
    answers: list[list[Answer]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    total = 0.0
    with steps(what, len(prompts) * count) as advance:

        def work(part: tuple[list[int], int]) -> tuple[list[tuple[int, Answer, float]], float]:
            places, part_seed = part
            chosen = [prompts[i] for i in places]
            rows = list[tuple[int, Answer, float]]()
            kl = 0.0
            for some in answer(policy, session.pretrained, chosen, count, sample, part_seed, author, True, advance):
                scored, logprobs, _ = rollout.measure(some.generated, reward, branches, sample.temperature)
                means = [math.nan] * len(some.answers) if reward is None else scored.mean.tolist()
                rows += [(places[i], a, m) for i, a, m in zip(some.places, some.answers, means, strict=True)]
                if branches:
                    kl += float((logprobs[0] - logprobs[1])[some.generated.batch.keep].sum())
            return rows, kl

        todo = parts(range(len(prompts)), own_seed(session.settings.seed, author))
        advance(count * sum(len(places) for places, _ in todo[: run.done(what)]))
        for rows, kl in run.each(what, todo, work):
            for place, given, score in rows:
                answers[place].append(given)
                scores[place].append(score)
            total += kl
    return Answered(author, answers, scores, total / (len(prompts) * count))


def _text_facts(session: Session, compared: Compared, texts: TextMeasures) -> dict[str, Any]:
    """Return everything that needs no judge, by the names of `EvaluationResult`."""
    before, after, perplexity = compared.against, compared.policy, compared.perplexity
    assert perplexity is not None, "it has been read"
    facts: dict[str, Any] = {
        "prompts": len(before.answers),
        "samples": session.settings.evaluate.samples,
        "kl": after.kl,
        "perplexity_text": session.settings.data.prose,
        "perplexity_before": perplexity.before,
        "perplexity_after": perplexity.after,
        "perplexity_change": perplexity.change,
        "examples": _examples(before, after),
    }
    facts |= {f"{name}_before": found.estimate for name, found in texts.before.items()}
    facts |= {f"{name}_after": found.estimate for name, found in texts.after.items()}
    facts |= {f"{name}_change": change for name, change in texts.changes.items()}
    if before.scored:
        facts["score_before"], facts["score_after"] = (float(np.mean(v.scores)) for v in (before, after))
    return facts


def _examples(before: Answered, after: Answered) -> tuple[BesideExample, ...] | None:
    step = max(1, len(before.answers) // EXAMPLES)
    return _beside(before, after, [(i, 0) for i in range(0, len(before.answers), step)][:EXAMPLES])


def _beside(
    before: Answered, after: Answered, places: Sequence[tuple[int, int]] | None
) -> tuple[BesideExample, ...] | None:
    """Return answers of both versions by prompt and place; None where it is not known which."""
    if places is None:
        return None
    return tuple(
        BesideExample(
            prompt=before.answers[i][j].prompt[-1].text,
            before=before.answers[i][j].response.text,
            after=after.answers[i][j].response.text,
            score_before=before.scores[i][j] if before.scored else None,
            score_after=after.scores[i][j] if after.scored else None,
        )
        for i, j in places
    )


def _record_round(session: Session, inputs: EvaluationInputs, result: EvaluationResult) -> None:
    """Record how the round ended, once: a process killed after this may come by again."""
    ensure_rows(session)
    outcome = Outcome.PROMOTED if result.promoted else Outcome.REJECTED
    metrics = scalars(result) | ({} if result.interval is None else {"interval": list(result.interval)})
    ended = Round(inputs.version, inputs.reward or inputs.version, outcome, metrics)
    last = session.store.rounds()[-1:]
    if [replace(r, created_at=None, id=None) for r in last] != [ended]:
        session.store.add_round(ended)
