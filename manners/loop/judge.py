"""The judge: an AI is asked about comparisons in both orders, held against people, and admitted or not.

What it says is stored as verdicts of an annotator of kind `ai`. Whether these train is settled by `admission`, from the
record as it is when something is trained.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manners.checkpoint import Run
from manners.data import constitution, judge_probes
from manners.errors import MannersError
from manners.evaluate import by_judge
from manners.facts import Facts
from manners.feedback.admission import Admission, Limits, admission, cases, fair
from manners.feedback.judge import FILE, Asked, Opinion, calibrated, principles, stated, wording
from manners.feedback.judge_endpoint import Budget, Endpoint
from manners.feedback.judge_local import LocalJudge
from manners.loop import judging
from manners.loop.admitted import last
from manners.loop.judging import (
    JOURNAL,
    Chosen,
    Journal,
    Spending,
    alone,
    chosen_of,
    forget,
    one_each,
    opinions,
    panel,
    probed,
    tried,
    unjudged,
)
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.session import Session
from manners.loop.stage import Inputs
from manners.models import versions
from manners.models.cost import head_bytes, layer_bytes, own_bytes
from manners.results.judge import JUDGED_BY, JudgeResult
from manners.reward.verdicts import pooled
from manners.types import JUDGE, Annotator, AnnotatorKind, Choice, Comparison, Verdict, VersionKind, latest_of
from manners.workspace import INITIAL, atomic_write

if TYPE_CHECKING:
    from manners.loop.options import JudgeOptions

WHO, EVALUATED = "the judge", "the policy that is evaluated"
KEY = "MANNERS_JUDGE_KEY"
PARTS = "checked", "rest", "asked"
"""What a run is settled on: comparisons that people have judged, those to train on, and those of an evaluation."""
NEW = "new"
"""Those of them that it had not judged when the run began."""
OVER = "over"
"""How many there were beyond `judge.most` then."""


@dataclass(frozen=True, kw_only=True)
class JudgeInputs(Inputs):
    """Who judges, and by what."""

    version: str | None
    """None where a server is asked."""
    judge: Annotator
    rules: str
    evaluated: str | None = None
    """The policy whose evaluation is judged too."""

    @property
    def source(self) -> str:
        """The name without what tells it from the same model under other principles."""
        return self.judge.name.removeprefix(JUDGE).rpartition("#")[0]


def write_principles(root: Path) -> Facts:
    """Write the principles that ship into a workspace, where there are none."""
    file = root / FILE
    if file.exists():
        raise MannersError(f"{file} is there already: remove it first, or change it where it is")
    atomic_write(file, constitution())
    return {"written": str(file)}


def inputs(session: Session, options: JudgeOptions, begun: Mapping[str, Any]) -> JudgeInputs:
    """Settle who judges: of a run that goes on, who began it."""
    found = _settled(session, options.version, begun)
    policy = begun.get(EVALUATED)
    if options.evaluation and not begun:
        policy = versions.latest(session.workspace, VersionKind.POLICY)
    return replace(found, evaluated=policy, decides=found.decides | {EVALUATED: policy}) if policy else found


def _settled(session: Session, named: str | None = None, begun: Mapping[str, Any] = {}) -> JudgeInputs:
    """Return the judge: its name hangs on the model, the principles and the wording of the question."""
    rules = principles(session.workspace.root)
    chosen = session.settings.judge
    version = None
    if chosen.url is not None:
        if named is not None:
            raise MannersError(f"judge.url names a server, and {named} is a version: leave one of the two out")
        if not chosen.model:
            raise MannersError("judge.url names a server: say with judge.model which of its models is to judge")
        source, what = chosen.model, chosen.url
    else:
        version = named or begun.get(JUDGED_BY) or INITIAL
        trunk = session.pretrained.trunk
        source = f"{Path(session.pretrained.name).name}/{version}"
        what = f"{trunk.hash} {trunk.cut} {session.pretrained.renderer.template_hash}"
    digest = hashlib.sha256("\0".join((source, what, rules, wording())).encode()).hexdigest()[:8]
    judge = Annotator(f"{JUDGE}{source}#{digest}", AnnotatorKind.AI)
    # How long it is waited for, and what may be spent, may change while a run is stopped.
    read = {f"judge.{name}": getattr(chosen, name) for name in ("own", "checked", "probes", "most", "samples")}
    decides = {WHO: judge.name, JUDGED_BY: version, **read}
    return JudgeInputs(decides=decides, version=version, judge=judge, rules=rules)


def plan(session: Session, inputs: JudgeInputs | None = None) -> Plan:
    """How much is asked at most, as a server tells probabilities or not, and the memory of reading a question."""
    inputs = inputs or _settled(session)
    comparisons = pooled(session.store.comparisons())
    chosen = chosen_of(session, comparisons, inputs.judge)
    asked = _evaluated(session, inputs.evaluated, comparisons)
    new = [len(unjudged(some, inputs.judge)) for some in (chosen.checked, chosen.rest, asked)]
    settings = session.settings.judge
    tries = min(settings.probes, len(one_each(chosen.checked)))
    probes = tries * sum(n < tries for _, n in _tried_before(session, inputs.judge).values())
    requests = 2 * (sum(new) + probes)
    work: Facts = {"judge": inputs.judge.name, "comparisons": sum(new), "probes": probes, "requests": requests}
    if inputs.version is None:
        drawn = {"requests_without_probabilities": requests * settings.samples}
        return Plan("judge", work | drawn | {"requests_at_most": settings.requests}, 0, (), None)
    trunk = session.pretrained.trunk
    reading = layer_bytes(trunk, session.pretrained.renderer.context) + head_bytes(trunk)
    parts = [Part("reading_a_question", reading, "model.context")]
    if inputs.version != INITIAL:
        parts.append(Part("policy", own_bytes(trunk, head=True), "model.trainable_layers"))
    return make_plan(session, "judge", work, parts)


def run(session: Session, run: Run, inputs: JudgeInputs) -> JudgeResult:
    """Ask, measure, admit or not, and store every verdict at once."""
    settings, judge = session.settings.judge, inputs.judge
    with alone(session.workspace.runs), _asked(session, run, inputs) as (asker, budget):
        # 1. Whom to ask about, settled once: what comes meanwhile is for the next run.
        comparisons = pooled(session.store.comparisons())
        chosen = chosen_of(session, comparisons, judge)
        asked = _evaluated(session, inputs.evaluated, comparisons)
        if "checked" not in run.state:
            parts = chosen.checked, chosen.rest, asked
            run.state |= {part: [c.id for c in some] for part, some in zip(PARTS, parts, strict=True)}
            run.state[NEW] = [c.id for some in parts for c in unjudged(some, judge)]
            run.state[OVER] = chosen.over
            run.save()
        allowed = chosen.allowed | {c.id for c in asked}
        by_id = {c.id: c for c in comparisons if c.id in allowed}
        checked, rest, asked = ([by_id[i] for i in run.state.get(p, ()) if i in by_id] for p in PARTS)
        if not checked and not rest and not asked:
            raise MannersError(
                "there is no comparison that a judge could be asked about; run `manners sample` to open some"
            )
        # 2. Those that several people have judged, and what a sentence in the worse answer turns.
        journal = Journal(session.workspace.runs / JOURNAL, judge.name)
        asking = _Asking(asker, journal, inputs, settings.parallel if inputs.version is None else 1)
        held, spent = asking.about(checked, "comparisons that people have judged")
        turned, over = _turned(session, asking, held, spent)
        # 3. Admitted or not; an admitted judge goes on.
        heat = _temperature(held, judge)
        found = measured(held, inputs, turned, session)
        more, last = asking.about(rest, "comparisons to train on") if found.admitted and not over else ([], over)
        evaluation, last = asking.about(asked, "comparisons of the evaluation") if not last else ([], last)
        # 4. Every verdict of the run, or none.
        new = [*unjudged(checked, judge), *unjudged(rest, judge), *unjudged(asked, judge)]
        said = asking.verdicts(new, heat)
        session.store.add_verdicts(said)
        if not last:  # else the next run is answered by it
            run.afterwards = partial(forget, session.workspace.runs)
    begun = [by_id[i] for i in run.state.get(NEW, ()) if i in by_id]  # it may have stored theirs before it was killed
    given = [*(v for one in begun if (v := latest_of(one, judge))), *(verdict for _, verdict in said)]
    result = _result(session, inputs, chosen, found, held, more, turned, given, heat, budget, journal.sampled)
    stopped = "a budget was spent: judge.requests or judge.tokens" if last else None
    waiting = len(unjudged([*checked, *rest, *asked], judge)) - len(said) + run.state.get(OVER, chosen.over)
    rates = by_judge.win_rates(evaluation, inputs.evaluated, judge) if inputs.evaluated else None
    for rate in rates or ():
        print(rate.sentence, file=sys.stderr)
    return replace(result, stopped=stopped, waiting=waiting, win_rates=rates)


@dataclass
class _Asking:
    """A judge with what it has said in this run."""

    asker: Asked
    journal: Journal
    inputs: JudgeInputs
    parallel: int

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.said: dict[int, Opinion] = {}

    def about(self, some: Sequence[Comparison], title: str) -> tuple[list[Comparison], bool]:
        """Return comparisons with this judge's verdict, asking where there is none, and whether a budget was spent."""
        judge = self.inputs.judge
        new = unjudged(some, judge)
        given, spent = opinions(self.asker, self.journal, self.inputs.rules, new, self.parallel, title)
        self.said |= {one.id or 0: said for one, said in zip(new, given, strict=True) if said is not None}
        judged = (
            replace(one, verdicts=(*one.verdicts, self.said[one.id or 0].verdict(judge, None)))
            if (one.id or 0) in self.said
            else one
            for one in some
        )
        return [one for one in judged if latest_of(one, judge) is not None], spent

    def verdicts(self, new: Sequence[Comparison], heat: float | None) -> list[tuple[int, Verdict]]:
        """Return what is to be stored, each with the number of its comparison."""
        said = ((one.id or 0, self.said.get(one.id or 0)) for one in new)
        return [(key, opinion.verdict(self.inputs.judge, heat)) for key, opinion in said if opinion is not None]


