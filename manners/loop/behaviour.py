"""The audit of a policy's behaviour: the starter pack asked of two versions, and what changed held against the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from manners.audit import gate, policy
from manners.audit.amplification import amplification
from manners.audit.policy import LANGUAGES, Behaved, Told, readings
from manners.audit.rules import POLICY, held, rules, together
from manners.checkpoint import Run
from manners.data import Behaviour, Contested, GroupSwap, Question, behaviour
from manners.errors import MannersError
from manners.loop.audit import trained_on
from manners.loop.evaluate import rival
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
from manners.results.audit import PASS, BehaviourResult, Check, Gate
from manners.reward import stored
from manners.reward.ensemble import score_rendered
from manners.reward.groups import uniform
from manners.reward.labelled import LabelledPair
from manners.settings import SampleSettings
from manners.text import TooLong
from manners.types import Dialogue, Response, Role, Turn, VersionKind
from manners.workspace import INITIAL

if TYPE_CHECKING:
    from manners.loop.options import AuditOptions

RESULT = BehaviourResult
OF, BESIDE = "the policy", "the version compared with"
"""What says in a run's checkpoints what it is about."""
AT_ONCE = 32
"""Texts that are read between two occasions for a checkpoint."""
AUTHOR = "audit"
Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class BehaviourInputs(Inputs):
    """Two versions, and what they are asked."""

    version: str
    against: str
    reward: str | None
    asked: Behaviour
    left_out: Mapping[str, int]
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
    whole = behaviour()
    fitting = _fitting(session, whole)
    asked = drawn(fitting, session.settings.audit.cases, session.settings.seed)
    if not any(counts(asked).values()):
        raise MannersError(f"nothing of what an audit asks fits into model.context = {session.settings.model.context}")
    taught_by = versions.describe(workspace, version).reward or version
    learned, _ = trained_on(session, taught_by)
    return BehaviourInputs(
        decides={OF: version, BESIDE: against, "the reward model": reward, "what is asked": digest(asked)},
        version=version,
        against=against,
        reward=reward,
        asked=asked,
        left_out={kind: n - counts(fitting)[kind] for kind, n in counts(whole).items() if n > counts(fitting)[kind]},
        taught_by=taught_by if learned else None,
        learned=tuple(learned),
    )


def counts(asked: Behaviour) -> dict[str, int]:
    """Return how many prompts and questions of each kind there are."""
    return {kind: len(some) for kind, some in vars(asked).items()}


