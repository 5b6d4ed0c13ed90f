"""Evaluation: the newest policy against the start version, on prompts that nothing was trained on or chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manners.checkpoint import Run
from manners.data import plain_text
from manners.errors import MannersError
from manners.evaluate import text_measures
from manners.evaluate.judged import Answered, judged, taste_facts
from manners.evaluate.text_measures import PerplexityChange
from manners.facts import from_facts, scalars
from manners.feedback.crowd import find_taste
from manners.feedback.judges import Judge, TasteJudge, VerdictJudge
from manners.loop.keep import ensure_rows
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import draw_prompts, parts, prompt_lengths, short_enough
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs, Options
from manners.models import versions
from manners.models.answer import WINDOW, answer
from manners.models.branches import Branch
from manners.models.cost import drawing_bytes, head_bytes, layer_bytes, own_bytes, rows_at_once, states_bytes
from manners.models.perplexity import paragraph_nll
from manners.ppo import rollout
from manners.progress import steps
from manners.results import BesideExample, EvaluationResult, RewardResult
from manners.reward import stored
from manners.reward.ensemble import RewardModel
from manners.store import Outcome, Round
from manners.types import AnnotatorKind, Answer, AskedHow, Dialogue, Interval, PromptUse, VersionKind
from manners.workspace import INITIAL

RESULT = EvaluationResult
EXAMPLES = 12
"""Prompts whose answers before and after the report shows."""


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs(Inputs):
    """What is compared, and on what."""

    version: str
    """The policy."""
    reward: str
    """The reward model that it was trained against."""
    start: str
    """The version that it started from."""
    prompts: list[Dialogue]


def inputs(session: Session, _: Options, begun: Mapping[str, Any]) -> EvaluationInputs:
    """Take the newest policy, and the prompts for evaluation; raises MannersError where there is none."""
    name = versions.latest(session.workspace, VersionKind.POLICY)
    described = versions.describe(session.workspace, name)
    reward = versions.reward_of(session.workspace, name)
    prompts = draw_prompts(evaluation_prompts(session), session.settings.evaluate.prompts, session.settings.seed)
    decides = {"the policy": name, "the reward model": reward, "the prompts": digest(prompts)}
    return EvaluationInputs(decides=decides, version=name, reward=reward, start=described.start, prompts=prompts)


def plan(session: Session, _: EvaluationInputs | None = None) -> Plan:
    """Memory of answering the evaluation prompts with two versions, and of scoring the answers a batch at a time."""
    sample = session.settings.sample
    evaluate = session.settings.evaluate
    trunk = session.pretrained.trunk
    prompts = prompt_lengths(session, PromptUse.EVALUATE)
    longest = prompts.longest
    distinct = min(-(-sample.batch // evaluate.samples), evaluate.prompts, prompts.counts[PromptUse.EVALUATE].fit)
    rows = distinct * evaluate.samples
    drawing = drawing_bytes(trunk, rows, distinct, longest, sample.max_new_tokens)
    length = longest + sample.max_new_tokens
    scoring = layer_bytes(trunk, rows_at_once(trunk, length) * length) + head_bytes(trunk)
    parts = [
        Part("policy", own_bytes(trunk, head=True), "model.trainable_layers"),
        Part("reward_members", session.settings.reward.members * own_bytes(trunk, head=True), "reward.members"),
        Part("trunk_states", states_bytes(trunk, WINDOW * rows * length), "sample.batch"),
        max(
            Part("drawing_responses", drawing, "sample.batch"),
            Part("scoring_responses", scoring, "sample.batch"),
            key=lambda part: part.size,
        ),
    ]
    return make_plan(session, "evaluate", {"prompts": prompts.facts}, parts)


def run(session: Session, run: Run, inputs: EvaluationInputs) -> EvaluationResult:
    """Compare the newest policy with the start version, say in one sentence what came out, and promote it or not.

    Where the verdicts are simulated, the crowd's hidden taste judges: here and nowhere else may it be looked at. With
    real people there is none; their blind verdicts (`--ask N`) judge, and the rest is measured without taste.
    """
    settings = session.settings
    # 1. Answers of both versions to the same prompts, scored; perplexity on plain text.
    before, after, perplexity = _both(session, run, inputs)
    # 2. The judge: whoever taught the reward model.
    judge = _judge(session, inputs)
    judgement = judged(judge, before, after, perplexity, settings.evaluate, settings.seed)
    taste = {}
    if isinstance(judge, TasteJudge):
        taste = taste_facts(judge.taste, before, after, settings.evaluate.bootstrap, settings.seed)
    result = EvaluationResult(
        **_text_facts(session, before, after, perplexity), version=inputs.version, **vars(judgement), **taste
    )
    # 3. Promoted or not, and the round is on record, once.
    run.save()
    if judgement.promoted and session.workspace.current_policy() != inputs.version:
        session.workspace.promote(inputs.version)
    if judgement.source != "none":
        _record_round(session, inputs, result)
    return result


def _judge(session: Session, inputs: EvaluationInputs) -> Judge:
    """Return whoever gave the verdicts that the policy was trained on, by way of its reward model."""
    source = versions.describe(session.workspace, inputs.reward).source or _last_source(session)
    if source is AnnotatorKind.SIMULATED:
        return TasteJudge(find_taste(session.settings.crowd.taste))
    asked = session.store.comparisons(AskedHow.EVALUATION)
    return VerdictJudge(tuple(c for c in asked if inputs.version in (c.left.author, c.right.author)))


def _last_source(session: Session) -> AnnotatorKind:
    """Return whose verdicts the last reward run learned from, for a version that does not say: people's, if none."""
    facts = session.read_facts("reward")
    source = facts and from_facts(RewardResult, facts, "runs/reward.json").source
    return AnnotatorKind(source or AnnotatorKind.HUMAN)


