"""Any two phases of a model side by side: what each writes, how each reads, what was lost, and which is liked better.

They may have other trunks, templates and tokenizers: each is read as a whole model (`models.whole`), and lengths and
variety are counted in the tokens of one of them. Whoever judges policies judges here; nothing is promoted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manners.checkpoint import PROMPTS, Run
from manners.data import questions
from manners.errors import MannersError
from manners.evaluate import ask, forgetting
from manners.evaluate.compare import openings
from manners.evaluate.forgetting import Reading
from manners.evaluate.judged import Answered, Compared, Rates, rated
from manners.evaluate.reading import read
from manners.facts import Facts, to_facts
from manners.feedback.judges import Judge
from manners.feedback.statistics import bootstrapped, cluster_bootstrap, resampled
from manners.loop.asking import answers
from manners.loop.evaluate import judge_of, last_source
from manners.loop.plan import Part, Plan, free_on
from manners.loop.prompts import as_begun, draw_prompts, own_seed, parts, prose, refuse_alike, until
from manners.loop.session import LAID_OUT, Session, digest
from manners.loop.stage import Inputs
from manners.models import versions, whole
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.cost import drawing_bytes, head_bytes, layer_bytes
from manners.models.pretrained import Pretrained
from manners.progress import steps
from manners.results.evaluation import Forgetting
from manners.results.phases import PhasesExample, PhasesResult
from manners.templates import Refused
from manners.text import TooLong
from manners.types import Answer, Dialogue, FinishReason, Interval, PromptUse, opening
from manners.workspace import INITIAL

if TYPE_CHECKING:
    from manners.loop.options import EvaluateOptions

EXAMPLES = 12
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PhasesInputs(Inputs):
    """Two phases, and what both can answer and read."""

    version: str
    against: str
    models: Mapping[str, Pretrained]
    """By name, the earlier one first."""
    fitting: list[Dialogue]
    """All prompts for evaluation that both can answer."""
    prompts: list[Dialogue]
    """Of these, those that a run compares them on."""
    skipped: int
    """Prompts for evaluation that one of the two has no room for, or does not lay out."""
    paragraphs: list[str]

    @property
    def command(self) -> str:
        """What compares them."""
        return f"manners evaluate {self.version} --against {self.against}"


def inputs(session: Session, options: EvaluateOptions, begun: Mapping[str, Any]) -> PhasesInputs:
    """Load both, and find what fits both; a run that goes on has the prompts that it was begun with.

    Raises MannersError for a version that is not there or writes nothing, for one phase under two names, and where too
    few prompts fit both.
    """
    version, against = options.version or INITIAL, options.against or INITIAL
    if version == against:
        raise MannersError(f"{version} is both of the phases that are compared: name another one with --against")
    start = session.settings.model.name
    if {version, against} == {INITIAL, start}:
        raise MannersError(
            f"{start} is the initial model of this workspace (model.name), so that both of the phases are it; name the"
            " version that it grew on with --against, or say --set model.name=... as it was before"
        )
    for name in (version, against):
        if name not in (INITIAL, start):
            versions.describe(session.workspace, name)
    models = {name: _loaded(session, name) for name in (against, version)}
    upto = as_begun(session, begun)
    stored = [one.dialogue for one in session.store.prompts(PromptUse.EVALUATE, upto=upto)]
    fitting = [prompt for prompt in stored if all(_fits(session, model, prompt) for model in models.values())]
    prompts = draw_prompts(fitting, session.settings.evaluate.prompts, session.settings.seed)
    if (there := len({opening(prompt) for prompt in fitting})) < 2:
        raise MannersError(
            "comparing two phases takes prompts for evaluation with at least 2 openings that both can answer, and there"
            f" are {there} among {len(stored)} prompts; add some with `manners prompts import FILE --use evaluate`"
        )
    if options.ask is None:  # people are asked about any
        refuse_alike(prompts, session.settings.evaluate)
    text = prose(session)
    unseen = text.by_use[PromptUse.EVALUATE]
    paragraphs = [one for one in unseen if all(_reads_whole(model, one) for model in models.values())]
    hashes = {
        f"the model of {name}": f"{model.trunk.hash}, laid out by {model.renderer.template_hash}"
        for name, model in models.items()
    }
    named = {"the phase": version, "the other phase": against}
    return PhasesInputs(
        decides={**named, **hashes, PROMPTS: digest(prompts), **until(upto), **text.decides},
        version=version,
        against=against,
        models=models,
        fitting=fitting,
        prompts=prompts,
        skipped=len(stored) - len(fitting),
        paragraphs=paragraphs,
    )


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


def plan(session: Session, inputs: PhasesInputs) -> Plan:
    """Memory of holding both models, and of answering and reading with one after the other."""
    settings = session.settings
    distinct = min(-(-settings.sample.batch // settings.evaluate.samples), len(inputs.prompts))
    work = {
        "prompts": len(inputs.prompts),
        "prompts_skipped": inputs.skipped,
        "answers": 2 * len(inputs.prompts) * settings.evaluate.samples,
        "paragraphs": len(inputs.paragraphs),
    }
    biggest = max((_memory(session, inputs, model, distinct) for model in inputs.models.values()), key=lambda p: p.size)
    both = {id(model.trunk.whole): model for model in inputs.models.values()}
    size = sum(model.parameters * model.trunk.whole.dtype.itemsize for model in both.values())
    device = next(iter(inputs.models.values())).trunk.device
    return Plan("evaluate", work, size, (biggest,), free_on(device))


def _memory(session: Session, inputs: PhasesInputs, model: Pretrained, distinct: int) -> Part:
    """Return what a model takes while it answers, or while it reads, whichever is more."""
    sample, trunk = session.settings.sample, model.trunk
    room = sample.max_new_tokens
    longest = max(len(model.renderer.prompt_ids(prompt, room)[0]) for prompt in inputs.prompts)
    rows = distinct * session.settings.evaluate.samples
    drawing = Part("drawing_responses", drawing_bytes(trunk, rows, distinct, longest, room), "sample.batch")
    tokens = max(trunk.compute.bucket_tokens, model.renderer.context)
    reading = Part("reading_text", layer_bytes(trunk, tokens) + head_bytes(trunk), "model.context")
    return max(drawing, reading, key=lambda part: part.size)


@dataclass(frozen=True)
class _Phase:
    """What one of the two came to."""

    answers: list[list[Answer]]
    """By prompt."""
    reading: Reading
    bytes: Floats
    """Of each paragraph, those that are predicted."""

    @property
    def nats(self) -> Floats:
        """Of each paragraph."""
        return np.array(self.reading.nll)


def run(session: Session, run: Run, inputs: PhasesInputs) -> PhasesResult:
    """Have both answer and read, measure the two beside each other, and ask whoever judges in this project."""
    settings = session.settings
    # 1. One after the other: answers, and nats for each paragraph and question.
    before, after = (_phase(session, run, name, model, inputs) for name, model in inputs.models.items())
    run.save()
    # 2. Which is better, and what was lost; lengths and variety in the tokens of the earlier one.
    said = [_counted_by(inputs.models[inputs.against], phase.answers) for phase in (before, after)]
    judge, rates = _rated(session, inputs, said)
    bits = _bits(before, after, settings.evaluate.bootstrap, settings.seed)
    result = PhasesResult(
        version=inputs.version,
        against=inputs.against,
        prompts=len(inputs.prompts),
        prompts_skipped=inputs.skipped,
        samples=settings.evaluate.samples,
        source="none" if rates.win_rate is None else judge.source,
        raters=rates.raters,
        win_rate=rates.win_rate,
        noisy=rates.noisy,
        outcome=str(rates.outcome) if rates.outcome else None,
        matched=rates.matched,
        regressed=rates.regressed,
        **_texts(before, after, settings.evaluate.bootstrap, settings.seed),
        **bits,
        paragraphs=len(inputs.paragraphs),
        forgetting=_lost(before, after, said) if bits else None,
        verdict=f"{rates.sentence}{_bits_words(bits)}",
        examples=_examples(before, after),
    )
    # 3. Kept by the names of the two as well: the next comparison has others.
    session.save_facts(f"phases-{inputs.version}-{inputs.against}", to_facts(result))
    return result


def answers_of(session: Session, version: str, prompts: Sequence[Dialogue]) -> list[list[Answer]]:
    """Return what a phase answers to each prompt, `evaluate.samples` times, as a whole model of its own.

    Raises MannersError for a version that is not there or writes nothing, TooLong for a prompt that leaves no room.
    """
    return _answers(session, None, version, _loaded(session, version), prompts)


def _answers(
    session: Session, run: Run | None, name: str, model: Pretrained, prompts: Sequence[Dialogue]
) -> list[list[Answer]]:
    """Draw what a model answers, a part at a time; those that a run holds already are not drawn again."""
    settings = session.settings
    branch = Branch(model.trunk, trainable=False)
    count, what = settings.evaluate.samples, f"answers of {name}"
    found: list[list[Answer]] = [[] for _ in prompts]
    todo = parts(range(len(prompts)), own_seed(settings.seed, name))
    with steps(what, len(prompts) * count) as advance:

        def work(part: tuple[list[int], int]) -> list[tuple[int, Answer]]:
            places, seed = part
            chosen = [prompts[place] for place in places]
            drawn = answer(branch, model, chosen, count, settings.sample, seed, name, False, advance)
            return [(places[i], a) for some in drawn for i, a in zip(some.places, some.answers, strict=True)]

        advance(count * sum(len(places) for places, _ in todo[: run.done(what) if run else 0]))
        for rows in run.each(what, todo, work) if run else map(work, todo):
            for place, given in rows:
                found[place].append(given)
    return found


def _phase(session: Session, run: Run, name: str, model: Pretrained, inputs: PhasesInputs) -> _Phase:
    model = _laid_out(model, run, name)
    found = _answers(session, run, name, model, inputs.prompts)
    [reading] = read([Branch(model.trunk, trainable=False)], model, inputs.paragraphs, questions())
    return _Phase(found, reading, np.array([_read_bytes(model, text) for text in inputs.paragraphs], float))


def _laid_out(model: Pretrained, run: Run, name: str) -> Pretrained:
    """Have a model decode with weights laid out for it, or without, as when the run was begun (`Session.lay_out`)."""
    return model.laid_out(run.state.setdefault(f"{LAID_OUT} of {name}", model.trunk.compute.lays_out))


def _read_bytes(model: Pretrained, text: str) -> int:
    """Return the bytes of a text that are predicted: all, or all but the first token's where no BOS comes before."""
    given = "" if model.renderer.bos else model.renderer.token_text(model.renderer.text_ids(text)[0])
    return len(text.encode()) - len(given.encode())


