"""The audit of a policy's behaviour: the starter pack asked of two versions, and what changed held against the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from manners.audit import cases, gate, policy, stereotypes
from manners.audit.amplification import amplification
from manners.audit.figures import Figure
from manners.audit.policy import LANGUAGES, Behaved, Told
from manners.audit.rules import POLICY, held, rules, together
from manners.audit.sets import Sets
from manners.audit.stereotypes import OnSets
from manners.checkpoint import Run
from manners.data import Behaviour, Question, behaviour
from manners.errors import MannersError
from manners.loop.audit import failed_before, trained_on
from manners.loop.evaluate import rival
from manners.loop.pack import (
    AUTHOR,
    as_asked,
    counts,
    drawn,
    drawn_sets,
    fitting,
    fitting_sets,
    of_positions,
    of_truth,
    replays,
    room,
    set_counts,
    sets_of,
)
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import parts
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs
from manners.models import versions
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.cost import drawing_bytes, head_bytes, layer_bytes, own_bytes
from manners.models.perplexity import answer_logprobs, response_logprobs
from manners.progress import steps
from manners.results.audit import FAIL, PASS, BehaviourResult, Check, Gate
from manners.reward import stored
from manners.reward.ensemble import score_rendered
from manners.reward.labelled import LabelledPair
from manners.settings import SampleSettings
from manners.store.cases import Case
from manners.store.cases import write as write_cases
from manners.types import Dialogue, Response, VersionKind
from manners.workspace import INITIAL

if TYPE_CHECKING:
    from manners.loop.options import AuditOptions

OF, BESIDE = "the policy", "the version compared with"
"""What says in a run's checkpoints what it is about."""
AT_ONCE = 32
"""Texts that are read between two occasions for a checkpoint."""
Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class BehaviourInputs(Inputs):
    """Two versions, and what they are asked."""

    version: str
    against: str
    reward: str | None
    asked: Behaviour
    sets: Sets
    """Published sets, or what is drawn of them."""
    there: Mapping[str, int]
    """How much there is of everything, before anything was drawn."""
    left_out: Mapping[str, int]
    reported: tuple[Case, ...]
    """Answers that were reported and kept away, whose prompts are asked again."""
    taught_by: str | None
    """The version whose training comparisons are looked at."""
    learned: tuple[LabelledPair, ...]


def inputs(session: Session, options: AuditOptions, begun: Mapping[str, Any]) -> BehaviourInputs:
    """Take the policy, the newest if none is named, and the part of the pack that it is asked.

    A run that goes on is about what it was begun with.
    """
    workspace = session.workspace
    version = options.version or begun.get(OF) or versions.latest(workspace, VersionKind.POLICY)
    versions.fitting(workspace, version, VersionKind.POLICY, session.pretrained)
    against = rival(session, version, options.against or begun.get(BESIDE) or INITIAL)
    reward = versions.reward_of(workspace, version)
    whole, found = behaviour(), sets_of(session)
    fit_pack, sets = fitting(session, whole), fitting_sets(session, found)
    most, seed = session.settings.audit.cases, session.settings.seed
    asked, few = drawn(fit_pack, most, seed), drawn_sets(sets, most, seed)
    reported = write_cases(workspace.root, session.store)
    # All of them that fit, so that no drawing decides whether one is given again.
    again = tuple(case for case in reported if room(session, case))
    there = {**counts(whole), **set_counts(found), **({"cases": len(reported)} if reported else {})}
    fit = {**counts(fit_pack), **set_counts(sets), "cases": len(again)}
    if not any(counts(asked).values()):
        raise MannersError(f"nothing of what an audit asks fits into model.context = {session.settings.model.context}")
    taught_by = versions.describe(workspace, version).reward or version
    learned, _ = trained_on(session, taught_by)
    what = digest((asked, few, again) if again else (asked, few))
    return BehaviourInputs(
        decides={OF: version, BESIDE: against, "the reward model": reward, "what is asked": what},
        version=version,
        against=against,
        reward=reward,
        asked=asked,
        sets=few,
        there=there,
        left_out={kind: n - fit[kind] for kind, n in there.items() if n > fit[kind]} | dict(found.skipped or {}),
        reported=again,
        taught_by=taught_by if learned else None,
        learned=tuple(learned),
    )


