"""Any two phases of a model side by side: what each writes, how each reads plain text, and which the crowd likes.

They may have other trunks, templates and tokenizers: each is read as a whole model (`models.whole`), one after the
other, and nothing is measured in tokens. Nothing is promoted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manners.errors import MannersError
from manners.evaluate import compare
from manners.facts import Facts, from_facts, to_facts
from manners.feedback.crowd import recruit
from manners.feedback.judges import TasteJudge
from manners.feedback.statistics import Decision, bootstrapped, cluster_bootstrap, resampled
from manners.loop.prompts import draw_prompts, prose
from manners.loop.session import Session
from manners.models import versions, whole
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.perplexity import paragraph_nll
from manners.models.pretrained import Pretrained
from manners.progress import steps
from manners.results import RewardResult
from manners.results.phases import PhasesExample, PhasesResult
from manners.templates import Refused
from manners.text import TooLong
from manners.types import AnnotatorKind, Answer, Dialogue, Interval, PromptUse, Response
from manners.workspace import INITIAL

EXAMPLES = 12
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Phase:
    """What one of the two came to."""

    answers: list[list[Answer]]
    """By prompt."""
    nats: Floats
    """Of each paragraph."""
    bytes: Floats


def side_by_side(session: Session, version: str, against: str) -> Facts:
    """Answer the evaluation prompts with both, and let both read plain text.

    Raises MannersError for a version that is not there or writes nothing, and where too few prompts fit both.
    """
    if version == against:
        raise MannersError(f"{version} is both of the phases that are compared: name another one with --against")
    for name in (version, against):
        if name not in (INITIAL, session.settings.model.name):
            versions.describe(session.workspace, name)
    pairs = [(name, _loaded(session, name)) for name in (against, version)]
    # 1. Prompts and paragraphs that fit both.
    stored = [one.dialogue for one in session.store.prompts(PromptUse.EVALUATE)]
    fitting = [prompt for prompt in stored if all(_fits(session, model, prompt) for _, model in pairs)]
    prompts = draw_prompts(fitting, session.settings.evaluate.prompts, session.settings.seed)
    if len(prompts) < 2:
        raise MannersError(
            f"comparing two phases takes at least 2 prompts for evaluation that both can answer, and {len(prompts)} of"
            f" {len(stored)} are that; add some with `manners prompts import FILE --use evaluate`"
        )
    unseen = prose(session).by_use[PromptUse.EVALUATE]
    paragraphs = [text for text in unseen if all(_reads_whole(model, text) for _, model in pairs)]
    # 2. One after the other: answers, and nats for each paragraph.
    before, after = (_phase(session, name, model, prompts, paragraphs) for name, model in pairs)
    # 3. Measures, and what the crowd's taste makes of the answers where it is known.
    result = _result(session, version, against, before, after, len(stored) - len(fitting))
    session.save_facts(f"phases-{version}-{against}", to_facts(result))
    return to_facts(result)


def _loaded(session: Session, name: str) -> Pretrained:
    """Return the initial model as it is, or a version as a whole model."""
    if name in (INITIAL, session.settings.model.name):
        return session.pretrained
    return whole.as_initial(session.workspace, name, session.settings.model)


def _fits(session: Session, model: Pretrained, prompt: Dialogue) -> bool:
    try:
        _, dropped = model.renderer.prompt_ids(prompt, session.settings.sample.max_new_tokens)
    except (TooLong, Refused):
        return False
    return not dropped and not model.renderer.template.objection(prompt)


def _reads_whole(model: Pretrained, text: str) -> bool:
    return 1 < len(model.renderer.bos) + len(model.renderer.text_ids(text)) <= model.renderer.context


def answers_of(session: Session, version: str, prompts: Sequence[Dialogue]) -> list[list[Answer]]:
    """Return what a phase answers to each prompt, `evaluate.samples` times, as a whole model of its own.

    Raises MannersError for a version that is not there or writes nothing, TooLong for a prompt that leaves no room.
    """
    return _answers(session, version, _loaded(session, version), prompts)


def _answers(session: Session, name: str, model: Pretrained, prompts: Sequence[Dialogue]) -> list[list[Answer]]:
    settings = session.settings
    branch = Branch(model.trunk, trainable=False)
    count = settings.evaluate.samples
    found: list[list[Answer]] = [[] for _ in prompts]
    with steps(f"answers of {name}", len(prompts) * count) as advance:
        for some in answer(branch, model, prompts, count, settings.sample, settings.seed + 17, name, False, advance):
            for place, given in zip(some.places, some.answers, strict=True):
                found[place].append(given)
    return found


def _phase(
    session: Session, name: str, model: Pretrained, prompts: Sequence[Dialogue], paragraphs: Sequence[str]
) -> _Phase:
    found = _answers(session, name, model, prompts)
    [nats], _ = paragraph_nll([Branch(model.trunk, trainable=False)], model, paragraphs)
    return _Phase(found, np.array(nats), np.array([_read_bytes(model, text) for text in paragraphs], float))


def _read_bytes(model: Pretrained, text: str) -> int:
    """Return the bytes of a text that are predicted: all, or all but the first token's where no BOS comes before."""
    given = "" if model.renderer.bos else model.renderer.token_text(model.renderer.text_ids(text)[0])
    return len(text.encode()) - len(given.encode())