def evaluation_prompts(session: Session) -> list[Dialogue]:
    """Return the prompts that nothing is trained on or chosen by; raises MannersError where too few are there."""
    prompt_lengths(session, PromptUse.EVALUATE)  # says so where there are prompts and none of them fits
    prompts = short_enough(session, [stored.dialogue for stored in session.store.prompts(PromptUse.EVALUATE)])
    if len(prompts) < 2:
        raise MannersError(
            f"evaluation needs at least 2 prompts of its own, {len(prompts)} are there;"
            " add some with `manners prompts import FILE --use evaluate`"
        )
    return prompts


def _both(session: Session, run: Run, inputs: EvaluationInputs) -> tuple[Answered, Answered, PerplexityChange]:
    """Answers of the start version and of the policy; the policy's perplexity on plain text and the initial model's."""
    settings = session.settings
    pretrained = session.pretrained
    reward = stored.load_reward(session.workspace, inputs.reward, pretrained)
    start = versions.load_policy(session.workspace, inputs.start, pretrained)
    policy = versions.load_policy(session.workspace, inputs.version, pretrained)
    before = _answered(session, run, start, start, reward, inputs.prompts, inputs.start)
    after = _answered(session, run, policy, start, reward, inputs.prompts, inputs.version)
    initial = start if inputs.start == INITIAL else versions.load_policy(session.workspace, INITIAL, pretrained)
    (nll_before, nll_after), tokens = paragraph_nll([initial, policy], pretrained, plain_text(PromptUse.EVALUATE))
    change = text_measures.perplexity_change(nll_before, nll_after, tokens, settings.evaluate.bootstrap, settings.seed)
    return before, after, change


def _answered(
    session: Session,
    run: Run,
    policy: Branch,
    start: Branch,
    reward: RewardModel,
    prompts: Sequence[Dialogue],
    author: str,
) -> Answered:
    """Draw, score, and measure the KL of a version's answers, a part at a time."""
    sample = session.settings.sample
    count = session.settings.evaluate.samples
    what = f"answers of {author}"
    reference = None if policy is start else start
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
                scored, ref_logprobs, _ = rollout.measure(some.generated, reward, reference, sample.temperature)
                means = scored.mean.tolist()
                rows += [(places[i], a, m) for i, a, m in zip(some.places, some.answers, means, strict=True)]
                if reference is not None:
                    kl += float((some.generated.logprobs - ref_logprobs)[some.generated.batch.keep].sum())
            return rows, kl

        todo = parts(range(len(prompts)), session.settings.seed + 17)
        advance(count * sum(len(places) for places, _ in todo[: run.done(what)]))
        for rows, kl in run.each(what, todo, work):
            for place, given, score in rows:
                answers[place].append(given)
                scores[place].append(score)
            total += kl
    return Answered(author, answers, scores, total / (len(prompts) * count))


def _text_facts(session: Session, before: Answered, after: Answered, perplexity: PerplexityChange) -> dict[str, Any]:
    """Return everything that needs no judge, by the names of `EvaluationResult`."""
    resamples = session.settings.evaluate.bootstrap
    seed = session.settings.seed
    facts: dict[str, Any] = {
        "prompts": len(before.answers),
        "samples": session.settings.evaluate.samples,
        "kl": after.kl,
        "perplexity_before": perplexity.before,
        "perplexity_after": perplexity.after,
        "perplexity_change": perplexity.change,
        "examples": _examples(before, after),
    }
    measures: dict[str, Callable[[list[Answer]], Interval]] = {
        "length": lambda a: text_measures.mean_length(a, resamples, seed),
        "finished": lambda a: text_measures.share_finished(a, resamples, seed),
        "distinct_2": lambda a: text_measures.distinct_n(a, 2),
        "most_common_answer": lambda a: text_measures.most_common_answer_share(a, resamples, seed),
    }
    for measure, of in measures.items():
        for when, version in (("before", before), ("after", after)):
            facts[f"{measure}_{when}"] = of(version.flat).estimate
    changes = text_measures.changes(before.answers, after.answers, resamples, seed)
    facts |= {f"{name}_change": change for name, change in changes.items()}
    facts["score_before"], facts["score_after"] = (float(np.mean(v.scores)) for v in (before, after))
    return facts


def _examples(before: Answered, after: Answered) -> tuple[BesideExample, ...]:
    step = max(1, len(before.answers) // EXAMPLES)
    examples = [
        BesideExample(
            prompt=before.answers[i][0].prompt[-1].text,
            before=before.answers[i][0].response.text,
            after=after.answers[i][0].response.text,
            score_before=before.scores[i][0],
            score_after=after.scores[i][0],
        )
        for i in range(0, len(before.answers), step)
    ]
    return tuple(examples[:EXAMPLES])


def _record_round(session: Session, inputs: EvaluationInputs, result: EvaluationResult) -> None:
    """Record how the round ended, once: a process killed after this may come by again."""
    ensure_rows(session)
    outcome = Outcome.PROMOTED if result.promoted else Outcome.REJECTED
    ended = Round(inputs.version, inputs.reward, outcome, scalars(result))
    last = session.store.rounds()[-1:]
    if [replace(r, created_at=None, id=None) for r in last] != [ended]:
        session.store.add_round(ended)