def plan(session: Session, inputs: BehaviourInputs) -> Plan:
    """Memory of holding both versions, and of answering or reading; how much is answered and read."""
    trunk, settings = session.pretrained.trunk, session.settings
    renderer, new = session.pretrained.renderer, settings.audit.tokens
    prompts = _open(inputs)
    told = [as_asked(one.prompt) for one in inputs.sets.instructed]

    def drawing(some: Sequence[Dialogue], tokens: int) -> int:
        longest = max((len(renderer.prompt_ids(prompt, tokens)[0]) for prompt in some), default=1)
        rows = min(settings.sample.batch, len(some))
        return drawing_bytes(trunk, rows, rows, longest, tokens) if some else 0

    most = max(
        drawing(prompts, new),
        drawing(told, settings.sample.max_new_tokens),
        *(drawing([inputs.reported[i].prompt for i in some], n) for n, some in replays(session, inputs.reported)),
    )
    reading = layer_bytes(trunk, max(trunk.compute.bucket_tokens, renderer.context)) + head_bytes(trunk)
    needed = [
        Part("policy", 2 * own_bytes(trunk, head=True), "model.trainable_layers"),
        max(
            Part("drawing_responses", most, "sample.batch"),
            Part("reading_text", reading, "model.context"),
            key=lambda part: part.size,
        ),
    ]
    if inputs.reward:
        needed.append(Part("reward_members", settings.reward.branches * own_bytes(trunk, head=False), "reward.members"))
    work = {
        "answers": 2 * (len(prompts) + len(told)) + len(inputs.reported),
        **counts(inputs.asked),
        **set_counts(inputs.sets),
    }
    return make_plan(session, "audit policy", work, needed)


def _open(inputs: BehaviourInputs) -> list[Dialogue]:
    """Return every prompt that is answered freely, in order."""
    asked, sets = inputs.asked, inputs.sets
    about = [text for swap in asked.swaps for text in swap.prompts()]
    return [as_asked(text) for text in (*asked.benign, *asked.unsafe, *about, *sets.safe, *sets.unsafe)]


def run(session: Session, run: Run, inputs: BehaviourInputs) -> BehaviourResult:
    """Ask both versions the same, with the same random numbers, and hold each change against the gate's rules."""
    # 1. What both answer, and what both hold for likely.
    branches = [
        versions.load_policy(session.workspace, v, session.pretrained) for v in (inputs.against, inputs.version)
    ]
    (before, sets_before), (after, sets_after) = _behaved(session, run, branches, inputs)
    # 2. Figures, and what is asked of them; what fails does so among so many.
    told = policy.figures(inputs.asked, before, after)
    told += stereotypes.figures(inputs.sets, sets_before, sets_after, session.settings.seed)
    told += [Told(figure) for figure in _replayed(session, run, branches[1], inputs)]
    checks = checked(session, told)
    kept = checks
    if inputs.against == INITIAL:  # beside another version it says what has changed since, and nothing to the gate
        kept = gate.keep(session.workspace, inputs.version, POLICY, checks, inputs.against)
    decided = gate.decide(kept)
    # 3. What changed in the answers, beside what people chose.
    moved = amplification(_all(before), _all(after), inputs.learned, session.settings.seed)
    return BehaviourResult(
        version=inputs.version,
        against=inputs.against,
        checks=checks,
        gate=decided,
        sentence=_sentence(inputs, checks, decided),
        languages=LANGUAGES,
        asked={**counts(inputs.asked), **set_counts(inputs.sets)}
        | ({"cases": len(inputs.reported)} if inputs.reported else {}),
        there=inputs.there,
        left_out=inputs.left_out,
        reward=inputs.reward,
        amplification=moved,
        source=inputs.taught_by,
        examples=tuple(case for one in told for case in one.worst),
    )


def checked(session: Session, told: Sequence[Told]) -> tuple[Check, ...]:
    """Hold figures against the rules, and correct what fails for their number."""
    asked = rules(session.workspace.root)
    figures = [one.figure for one in told]
    alone = [held(f.name, asked.of(POLICY, f.name), f.value, f.n, f.sentence) for f in figures]
    return together(alone, [asked.of(POLICY, f.name) for f in figures])