@contextmanager
def _asked(session: Session, run: Run, inputs: JudgeInputs) -> Iterator[tuple[Asked, Budget]]:
    chosen = session.settings.judge
    budget = Spending(run.folder).budget(chosen.requests, chosen.tokens, begun=bool(run.gone_on))
    if inputs.version is not None:
        policy = versions.load_policy(session.workspace, inputs.version, session.pretrained)
        yield LocalJudge(policy, session.pretrained), budget
        return
    assert chosen.url is not None and chosen.model is not None, "settled by the inputs"
    key = os.environ.get(KEY, "")
    server = Endpoint(chosen.url, chosen.model, key, chosen.timeout, chosen.retries, chosen.samples, budget)
    with server.connected():
        yield server, budget


def _evaluated(session: Session, version: str | None, comparisons: Sequence[Comparison]) -> list[Comparison]:
    return judging.evaluated(comparisons, version, judging.private(session))


def _tried_before(session: Session, judge: Annotator) -> dict[str, tuple[int, int]]:
    """Return what each kind of probe turned when the same judge was asked last, of how many; else of none."""
    before = last(session.workspace)
    return tried(before.turned or {} if before is not None and before.judge == judge.name else {})


def _turned(
    session: Session, asking: _Asking, held: Sequence[Comparison], spent: bool
) -> tuple[dict[str, tuple[int, int]], bool]:
    """Return for each kind of probe how many verdicts it turned, of how many, and whether a budget was spent.

    Each is tried on a comparison of its own, of an opening of its own, for what turns a verdict once does so again.
    Only a kind that the same judge was tried with on fewer is asked, and what it was tried with before stands until
    more is known: a budget, wherever it ends a run, takes nothing away that admission goes by.
    """
    judge = asking.inputs.judge
    turned = _tried_before(session, judge)
    sided = Choice.LEFT, Choice.RIGHT
    decided = {one.id: said.choice for one in held if (said := latest_of(one, judge)) and said.choice in sided}
    tries = one_each(one for one in held if one.id in decided)[: session.settings.judge.probes]
    for name, texts in judge_probes().items():
        if spent or turned[name][1] >= len(tries):
            continue
        pairs = probed(tries, [decided[one.id] for one in tries], texts, session.settings.seed)
        given, spent = opinions(asking.asker, asking.journal, asking.inputs.rules, pairs, asking.parallel, name)
        answered = [one for one in given if one is not None]
        now = sum(one.choice is Choice.RIGHT for one in answered), len(answered)
        turned[name] = max(turned[name], now, key=lambda some: some[1])
    return turned, spent