def _counted_by(model: Pretrained, said: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """Return answers in the tokens of a model, whichever drew them; one that ended has a token for its end.

    A text is tokenised as it reads, which may be in other tokens than were drawn: of both sides alike.
    """
    tokenizer, end = model.tokenizer, (model.renderer.end_id,)

    def counted(one: Answer) -> Answer:
        ids = tuple(tokenizer.encode(one.response.text, add_special_tokens=False))
        return replace(one, response_ids=ids + end * (one.response.finish_reason is FinishReason.STOP))

    return [[counted(one) for one in some] for some in said]


def _rated(session: Session, inputs: PhasesInputs, said: Sequence[list[list[Answer]]]) -> tuple[Judge, Rates]:
    """Return what whoever gave this project's verdicts says of the two."""
    kinds = {v.annotator.kind for c in session.store.comparisons() for v in c.verdicts}
    source = next(iter(kinds)) if len(kinds) == 1 else last_source(session)
    judge = judge_of(session, inputs.version, source)
    unscored = [[math.nan] * session.settings.evaluate.samples for _ in inputs.prompts]
    old, new = (
        Answered(name, some, unscored, math.nan)
        for name, some in zip((inputs.against, inputs.version), said, strict=True)
    )
    compared = Compared(old, old, new, method=None, named=inputs.version, command=inputs.command)
    return judge, rated(judge, compared, session.settings.evaluate)


def _lost(before: _Phase, after: _Phase, said: Sequence[list[list[Answer]]]) -> Forgetting:
    """Return what was lost on the way from one to the other; perplexity by the tokens of the earlier one.

    Where only one of the two has a BOS, the other does not predict a paragraph's first token: its nats are taken for as
    many bytes as the earlier one predicts.
    """
    same_bytes = after.nats * before.bytes / after.bytes
    became = replace(after.reading, nll=same_bytes.tolist(), tokens=before.reading.tokens)
    was, became = _questions_of_both(before.reading, became)
    return forgetting.forgetting(was, became, questions(), *said)


def _questions_of_both(before: Reading, after: Reading) -> tuple[Reading, Reading]:
    """Leave out the questions that do not fit into the context of either."""
    both = [a is not None and b is not None for a, b in zip(before.answers, after.answers, strict=True)]

    def kept(one: Reading) -> Reading:
        return replace(one, answers=[a if fits else None for a, fits in zip(one.answers, both, strict=True)])

    return kept(before), kept(after)


def _texts(before: _Phase, after: _Phase, resamples: int, seed: int) -> dict[str, Any]:
    """Return length in characters and share finished of both, and the changes, by the names of the result."""
    facts: dict[str, Any] = {}
    groups = openings(after.answers)
    for name, of in (("length", lambda one: len(one.response.text)), ("finished", lambda one: one.finished)):
        old, new = ([float(np.mean([of(one) for one in some])) for some in phase.answers] for phase in (before, after))
        change = cluster_bootstrap([b - a for a, b in zip(old, new, strict=True)], groups, resamples, seed)
        facts |= {f"{name}_before": float(np.mean(old)), f"{name}_after": float(np.mean(new)), f"{name}_change": change}
    return facts


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


def _bits_words(bits: Mapping[str, Any]) -> str:
    """Say how well both read plain text, where that was measured."""
    change: Interval | None = bits.get("bits_per_byte_change")
    if change is None:
        return ""
    sure = "" if change.excludes(0.0) else ", which cannot be told from none"
    return (
        f" Bits per byte on plain text change by {change.estimate:+.3f} (95 % interval {change.low:+.3f} to"
        f" {change.high:+.3f}){sure}."
    )


def _examples(before: _Phase, after: _Phase) -> tuple[PhasesExample, ...]:
    step = max(1, len(before.answers) // EXAMPLES)
    pairs = list(zip(before.answers, after.answers, strict=True))[::step][:EXAMPLES]
    return tuple(
        PhasesExample(prompt=old[0].prompt[-1].text, before=old[0].response.text, after=new[0].response.text)
        for old, new in pairs
    )


def open_for_people(session: Session, options: EvaluateOptions, count: int) -> Facts:
    """Open blind comparisons of two phases, and say what they can show; raises MannersError where that is nothing."""
    planned = ask.plan(count)
    found, known = inputs(session, options, {}), session.store.comparisons()
    spent = ask.spent(known)
    prompts = [prompt for prompt in found.fitting if prompt not in spent]
    before, after = (
        answers(session, Branch(model.trunk, trainable=False), model, name, prompts)
        for name, model in found.models.items()
    )
    opened = ask.open_comparisons(before, after, known, count, session.settings.seed)
    session.store.merge_comparisons(opened)  # on prompts that nobody was asked about: all are new
    named = {"opened": len(opened), "version": found.version, "against": found.against}
    return named | asdict(planned)