def _sentence(inputs: BehaviourInputs, checks: Sequence[Check], decided: Gate) -> str:
    """Say what it comes to."""
    measured = sum(check.value is not None for check in checks)
    start = f"Of {len(checks)} checks of how {inputs.version} behaves beside {inputs.against}, {measured} could be"
    failed = [check.name for check in checks if check.verdict == FAIL]
    if failed:
        said = f"{start} measured; it got worse by {len(failed)}: {', '.join(failed)}."
    else:
        shown = sum(check.verdict == PASS for check in checks)
        said = f"{start} measured; it is shown not to have got worse by {shown}, and not shown to have by any."
    return said + failed_before(checks, decided)


def _all(behaved: Behaved) -> list[str]:
    return [*behaved.benign, *behaved.unsafe, *(text for two in behaved.swaps for text in two)]


def _behaved(
    session: Session, run: Run, branches: Sequence[Branch], inputs: BehaviourInputs
) -> list[tuple[Behaved, OnSets]]:
    """Return what each version does: answers drawn alike, and likelihoods from one pass of the trunk."""
    asked, sets = inputs.asked, inputs.sets
    names = (inputs.against, inputs.version)
    short, long = session.settings.audit.tokens, session.settings.sample.max_new_tokens
    both = list(zip(branches, names, strict=True))
    said = [_answers(session, run, b, name, f"answers of {name}", _open(inputs), short) for b, name in both]
    told = [as_asked(one.prompt) for one in sets.instructed]
    kept = [_answers(session, run, b, name, f"instructions, {name}", told, long) for b, name in both]
    scores = [_scores(session, run, inputs, name, some) for name, some in zip(names, said, strict=True)]

    def of_chat(exchanges: Sequence[tuple[Dialogue, Response]]) -> list[list[float]]:
        return response_logprobs(branches, session.pretrained, exchanges)

    def of_text(questions: Sequence[Question]) -> list[list[list[float] | None]]:
        return answer_logprobs(branches, session.pretrained, [(q.context, q.answers) for q in questions])

    truths = _read(run, "truths", asked.truths, lambda one: of_chat(of_truth(one)))
    contested = _read(run, "contested questions", asked.contested, lambda one: of_chat(of_positions(one)))
    swaps = _read(run, "sentences about groups", asked.swaps, lambda one: of_text(one.sentences()))
    pronouns = _read(run, "sentences of WinoBias", sets.pronouns, lambda one: of_text([one]))
    published = _read(run, "questions of TruthfulQA", sets.truths, lambda one: of_chat(of_truth(one)))
    bias = _read(run, "questions of BBQ", sets.bias, lambda one: of_chat(of_truth(one.question)))
    found = []
    for k in range(len(branches)):
        rest = iter(said[k])
        benign, unsafe, about, safe, contrasts = (
            list(islice(rest, n))
            for n in (len(asked.benign), len(asked.unsafe), 2 * len(asked.swaps), len(sets.safe), len(sets.unsafe))
        )
        behaved = Behaved(
            benign=benign,
            unsafe=unsafe,
            swaps=_pairs(about),
            scores=_pairs(scores[k]),
            truths=[one[k] for one in truths],
            contested=[[one[k][i : i + 2] for i in range(0, len(one[k]), 2)] for one in contested],
            sentences=[_two(one[k]) for one in swaps],
        )
        chosen = [scores for one in pronouns for scores in one[k] if scores is not None]
        likely = [one[k] for one in bias], [one[k] for one in published]
        on_sets = OnSets(safe, contrasts, chosen, *likely, kept[k])
        found.append((behaved, on_sets))
    return found


def _replayed(session: Session, run: Run, policy: Branch, inputs: BehaviourInputs) -> list[Figure]:
    """Ask the policy what reported answers were given to, without chance, and have its reward model score both."""
    prompts = [case.prompt for case in inputs.reported]
    said = _asked_again(session, run, policy, inputs.version, inputs.reported)
    was = _scored(
        session, run, inputs.reward, "scores of reported answers", prompts, [c.answer for c in inputs.reported]
    )
    now = _scored(session, run, inputs.reward, "scores of answers given now", prompts, [s.text for s in said])
    return cases.figures(inputs.reported, said, was, now)


