"""Sampling: the policy answers prompts several times, and pairs of answers are put before annotators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.feedback import crowd as simulated
from manners.loop.options import SampleOptions
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import answerable, draw_prompts, fitting, parts, prompt_lengths
from manners.loop.session import Session
from manners.loop.stage import Inputs
from manners.models import versions
from manners.models.answer import answer
from manners.models.cost import drawing_bytes, own_bytes
from manners.models.trunk import Trunk
from manners.progress import steps
from manners.results import SampleResult
from manners.settings import SampleSettings
from manners.types import Answer, AskedHow, Comparison, Dialogue, PromptUse
from manners.workspace import INITIAL

ATTEMPTS = 3
"""Times a prompt is answered whose answers came out alike or empty."""


@dataclass(frozen=True, kw_only=True)
class SampleInputs(Inputs):
    """What was asked for; which prompts that makes is settled by the run itself, once."""

    crowd: bool
    again: bool
    limit: int | None


def inputs(session: Session, options: SampleOptions, begun: Mapping[str, Any]) -> SampleInputs:
    """Take whether the crowd answers, and which prompts are asked.

    A run that goes on does as it was begun; an option that is given anew, and is another by now, is refused by it. A
    round says all of it each time.
    """
    known = begun if session.turn is None else {}
    crowd = options.crowd or bool(known.get("--crowd"))
    again = options.again or bool(known.get("--again"))
    limit: int | None = known.get("--limit") if options.limit is None else options.limit
    decides: dict[str, object] = {"--crowd": crowd}
    if again or limit is not None:  # runs of the time before these options are gone on with
        decides |= {"--again": again, "--limit": limit}
    return SampleInputs(decides=decides, crowd=crowd, again=again, limit=limit)


def plan(session: Session, _: SampleInputs | None = None) -> Plan:
    """Memory of answering the training prompts."""
    prompts = prompt_lengths(session, PromptUse.TRAIN)
    sample = session.settings.sample
    trunk = session.pretrained.trunk
    needed = memory_parts(trunk, sample, prompts.counts[PromptUse.TRAIN].fit, prompts.longest)
    if session.workspace.current_policy() != INITIAL:
        needed.append(Part("policy", own_bytes(trunk, head=True), "model.trainable_layers"))
    return make_plan(session, "sample", {"prompts": prompts.facts}, needed)


def memory_parts(trunk: Trunk, sample: SampleSettings, prompts: int, longest: int) -> list[Part]:
    """What answering so many prompts takes beside the model, from the start version."""
    distinct = min(-(-sample.batch // sample.answers), prompts)
    drawing = drawing_bytes(trunk, distinct * sample.answers, distinct, longest, sample.max_new_tokens)
    return [Part("drawing_responses", drawing, "sample.batch")]


def run(session: Session, run: Run, inputs: SampleInputs) -> SampleResult:
    """Answer every training prompt that was not asked about yet, and open a comparison of each two of its answers.

    With `--again` also those that were asked about with answers of other policies only; with `--limit N` at most N.
    Prompts from chats (`answerable`) are left out unless `serve.share_chats` is on. With `--crowd`, the simulated
    annotators give their verdicts at once. Nothing is chosen: every prompt, every pair of different answers, in the
    order in which they were drawn.
    """
    # 1. Whom to ask is settled once: comparisons that this run has opened must not change it.
    if "author" not in run.state:
        if session.turn is None:
            run.state |= _whom_to_ask(session, inputs)
        else:
            run.state |= _whom_to_ask_in_a_round(session, session.turn, inputs.limit)
    author = run.state["author"]
    # 2. Answers, all different; what was deleted meanwhile must not be stored again.
    each = session.settings.sample.answers
    answers, alike = answers_to(session, run, run.state["prompts"], author, each, session.seed, ATTEMPTS)
    there = set(answerable(session, PromptUse.TRAIN))
    answered = len(answers)
    answers = [given for given in answers if given[0].prompt in there]
    # 3. A comparison of each two answers to a prompt, judged at once by the crowd if that is asked for.
    over = run.state.get("over the limit", 0)
    chance = len(run.state["prompts"]) / (len(run.state["prompts"]) + over)
    comparisons = [
        Comparison(a.prompt, a.response, b.response, AskedHow.RANDOM, ask_probability=chance)
        for given in answers
        for a, b in combinations(given, 2)
    ]
    if inputs.crowd:
        comparisons = judged_by_crowd(session, comparisons)
    run.save()
    session.store.merge_comparisons(comparisons)  # merged, for a process killed after this has stored them already
    # 4. What came of it.
    drawn = [a for given in answers for a in given]
    if cut_off := sum(not a.finished for a in drawn):
        limit = session.settings.sample.max_new_tokens
        print(
            f"{cut_off} of {len(drawn)} answers were cut off at sample.max_new_tokens = {limit}, and whoever judges"
            " sees them cut off",
            file=sys.stderr,
        )
    left_out = {
        "prompt longer than the context": run.state["too long"],
        "over --limit": over,
        "answers alike or empty": alike,
        "prompt deleted meanwhile": answered - len(answers),
    }
    return SampleResult(
        policy=author,
        prompts=len(answers),
        comparisons=len(comparisons),
        left_out={reason: count for reason, count in left_out.items() if count},
        prompts_shortened=run.state.get("shortened"),
        prompts_known=run.state.get("known"),
        responses=len(drawn),
        finished=sum(a.finished for a in drawn) / max(1, len(drawn)),
    )


def _whom_to_ask(session: Session, inputs: SampleInputs) -> dict[str, Any]:
    """Return the prompts that nobody was asked about yet, and who answers them; with `--again`, about this policy."""
    author = session.workspace.current_policy()
    comparisons = not_by_model(session.store.comparisons())
    asked = {c.prompt for c in comparisons if not inputs.again or author in (c.left.author, c.right.author)}
    prompts = [prompt for prompt in answerable(session, PromptUse.TRAIN) if prompt not in asked]
    found = fitting(session, PromptUse.TRAIN, prompts)
    if not found.prompts:
        again = (
            f"; all were answered by {author}" if inputs.again else ", or ask known ones of a new policy with --again"
        )
        raise MannersError(
            f"there is no training prompt left to ask about; add some with `manners prompts import FILE`{again}"
        )
    chosen = found.prompts if inputs.limit is None else draw_prompts(found.prompts, inputs.limit, session.settings.seed)
    left = {"too long": found.too_long, "over the limit": len(found.prompts) - len(chosen)}
    left["shortened"] = len(found.shortened.intersection(chosen))
    return {"prompts": chosen, "author": author, **left}


def _whom_to_ask_in_a_round(session: Session, turn: int, limit: int | None) -> dict[str, Any]:
    """Return whom a round of the loop asks: what nobody was asked about; or what this policy was not; or all again.

    Of what was asked about before, what was least often. It is said, and counted.
    """
    author = session.workspace.current_policy()
    asked: dict[Dialogue, list[bool]] = {}
    for c in not_by_model(session.store.comparisons()):
        asked.setdefault(c.prompt, []).append(author in (c.left.author, c.right.author))
    found = fitting(session, PromptUse.TRAIN, answerable(session, PromptUse.TRAIN))
    fresh = [prompt for prompt in found.prompts if prompt not in asked]
    new_to_it = [prompt for prompt in found.prompts if not any(asked.get(prompt, ()))]
    fewest = min((len(asked.get(prompt, ())) for prompt in found.prompts), default=0)
    rarest = [prompt for prompt in found.prompts if len(asked.get(prompt, ())) == fewest]
    prompts = fresh or new_to_it or rarest
    if not prompts:
        raise MannersError("there is no training prompt to ask about; add some with `manners prompts import FILE`")
    chosen = prompts if limit is None else draw_prompts(prompts, limit, session.seed)
    if fresh:
        said = f"{len(chosen)} of {len(fresh)} prompts that nobody was asked about"
    elif new_to_it:
        said = f"{len(chosen)} known prompts again, of {author} now: no fresh one is left"
    else:
        said = f"{len(chosen)} known prompts once more, for other answers of {author}: no fresh one is left"
    print(f"round {turn} asks about {said}", file=sys.stderr)
    left = {"too long": found.too_long, "over the limit": len(prompts) - len(chosen)}
    left |= {"shortened": len(found.shortened.intersection(chosen)), "known": 0 if fresh else len(chosen)}
    return {"prompts": chosen, "author": author, **left}


def not_by_model(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """Leave out what a reward model chose: whose prompt it chose is still to be asked about as any other.

    Else those on which the model is most suspicious would be missing where it is measured.
    """
    return (c for c in comparisons if not c.by_model)


def judged_by_crowd(session: Session, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Put comparisons before the simulated annotators."""
    people = simulated.recruit(session.settings.crowd, session.settings.seed)
    each = session.settings.crowd.verdicts_per_comparison
    verdicts = simulated.ask(people, comparisons, each, session.seed)
    return [replace(c, verdicts=tuple(v)) for c, v in zip(comparisons, verdicts, strict=True)]