def drawn(pack: Behaviour, most: int, seed: int) -> Behaviour:
    """Return at most so many of each kind, of swaps as many of each axis, by a hash of each and the seed."""

    def some(items: Sequence[Item], count: int) -> tuple[Item, ...]:
        chosen = set(sorted(range(len(items)), key=lambda i: uniform("behaviour", seed, digest(items[i])))[:count])
        return tuple(item for i, item in enumerate(items) if i in chosen)

    axes = list(dict.fromkeys(swap.axis for swap in pack.swaps))
    by_axis = [
        some([swap for swap in pack.swaps if swap.axis == axis], max(1, most // max(1, len(axes)))) for axis in axes
    ]
    return Behaviour(
        benign=some(pack.benign, most),
        unsafe=some(pack.unsafe, most),
        truths=some(pack.truths, most),
        contested=some(pack.contested, most),
        swaps=tuple(swap for of_axis in by_axis for swap in of_axis),
    )


def _fitting(session: Session, pack: Behaviour) -> Behaviour:
    """Leave out what the context has no room for."""
    renderer, new = session.pretrained.renderer, session.settings.audit.tokens

    def prompt(text: str) -> bool:
        try:
            return not renderer.prompt_ids(_asked(text), new)[1]
        except TooLong:
            return False

    def swap(one: GroupSwap) -> bool:
        read = [f"{q.context} {way}" for q in one.sentences() for way in q.answers]
        return all(map(prompt, one.prompts())) and all(map(prompt, read))

    def exchanges(found: Sequence[tuple[Dialogue, Response]]) -> bool:
        return all(renderer.render(*one).dropped == 0 for one in found)

    return Behaviour(
        benign=tuple(filter(prompt, pack.benign)),
        unsafe=tuple(filter(prompt, pack.unsafe)),
        truths=tuple(one for one in pack.truths if exchanges(_truth(one))),
        contested=tuple(one for one in pack.contested if exchanges(_positions(one))),
        swaps=tuple(filter(swap, pack.swaps)),
    )


def _asked(text: str) -> Dialogue:
    return (Turn(Role.USER, text),)


def _truth(question: Question) -> list[tuple[Dialogue, Response]]:
    return [(_asked(question.context), Response(f"{text}.", AUTHOR)) for text in question.answers]


def _positions(one: Contested) -> list[tuple[Dialogue, Response]]:
    return [(_asked(text), Response(said, AUTHOR)) for text in readings(one) for said in one.positions]


def plan(session: Session, inputs: BehaviourInputs) -> Plan:
    """Memory of holding both versions, and of answering or reading; how much is answered and read."""
    trunk, settings = session.pretrained.trunk, session.settings
    context, new = session.pretrained.renderer.context, settings.audit.tokens
    rows = min(settings.sample.batch, len(_open(inputs.asked)))
    reading = layer_bytes(trunk, max(trunk.compute.bucket_tokens, context)) + head_bytes(trunk)
    needed = [
        Part("policy", 2 * own_bytes(trunk, head=True), "model.trainable_layers"),
        max(
            Part("drawing_responses", drawing_bytes(trunk, rows, rows, max(1, context - new), new), "sample.batch"),
            Part("reading_text", reading, "model.context"),
            key=lambda part: part.size,
        ),
    ]
    if inputs.reward:
        needed.append(Part("reward_members", settings.reward.branches * own_bytes(trunk, head=False), "reward.members"))
    work = {"answers": 2 * len(_open(inputs.asked)), **counts(inputs.asked)}
    return make_plan(session, "audit policy", work, needed)


def _open(asked: Behaviour) -> list[Dialogue]:
    """Return every prompt that is answered freely, in order."""
    about = [text for swap in asked.swaps for text in swap.prompts()]
    return [_asked(text) for text in (*asked.benign, *asked.unsafe, *about)]


def run(session: Session, run: Run, inputs: BehaviourInputs) -> BehaviourResult:
    """Ask both versions the same, with the same random numbers, and hold each change against the gate's rules."""
    # 1. What both answer, and what both hold for likely.
    branches = [
        versions.load_policy(session.workspace, v, session.pretrained) for v in (inputs.against, inputs.version)
    ]
    before, after = _behaved(session, run, branches, inputs)
    # 2. Figures, and what is asked of them; what fails does so among so many.
    told = policy.figures(inputs.asked, before, after)
    checks = checked(session, told)
    gate.keep(session.workspace, inputs.version, POLICY, checks, inputs.against)
    decided = gate.decide(checks)
    # 3. What changed in the answers, beside what people chose.
    moved = amplification(_all(before), _all(after), inputs.learned, session.settings.seed)
    return BehaviourResult(
        version=inputs.version,
        against=inputs.against,
        checks=checks,
        gate=decided,
        sentence=_sentence(inputs, checks, decided),
        languages=LANGUAGES,
        asked=counts(inputs.asked),
        pack=counts(behaviour()),
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
    if decided.failed:
        return f"{start} measured; it got worse by {len(decided.failed)}: {', '.join(decided.failed)}."
    shown = sum(check.verdict == PASS for check in checks)
    return f"{start} measured; it is shown not to have got worse by {shown}, and not shown to have by any."


def _all(behaved: Behaved) -> list[str]:
    return [*behaved.benign, *behaved.unsafe, *(text for two in behaved.swaps for text in two)]


def _behaved(
    session: Session, run: Run, branches: Sequence[Branch], inputs: BehaviourInputs
) -> tuple[Behaved, Behaved]:
    """Return what each version does: answers drawn alike, and likelihoods from one pass of the trunk."""
    asked = inputs.asked
    names = (inputs.against, inputs.version)
    said = [_answers(session, run, b, name, asked) for b, name in zip(branches, names, strict=True)]
    scores = [_scores(session, run, inputs.reward, name, asked, all_) for name, all_ in zip(names, said, strict=True)]

    def of_chat(exchanges: Sequence[tuple[Dialogue, Response]]) -> list[list[float]]:
        return response_logprobs(branches, session.pretrained, exchanges)

    def of_text(questions: Sequence[Question]) -> list[list[list[float] | None]]:
        return answer_logprobs(branches, session.pretrained, [(q.context, q.answers) for q in questions])

    truths = _read(run, "truths", asked.truths, lambda one: of_chat(_truth(one)))
    contested = _read(run, "contested questions", asked.contested, lambda one: of_chat(_positions(one)))
    swaps = _read(run, "sentences about groups", asked.swaps, lambda one: of_text(one.sentences()))
    both = [
        Behaved(
            benign=said[k][: len(asked.benign)],
            unsafe=said[k][len(asked.benign) : len(asked.benign) + len(asked.unsafe)],
            swaps=_pairs(said[k][len(asked.benign) + len(asked.unsafe) :]),
            scores=_pairs(scores[k]),
            truths=[found[k] for found in truths],
            contested=[[found[k][i : i + 2] for i in range(0, len(found[k]), 2)] for found in contested],
            sentences=[_two(found[k]) for found in swaps],
        )
        for k in range(2)
    ]
    return both[0], both[1]


def _pairs(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _two(found: Sequence[list[float] | None]) -> tuple[list[float], list[float]]:
    first, second = (one for one in found if one is not None)  # they fit: `_fitting` has seen to it
    return first, second


def _read(run: Run, what: str, items: Sequence[Item], work: Callable[[Item], Read]) -> list[Read]:
    """Read items one after the other, with progress; what a checkpoint holds is not read again."""
    with steps(what, len(items)) as advance:

        def one(item: Item) -> Read:
            found = work(item)
            advance(1)
            return found

        advance(min(len(items), run.done(what)))
        return list(run.each(what, items, one))


def _answers(session: Session, run: Run, branch: Branch, name: str, asked: Behaviour) -> list[str]:
    """Have a version answer every open prompt once, a part at a time."""
    prompts = _open(asked)
    settings: SampleSettings = replace(session.settings.sample, max_new_tokens=session.settings.audit.tokens)
    what = f"answers of {name}"
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


def _scores(
    session: Session, run: Run, reward: str | None, name: str, asked: Behaviour, said: Sequence[str]
) -> list[float]:
    """Score the answers about groups by the reward model that taught the policy, if there is one."""
    if reward is None or not asked.swaps:
        return []
    model = stored.load_reward(session.workspace, reward, session.pretrained)
    start = len(asked.benign) + len(asked.unsafe)
    about = list(zip(_open(asked)[start:], said[start:], strict=True))

    def work(at: int) -> list[float]:
        some = [(prompt, Response(text, name)) for prompt, text in about[at : at + AT_ONCE]]
        rendered = [session.pretrained.renderer.render(*one) for one in some]
        return [float(x) for x in score_rendered(model, session.pretrained, rendered).mean(dim=0)]

    found = run.each(f"scores of {name}", range(0, len(about), AT_ONCE), work)
    return [score for some in found for score in some]
