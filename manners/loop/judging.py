"""Judging: the new policy against the initial model, on prompts that nothing was trained on or chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from manners.checkpoint import Run
from manners.data import plain_text
from manners.errors import MannersError
from manners.evaluate import ask, compare, text_measures
from manners.feedback.crowd import find_taste, true_preference, true_score
from manners.feedback.statistics import Decision, cluster_bootstrap
from manners.loop.asking import parts, short_enough
from manners.loop.learning import ensure_rows
from manners.loop.planning import announce, plan_evaluate
from manners.loop.session import Facts, Session, digest
from manners.models import versions
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.perplexity import paragraph_nll
from manners.ppo import rollout
from manners.progress import steps
from manners.reward.ensemble import RewardModel
from manners.store import Outcome, Round
from manners.types import AnnotatorKind, Answer, AskedHow, Dialogue, Interval, PromptUse, Response, VersionKind
from manners.workspace import INITIAL

EXAMPLES = 12
"""Prompts whose answers before and after the report shows."""


@dataclass(frozen=True)
class Answered:
    """A version's answers to the evaluation prompts, by prompt, with the reward model's scores."""

    answers: list[list[Answer]]
    scores: list[list[float]]
    kl: float
    """Of the version to the initial model, in nats per response."""

    @property
    def flat(self) -> list[Answer]:
        """All answers."""
        return [a for of_prompt in self.answers for a in of_prompt]


def evaluate(session: Session, *, resume: bool = False) -> Facts:
    """Compare the newest policy with the initial model, say in one sentence what came out, and promote it or not.

    Where the verdicts are simulated, the crowd's hidden taste judges: here and nowhere else may it be looked at. With
    real people there is none; their blind verdicts (`--ask N`) judge, and the rest is measured without taste.
    """
    with session.run_lock("evaluate"):
        name = versions.latest(session.workspace, VersionKind.POLICY)
        reward = versions.reward_of(session.workspace, name)
        announce(plan_evaluate(session))
        prompts = _evaluation_prompts(session)[: session.settings.evaluate.prompts]
        data = {"the policy": name, "the reward model": reward, "the prompts": digest(prompts)}
        run = session.begin("evaluation", ("sample", "crowd", "evaluate"), data, resume=resume)
        if not isinstance(run, Run):
            return run
        before, after, perplexity = _both(session, run, name, reward, prompts)
        facts = _text_facts(session, before, after, perplexity) | {"version": name}
        if _source(session, reward) is AnnotatorKind.SIMULATED:
            facts |= _by_taste(session, before, after, perplexity)
        else:
            facts |= _by_people(session, name)
        run.save()
        if facts.get("promoted") and session.workspace.current_policy() != name:
            session.workspace.promote(name)
        if facts["source"] != "none":
            _record_round(session, name, reward, facts)
        return session.finish("evaluation", run, facts)


def open_for_people(session: Session, count: int) -> Facts:
    """Open blind comparisons of the newest policy and the initial model, and say what so many can show."""
    plan = ask.plan(count)
    name = versions.latest(session.workspace, VersionKind.POLICY)
    prompts = _evaluation_prompts(session)
    answered = []
    for version in (INITIAL, name):
        policy = versions.load_policy(session.workspace, version, session.pretrained)
        found: dict[int, Answer] = {}
        drawn = answer(policy, session.pretrained, prompts, 1, session.settings.sample, session.settings.seed, version)
        with steps(f"answers of {version}", len(prompts)) as advance:
            for batch in drawn:
                found |= dict(zip(batch.places, batch.answers, strict=True))
                advance(len(batch.answers))
        answered.append([found[i] for i in range(len(prompts))])
    before, after = answered
    opened = ask.open_comparisons(before, after, session.store.comparisons(), count, session.settings.seed)
    session.store.add_comparisons(opened)
    return {"opened": len(opened), "version": name, "sentence": plan.sentence, **asdict(plan)}


def _source(session: Session, reward: str) -> AnnotatorKind:
    """Whose verdicts the policy was trained on: those of its reward model."""
    said = versions.describe(session.workspace, reward).metrics.get("source")
    return AnnotatorKind(said or (session.read_facts("reward") or {}).get("source", AnnotatorKind.HUMAN))


def _evaluation_prompts(session: Session) -> list[Dialogue]:
    prompts = short_enough(session, [stored.dialogue for stored in session.store.prompts(PromptUse.EVALUATE)])
    if len(prompts) < 2:
        raise MannersError(
            f"evaluation needs at least 2 prompts of its own, {len(prompts)} are there;"
            " add some with `manners prompts import FILE --use evaluate`"
        )
    return prompts


def _both(
    session: Session, run: Run, name: str, reward_name: str, prompts: Sequence[Dialogue]
) -> tuple[Answered, Answered, text_measures.PerplexityChange]:
    """Answers of the initial model and of a version, and their perplexity on plain text."""
    settings, pretrained = session.settings, session.pretrained
    reward = versions.load_reward(session.workspace, reward_name, pretrained)
    initial = versions.load_policy(session.workspace, INITIAL, pretrained)
    policy = versions.load_policy(session.workspace, name, pretrained)
    before = _answered(session, run, initial, initial, reward, prompts, INITIAL)
    after = _answered(session, run, policy, initial, reward, prompts, name)
    (nll_before, nll_after), tokens = paragraph_nll([initial, policy], pretrained, plain_text(PromptUse.EVALUATE))
    change = text_measures.perplexity_change(nll_before, nll_after, tokens, settings.evaluate.bootstrap, settings.seed)
    return before, after, change


def _answered(
    session: Session,
    run: Run,
    policy: Branch,
    initial: Branch,
    reward: RewardModel,
    prompts: Sequence[Dialogue],
    author: str,
) -> Answered:
    """Draw, score, and measure the KL of a version's answers, a part at a time."""
    sample, count, seed = session.settings.sample, session.settings.evaluate.samples, session.settings.seed + 17

    what, reference = f"answers of {author}", None if policy is initial else initial
    answers: list[list[Answer]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    total = 0.0
    with steps(what, len(prompts) * count) as advance:

        def work(part: tuple[list[int], int]) -> tuple[list[tuple[int, Answer, float]], float]:
            places, part_seed = part
            chosen, rows, kl = [prompts[i] for i in places], list[tuple[int, Answer, float]](), 0.0
            for some in answer(policy, session.pretrained, chosen, count, sample, part_seed, author, True, advance):
                scored, ref_logprobs, _ = rollout.measure(some.generated, reward, reference, sample.temperature)
                means = scored.mean.tolist()
                rows += [(places[i], a, m) for i, a, m in zip(some.places, some.answers, means, strict=True)]
                if reference is not None:
                    kl += float((some.generated.logprobs - ref_logprobs)[some.generated.batch.keep].sum())
            return rows, kl

        todo = parts(range(len(prompts)), seed)
        advance(count * sum(len(places) for places, _ in todo[: run.done(what)]))
        for rows, kl in run.each(what, todo, work):
            for place, given, score in rows:
                answers[place].append(given)
                scores[place].append(score)
            total += kl
    return Answered(answers, scores, total / (len(prompts) * count))


def _text_facts(
    session: Session, before: Answered, after: Answered, perplexity: text_measures.PerplexityChange
) -> Facts:
    """Everything that needs no judge."""
    resamples, seed = session.settings.evaluate.bootstrap, session.settings.seed
    facts: Facts = {
        "prompts": len(before.answers),
        "samples": session.settings.evaluate.samples,
        "kl": after.kl,
        "perplexity_before": perplexity.before,
        "perplexity_after": perplexity.after,
        "perplexity_change": asdict(perplexity.change),
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
    facts |= {f"{name}_change": asdict(change) for name, change in changes.items()}
    facts["score_before"], facts["score_after"] = (float(np.mean(v.scores)) for v in (before, after))
    return facts


def _by_taste(session: Session, before: Answered, after: Answered, perplexity: text_measures.PerplexityChange) -> Facts:
    """The verdict of the crowd's hidden taste, without its noise."""
    settings, seed = session.settings.evaluate, session.settings.seed
    taste = find_taste(session.settings.crowd.taste)

    def preference(prompt: Dialogue, a: Response, b: Response) -> float:
        return true_preference(taste, prompt, a, b)

    rate = compare.win_rate(before.answers, after.answers, preference, settings.bootstrap, seed)
    matched = compare.matched_win_rate(
        before.answers, after.answers, preference, settings.length_tolerance, settings.bootstrap, seed
    )
    facts: Facts = {"source": "simulated", "win_rate": rate.estimate, "interval": [rate.low, rate.high]}
    facts["matched"] = asdict(matched.interval) | {
        "pairs": matched.pairs,
        "prompts": matched.prompts,
        "effective_prompts": matched.effective_prompts,
        "length_difference": matched.length_difference,
    }
    count = settings.samples
    best = compare.head_to_head(before.answers, before.scores, after.answers, preference, settings.bootstrap, seed)
    conclusion = compare.verdict_sentence(
        AnnotatorKind.SIMULATED, rate, len(before.answers), matched, best, count, perplexity
    )
    facts["best_of_n"] = {"n": count, "head_to_head": asdict(best), "sentence": _best_sentence(best, count)}
    if count > 1:
        alone = compare.best_of_n_win_rate(before.answers, before.scores, preference, settings.bootstrap, seed)
        facts["best_of_n"] |= {"win_rate": asdict(alone), "win_rate_n": count - 1}
    facts |= {"verdict": conclusion.sentence, "promoted": conclusion.promoted, "outcome": str(conclusion.outcome)}
    return facts | _taste_facts(session, lambda a: true_score(taste, a.prompt, a.response), (before, after))


def _best_sentence(best: Interval, n: int) -> str:
    outcome = {
        Decision.BETTER: "PPO beats",
        Decision.WORSE: "PPO does worse than",
        Decision.CANNOT_TELL: "it cannot be told whether PPO beats",
    }[Decision.of(best)]
    return f"Head to head, {outcome} the best of {n} answers of the initial model by the same reward model."


def _taste_facts(session: Session, taste_of: Callable[[Answer], Any], both: tuple[Answered, Answered]) -> Facts:
    """Means of the hidden taste and its parts, before and after, with the interval of the paired change."""
    seen = [[[taste_of(a) for a in of_prompt] for of_prompt in version.answers] for version in both]
    facts: Facts = {"taste_parts": {}}

    def mean(when: int, part: str) -> float:
        return float(np.mean([getattr(t, part) for of_prompt in seen[when] for t in of_prompt]))

    for part, name in (("total", "taste"), ("content", "content")):
        facts[f"{name}_before"], facts[f"{name}_after"] = mean(0, part), mean(1, part)
        by_prompt = [
            float(np.mean([getattr(t, part) for t in new]) - np.mean([getattr(t, part) for t in old]))
            for old, new in zip(*seen, strict=True)
        ]
        change = cluster_bootstrap(
            by_prompt, range(len(by_prompt)), session.settings.evaluate.bootstrap, session.settings.seed
        )
        facts[f"{name}_change"] = asdict(change)
    for part in ("finished", "brevity", "kindness", "relevance", "plainness"):
        facts["taste_parts"][part] = {"before": mean(0, part), "after": mean(1, part)}
    return facts


def _by_people(session: Session, name: str) -> Facts:
    """The verdict of people on blind comparisons of the two versions; none yet is an allowed result."""
    asked = [c for c in session.store.comparisons(AskedHow.EVALUATION) if name in (c.left.author, c.right.author)]
    if not asked:
        sentence = "Nobody has compared the two versions yet: open blind comparisons with `manners evaluate --ask N`."
        return {"source": "none", "verdict": sentence, "promoted": False}
    outcome = ask.read_outcome(asked, INITIAL, name)
    return {
        "source": "human",
        "win_rate": outcome.interval.estimate,
        "interval": [outcome.interval.low, outcome.interval.high],
        "verdict": outcome.sentence,
        "promoted": outcome.decision is Decision.BETTER,
        "outcome": str(outcome.decision),
    }


def _examples(before: Answered, after: Answered) -> list[Facts]:
    step = max(1, len(before.answers) // EXAMPLES)
    return [
        {
            "prompt": before.answers[i][0].prompt[-1].text,
            "before": before.answers[i][0].response.text,
            "after": after.answers[i][0].response.text,
            "score_before": before.scores[i][0],
            "score_after": after.scores[i][0],
        }
        for i in range(0, len(before.answers), step)
    ][:EXAMPLES]


def _record_round(session: Session, name: str, reward: str, facts: Facts) -> None:
    """Record how the round ended, once: a process killed after this may come by again."""
    ensure_rows(session)
    figures = {k: v for k, v in facts.items() if isinstance(v, int | float | str)}
    outcome = Outcome.PROMOTED if facts.get("promoted") else Outcome.REJECTED
    ended = Round(name, reward, outcome, figures)
    last = session.store.rounds()[-1:]
    if [replace(r, created_at=None, id=None) for r in last] != [ended]:
        session.store.add_round(ended)