def answers_to(
    session: Session, run: Run, prompts: Sequence[Dialogue], author: str, count: int, seed: int, attempts: int
) -> tuple[list[list[Answer]], int]:
    """Draw so many answers to each prompt, and return the different ones, in the order of the prompts.

    A prompt that got fewer than two different ones is asked anew, up to so many `attempts` in all. Return also the
    number of prompts for which two could not be had.
    """
    policy = versions.load_policy(session.workspace, author, session.pretrained)
    settings = session.settings.sample

    def draw(part: tuple[list[int], int], advance: Callable[[int], None]) -> list[tuple[int, Answer]]:
        places, part_seed = part
        chosen = [prompts[i] for i in places]
        drawn = answer(policy, session.pretrained, chosen, count, settings, part_seed, author, on_step=advance)
        return [(places[i], given) for some in drawn for i, given in zip(some.places, some.answers, strict=True)]

    found: dict[int, list[Answer]] = {}
    missing = list(range(len(prompts)))
    for attempt in range(attempts):
        wanted, missing = missing, []
        drawn: dict[int, dict[str, Answer]] = {place: {} for place in wanted}
        with steps("answering" if attempt == 0 else "answering again", count * len(wanted)) as advance:
            what = f"attempt {attempt}"
            todo = parts(wanted, seed + attempt * 7919)
            advance(count * sum(len(places) for places, _ in todo[: run.done(what)]))
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