def _asked_again(session: Session, run: Run, policy: Branch, name: str, reported: Sequence[Case]) -> list[Response]:
    """Have a policy answer the prompts of reported answers by the likeliest token each time, a part at a time."""
    found = dict[int, Response]()
    with steps("reported", len(reported)) as advance:

        def work(part: tuple[int, list[int]]) -> list[tuple[int, Response]]:
            tokens, places = part
            settings = replace(session.settings.sample, max_new_tokens=tokens)
            chosen = [reported[i].prompt for i in places]
            some = answer(policy, session.pretrained, chosen, 1, settings, 0, name, False, advance, greedy=True)
            return [(places[i], a.response) for s in some for i, a in zip(s.places, s.answers, strict=True)]

        todo = replays(session, reported)
        advance(sum(len(places) for _, places in todo[: run.done("reported")]))
        for rows in run.each("reported", todo, work):
            found |= dict(rows)
    return [found[place] for place in range(len(reported))]


def _pairs(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _two(found: Sequence[list[float] | None]) -> tuple[list[float], list[float]]:
    first, second = (one for one in found if one is not None)  # they fit: `inputs` has seen to it
    return first, second


def _read(run: Run, what: str, items: Sequence[Item], work: Callable[[Item], Read]) -> list[Read]:
    """Read items one after the other, with progress; what a checkpoint holds is not read again."""
    with steps(what, len(items)) as advance:

        def some(start: int) -> list[Read]:
            found = list[Read]()
            for item in items[start : start + AT_ONCE]:
                found.append(work(item))
                advance(1)
            return found

        advance(min(len(items), AT_ONCE * run.done(what)))
        return [one for part in run.each(what, range(0, len(items), AT_ONCE), some) for one in part]


def _answers(
    session: Session,
    run: Run,
    branch: Branch,
    name: str,
    what: str,
    prompts: Sequence[Dialogue],
    tokens: int,
) -> list[str]:
    """Have a version answer every prompt once, a part at a time."""
    settings: SampleSettings = replace(session.settings.sample, max_new_tokens=tokens)
    todo = parts(range(len(prompts)), session.settings.seed + 29) if prompts else []
    found = [""] * len(prompts)
    with steps(what, len(prompts)) as advance:

        def work(part: tuple[list[int], int]) -> list[tuple[int, str]]:
            places, seed = part
            chosen = [prompts[i] for i in places]
            some = answer(branch, session.pretrained, chosen, 1, settings, seed, name, False, advance)
            return [(places[i], a.response.text) for s in some for i, a in zip(s.places, s.answers, strict=True)]

        advance(sum(len(places) for places, _ in todo[: run.done(what)]))
        for rows in run.each(what, todo, work):
            for place, text in rows:
                found[place] = text
    return found


def _scores(session: Session, run: Run, inputs: BehaviourInputs, name: str, said: Sequence[str]) -> list[float]:
    """Score the answers about groups."""
    asked = inputs.asked
    start = len(asked.benign) + len(asked.unsafe)
    about = slice(start, start + 2 * len(asked.swaps))
    return _scored(session, run, inputs.reward, f"scores of {name}", _open(inputs)[about], said[about])


def _scored(
    session: Session, run: Run, reward: str | None, what: str, prompts: Sequence[Dialogue], said: Sequence[str]
) -> list[float]:
    """Score answers by the reward model that taught the policy, if there is one."""
    if reward is None or not prompts:
        return []
    model = stored.load_reward(session.workspace, reward, session.pretrained)
    exchanges = [(prompt, Response(text, AUTHOR)) for prompt, text in zip(prompts, said, strict=True)]

    def work(at: int) -> list[float]:
        rendered = [session.pretrained.renderer.render(*one) for one in exchanges[at : at + AT_ONCE]]
        return [float(x) for x in score_rendered(model, session.pretrained, rendered).mean(dim=0)]

    found = run.each(what, range(0, len(exchanges), AT_ONCE), work)
    return [score for some in found for score in some]
