"""Asking: the policy answers prompts several times, and pairs of answers are put before annotators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations, pairwise

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.feedback import crowd as simulated
from manners.feedback.statistics import pair_agreement, wilson
from manners.loop.planning import announce, plan_sample
from manners.loop.session import Facts, Session
from manners.models import versions
from manners.models.answer import answer
from manners.progress import steps
from manners.text import TooLong
from manners.types import Answer, AskedHow, Choice, Comparison, Dialogue, PromptUse, latest_verdicts

ATTEMPTS = 3
"""Times a prompt is answered whose answers came out alike or empty."""
PART = 192
"""Most prompts that are answered between two checkpoints, each part from a seed of its own: other parts give other
answers, while `sample.batch` changes nothing."""
EXAMPLES = 6
"""Comparisons that the report shows."""


def sample(session: Session, *, crowd: bool, resume: bool = False) -> Facts:
    """Answer every training prompt that was not asked about yet, and open a comparison of each two of its answers.

    Prompts from chats (`answerable`) are left out unless `serve.share_chats` is on.

    With `crowd`, the simulated annotators give their verdicts at once. Nothing is chosen: every prompt, every pair of
    different answers, in the order in which they were drawn.
    """
    run = session.begin("sample", ("sample", "crowd"), {"--crowd": crowd}, resume=resume)
    return session.finish("sample", run, _sample(session, run, crowd)) if isinstance(run, Run) else run


def _sample(session: Session, run: Run, crowd: bool) -> Facts:
    announce(plan_sample(session))
    if not run.state:  # whom to ask is settled once: comparisons that this run has opened must not change it
        asked = {c.prompt for c in session.store.comparisons()}
        prompts = [prompt for prompt in answerable(session, PromptUse.TRAIN) if prompt not in asked]
        fitting = short_enough(session, prompts)
        if not fitting:
            raise MannersError(
                f"there is no training prompt left to ask about ({len(prompts)} are too long for model.context);"
                " add some with `manners prompts import FILE`"
            )
        author = session.workspace.current_policy()
        run.state |= {"prompts": fitting, "too long": len(prompts) - len(fitting), "author": author}
    author = run.state["author"]
    answers, alike = _answers(session, run, run.state["prompts"], author)
    there = set(answerable(session, PromptUse.TRAIN))  # what was deleted meanwhile must not be stored again
    answers, answered = [given for given in answers if given[0].prompt in there], len(answers)
    comparisons = [
        Comparison(a.prompt, a.response, b.response, AskedHow.RANDOM, ask_probability=1.0)
        for given in answers
        for a, b in combinations(given, 2)
    ]
    if crowd:
        people = simulated.recruit(session.settings.crowd, session.settings.seed)
        each = session.settings.crowd.verdicts_per_comparison
        verdicts = simulated.ask(people, comparisons, each, session.settings.seed)
        comparisons = [replace(c, verdicts=tuple(v)) for c, v in zip(comparisons, verdicts, strict=True)]
    run.save()
    session.store.merge_comparisons(comparisons)  # merged, for a process killed after this has stored them already
    drawn = [a for given in answers for a in given]
    left_out = {
        "prompt longer than the context": run.state["too long"],
        "answers alike or empty": alike,
        "prompt deleted meanwhile": answered - len(answers),
    }
    return {
        "policy": author,
        "prompts": len(answers),
        "comparisons": len(comparisons),
        "left_out": {reason: count for reason, count in left_out.items() if count},
        "responses": len(drawn),
        "finished": sum(a.finished for a in drawn) / max(1, len(drawn)),
    }


def answerable(session: Session, use: PromptUse) -> list[Dialogue]:
    """Return the prompts of one use that may be answered: none deleted, and none from chats that are not shared."""
    return session.store.answerable(use, chats=session.settings.serve.share_chats)


def short_enough(session: Session, prompts: Sequence[Dialogue]) -> list[Dialogue]:
    """Distinct prompts that leave room for an answer."""
    fitting = []
    for prompt in dict.fromkeys(prompts):
        try:
            session.pretrained.renderer.prompt_ids(prompt, session.settings.sample.max_new_tokens)
        except TooLong:
            continue
        fitting.append(prompt)
    return fitting


def parts(places: Sequence[int], seed: int) -> list[tuple[list[int], int]]:
    """Cut a list of prompts into what is answered between two checkpoints: even parts, each with a seed of its own."""
    count = -(-len(places) // PART)
    edges = [len(places) * number // max(1, count) for number in range(count + 1)]
    return [(list(places[start:stop]), seed + number * 104_729) for number, (start, stop) in enumerate(pairwise(edges))]


def _answers(session: Session, run: Run, prompts: Sequence[Dialogue], author: str) -> tuple[list[list[Answer]], int]:
    """Draw answers, all different, to each prompt, in the order of the prompts.

    A prompt that got fewer than two different ones is asked anew, `ATTEMPTS` times in all. Return also the number of
    prompts for which two could not be had.
    """
    policy = versions.load_policy(session.workspace, author, session.pretrained)
    settings, seed = session.settings.sample, session.settings.seed

    def draw(part: tuple[list[int], int], advance: Callable[[int], None]) -> list[tuple[int, Answer]]:
        places, part_seed = part
        chosen, count = [prompts[i] for i in places], settings.answers
        drawn = answer(policy, session.pretrained, chosen, count, settings, part_seed, author, on_step=advance)
        return [(places[i], given) for some in drawn for i, given in zip(some.places, some.answers, strict=True)]

    found: dict[int, list[Answer]] = {}
    missing = list(range(len(prompts)))
    for attempt in range(ATTEMPTS):
        wanted, missing = missing, []
        drawn: dict[int, dict[str, Answer]] = {place: {} for place in wanted}
        with steps("answering" if attempt == 0 else "answering again", settings.answers * len(wanted)) as advance:
            what, todo = f"attempt {attempt}", parts(wanted, seed + attempt * 7919)
            advance(settings.answers * sum(len(places) for places, _ in todo[: run.done(what)]))
            for answers in run.each(what, todo, partial(draw, advance=advance)):
                for place, given in answers:
                    if text := given.response.text.strip():
                        drawn[place].setdefault(text, given)
        for place, different in drawn.items():
            if len(different) > 1:
                found[place] = list(different.values())
            else:
                missing.append(place)
        if not missing:
            break
    return [found[i] for i in sorted(found)], len(missing)


def asked_facts(session: Session) -> Facts:
    """What was asked and what annotators said, for the report; nothing if nothing was asked."""
    comparisons = [c for c in session.store.comparisons() if c.asked_how is not AskedHow.EVALUATION]
    if not comparisons:
        return {}
    verdicts = [latest_verdicts(c.verdicts) for c in comparisons]
    choices = [v.choice for given in verdicts for v in given]
    kinds = sorted({str(v.annotator.kind) for given in verdicts for v in given})
    left, right = choices.count(Choice.LEFT), choices.count(Choice.RIGHT)
    facts: Facts = {
        "total": len(comparisons),
        "source": kinds[0] if len(kinds) == 1 else "mixed" if kinds else "none",
        "prompts": len({c.prompt for c in comparisons}),
        "verdicts": {str(choice): choices.count(choice) for choice in Choice},
        "annotators": len({v.annotator for given in verdicts for v in given}),
        "left_rate": asdict(wilson(left, left + right)),
        "examples": [_example(c) for c in comparisons[:EXAMPLES]],
    }
    if len(kinds) == 1:
        several = [given for given in verdicts if sum(v.choice in (Choice.LEFT, Choice.RIGHT) for v in given) > 1]
        if len(several) > 1:
            facts["agreement"] = asdict(pair_agreement(several, 2000, session.settings.seed))
    return facts


def _example(comparison: Comparison) -> Facts:
    first = comparison.verdicts[0] if comparison.verdicts else None
    return {
        "prompt": comparison.prompt[-1].text,
        "left": comparison.left.text,
        "right": comparison.right.text,
        "verdict": str(first.choice) if first else None,
        "annotator": first.annotator.name if first else None,
    }