def _result(session: Session, version: str, against: str, before: _Phase, after: _Phase, skipped: int) -> PhasesResult:
    settings = session.settings
    resamples, seed = settings.evaluate.bootstrap, settings.seed
    old, new = (_texts(phase) for phase in (before, after))
    length, finished = (
        cluster_bootstrap([b - a for a, b in zip(x, y, strict=True)], range(len(x)), resamples, seed)
        for x, y in zip(old, new, strict=True)
    )
    rate = _win_rate(session, before, after)
    bits = _bits(before, after, resamples, seed)
    return PhasesResult(
        version=version,
        against=against,
        prompts=len(before.answers),
        prompts_skipped=skipped,
        samples=settings.evaluate.samples,
        source="none" if rate is None else str(AnnotatorKind.SIMULATED),
        win_rate=rate,
        length_before=float(np.mean(old[0])),
        length_after=float(np.mean(new[0])),
        length_change=length,
        finished_before=float(np.mean(old[1])),
        finished_after=float(np.mean(new[1])),
        finished_change=finished,
        **bits,
        paragraphs=len(before.nats),
        verdict=_sentence(version, against, rate, bits.get("bits_per_byte_change")),
        examples=_examples(before, after),
    )


def _texts(phase: _Phase) -> tuple[list[float], list[float]]:
    """Return mean length in characters and share finished, by prompt."""
    lengths = [float(np.mean([len(a.response.text) for a in some])) for some in phase.answers]
    return lengths, [float(np.mean([a.finished for a in some])) for some in phase.answers]


def _bits(before: _Phase, after: _Phase, resamples: int, seed: int) -> dict[str, Any]:
    """Return bits per byte of both, and the change with its interval over paragraphs, by the names of the result.

    Nothing where there are not two paragraphs.
    """
    if len(before.nats) < 2:
        return {}
    sums = np.stack([before.nats, before.bytes, after.nats, after.bytes], axis=1)

    def ratios(of: Floats) -> tuple[Floats, Floats]:
        return of[..., 0] / of[..., 1] / math.log(2), of[..., 2] / of[..., 3] / math.log(2)

    old, new = (float(x) for x in ratios(sums.sum(axis=0)))
    drawn = ratios(resampled(sums, resamples, seed))
    change = bootstrapped(new - old, drawn[1] - drawn[0], len(sums))
    return {"bits_per_byte_before": old, "bits_per_byte_after": new, "bits_per_byte_change": change}


def _win_rate(session: Session, before: _Phase, after: _Phase) -> Interval | None:
    """Return how often the crowd's taste prefers the second; None where the project's verdicts are not the crowd's."""
    facts = session.read_facts("reward")
    source = facts and from_facts(RewardResult, facts, "runs/reward.json").source
    kinds = {v.annotator.kind for c in session.store.comparisons() for v in c.verdicts}
    if source != AnnotatorKind.SIMULATED and kinds != {AnnotatorKind.SIMULATED}:
        return None
    judge = TasteJudge(recruit(session.settings.crowd, session.settings.seed))

    def preference(prompt: Dialogue, a: Response, b: Response) -> float:
        return judge.prefers(prompt, a, b)

    return compare.win_rate(before.answers, after.answers, preference)


def _sentence(version: str, against: str, rate: Interval | None, change: Interval | None) -> str:
    if rate is None:
        judged = "Nobody judged: the taste of whoever gives verdicts in this project is not known."
    else:
        word = {
            Decision.BETTER: "is better than",
            Decision.WORSE: "is worse than",
            Decision.CANNOT_TELL: "cannot be told apart from",
        }[Decision.of(rate)]
        judged = f"By the simulated crowd's taste {version} {word} {against}: it wins {compare.percent(rate)}."
    if change is None:
        return judged
    sure = "" if change.excludes(0.0) else ", which cannot be told from none"
    return (
        f"{judged} Bits per byte on plain text change by {change.estimate:+.3f} (95 % interval {change.low:+.3f} to"
        f" {change.high:+.3f}){sure}."
    )


def _examples(before: _Phase, after: _Phase) -> tuple[PhasesExample, ...]:
    step = max(1, len(before.answers) // EXAMPLES)
    pairs = list(zip(before.answers, after.answers, strict=True))[::step][:EXAMPLES]
    return tuple(
        PhasesExample(prompt=old[0].prompt[-1].text, before=old[0].response.text, after=new[0].response.text)
        for old, new in pairs
    )