def own_authors(session: Session, inputs: JudgeInputs) -> frozenset[str]:
    """Return the authors whose answers are of the judge's own model, as far as that is known."""
    chosen = session.settings.judge
    return frozenset(filter(None, [*chosen.own.split(), inputs.version or chosen.model]))


def measured(
    held: Sequence[Comparison], inputs: JudgeInputs, turned: Mapping[str, tuple[int, int]], session: Session
) -> Admission:
    """Hold a judge against people on comparisons that both have judged."""
    return admission(cases(held, inputs.judge, own_authors(session, inputs)), tried(turned))


def _temperature(held: Sequence[Comparison], judge: Annotator) -> float | None:
    """Fit it on every human verdict beside the judge's."""
    left, people = list[float](), list[float]()
    for one in held:
        said = latest_of(one, judge)
        if said is not None and (p := stated(said)) is not None:
            chosen = fair(one)
            left += [p] * len(chosen)
            people += chosen
    return calibrated(left, people)


def _result(
    session: Session,
    inputs: JudgeInputs,
    chosen: Chosen,
    found: Admission,
    held: Sequence[Comparison],
    more: Sequence[Comparison],
    turned: Mapping[str, tuple[int, int]],
    given: Sequence[Verdict],
    heat: float | None,
    budget: Budget,
    sampled: set[int],
) -> JudgeResult:
    reasons = Counter(reason for verdict in given for reason in verdict.reasons)
    everything = cases([*held, *more], inputs.judge)
    there = sum(len(fair(one)) for one in chosen.checked)
    flips = found.value("flip_rate")
    result = JudgeResult(
        admitted=found.admitted,
        agreement=found.agreement,
        human_agreement=found.human_agreement,
        flip_rate=flips,
        length_slope=found.value("length_slope"),
        own_preference=found.value("own_model"),
        own=tuple(sorted(own_authors(session, inputs))),
        judge=inputs.judge.name,
        source=_how(sampled),
        checks=found.checks,
        failed=found.failed,
        cannot_tell=found.cannot_tell,
        checked=found.checked,
        needed=found.needed,
        there=there,
        asked=len(given),
        verdicts=sum(verdict.choice is not Choice.SKIP for verdict in given),
        without_verdict=dict(reasons),
        left_out=chosen.left_out,
        temperature=heat,
        requests=budget.asked or None,
        tokens=budget.used or None,
        turned=dict(turned),
        panel=panel([*held, *more], everything),
    )
    sentence = _sentence(inputs, result, session.settings.judge.checked)
    print(sentence, file=sys.stderr)
    return replace(result, sentence=sentence)


def _how(sampled: set[int]) -> str | None:
    """Say how verdicts were read; nothing where none was."""
    drawn = sorted(sampled - {0})
    words = [*(["probabilities"] if 0 in sampled else []), *(f"{k} sampled" for k in drawn)]
    return " and ".join(words) or None


def _sentence(inputs: JudgeInputs, result: JudgeResult, checked: int) -> str:
    start = f"{inputs.source} is {'admitted' if result.admitted else 'not admitted'} as a judge"
    why = [f"it fails {', '.join(result.failed)}"] if result.failed else []
    why += [f"too little is known for {', '.join(result.cannot_tell)}"] if result.cannot_tell else []
    stands = ", and its verdicts are stored and train nothing" if not result.admitted else ""
    probes, unknown = set(judge_probes()), set(result.cannot_tell or ())
    need = _need(result.needed, result.there, checked) if unknown.union(result.failed or ()) - probes else ""
    need += _more_probes(n for name, (_, n) in tried(result.turned or {}).items() if name in unknown)
    return f"{start}{stands}{': ' + '; '.join(why) if why else ''}.{need}"


def _more_probes(tries: Iterable[int]) -> str:
    fewest, least = min(tries, default=None), Limits().probes
    if fewest is None:
        return ""
    takes = f", and take {least} at least" if fewest < least else ""
    return (
        f" Probes were tried on {fewest} comparisons that begin differently{takes}: raise judge.probes, or have more"
        " comparisons judged, about other prompts."
    )


def _need(needed: int | None, there: int | None, checked: int) -> str:
    if needed is None:
        return " Answers differ so little in length that no number of verdicts could admit a judge."
    more = f" (and judge.checked = {needed // 2})" if needed > 2 * checked else ""
    return (
        " A judge that agrees with people as they do with each other, and is moved by nothing else, is admitted in 8 of"
        f" 10 tries after about {needed} human verdicts{more}, two to a comparison and drawn at random; there are"
        f" {there}."
    )
