"""The gate: the one way by which a policy becomes the current one, from whatever door it comes.

What was measured of a version is kept with it (`models/VERSION/checks.json`) and held against `gate.toml` when it is to
be promoted: its evaluation against the version that it would replace, and the audit of the reward model that taught it.
Nothing here loads torch: the pages come by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from manners.audit import review
from manners.audit.record import RECORD as RECORD
from manners.audit.record import change, described, redact, teacher
from manners.audit.record import read as read
from manners.audit.review import HERE as HERE
from manners.audit.rules import ALONE, CONFIDENCE, EVALUATION, FAILS, POLICY, REWARD, Rule, Rules, held, rules, together
from manners.errors import Blocked, MannersError, UsageError
from manners.facts import to_facts
from manners.models import weight_files
from manners.models.described import describe
from manners.results.audit import (
    APPROVED,
    CANNOT_TELL,
    FAIL,
    PASS,
    Check,
    CheckRecord,
    Gate,
    Kept,
    Override,
    People,
    Review,
    Tried,
)
from manners.workspace import INITIAL, Workspace

RELATIVE = frozenset({"win_rate", "matched_length", "variety"})
"""What an evaluation against another version than the one to be replaced says nothing about."""
MEASURED = frozenset({"perplexity", "collapse", "variety"})
"""What an evaluation measures of texts, whoever judges."""
BESIDE_NONE = frozenset({"perplexity", "start"})
"""What an evaluation measures in which the version that would be replaced has no part."""
REPLAYED = frozenset({"cases", "cases_score"})
"""What is measured anew whole, without chance: every case there is, each by the likeliest answer."""
LONGEST = 1000
"""Characters of a reason to override, to approve or to reject."""


@dataclass(frozen=True)
class Standing:
    """Where a version stands before the gate."""

    version: str
    against: str
    """The version that it would replace."""
    checks: tuple[Check, ...]

    @property
    def gate(self) -> Gate:
        """What the checks come to."""
        return decide(self.checks)


def decide(checks: Sequence[Check]) -> Gate:
    """Return what checks come to: one that fails blocks, and a required one that cannot be told."""
    failed = tuple(check.name for check in checks if check.verdict == FAIL)
    untold = tuple(check.name for check in checks if check.verdict == CANNOT_TELL and check.required)
    return Gate(verdict=FAIL if failed else CANNOT_TELL if untold else PASS, failed=failed, cannot_tell=untold)


def replaced_by(workspace: Workspace, policy: str) -> str:
    """Return the version whose place a policy would take: the current one, or, of that itself, the one before it."""
    standing = (str(described(workspace, policy).get("start", INITIAL)), workspace.start(), *workspace.promoted())
    return [version for version in standing if version != policy][-1]


def standing(workspace: Workspace, policy: str) -> Standing:
    """Return every check that promoting a policy goes by, held against the rules as they are now."""
    asked, record = rules(workspace.root), read(workspace, policy)
    against = replaced_by(workspace, policy)
    replaces_start = against == workspace.start()
    evaluated = record.measured.get(EVALUATION)
    checks = [] if evaluated is None else [_again(check, asked, EVALUATION) for check in evaluated.checks]
    if evaluated is None or evaluated.against != against:
        checks = [check for check in checks if check.name not in RELATIVE]
    if replaces_start:  # `win_rate` has the word on it
        checks = [check for check in checks if check.name != "start"]
    why = f"{policy} was not evaluated against {against}, which it would replace: run `manners evaluate`."
    checks += _missing(asked, EVALUATION, checks, why, replaces_start)
    if reward := teacher(described(workspace, policy)):
        audited = read(workspace, reward).measured.get(REWARD)
        of_reward = [] if audited is None else [_again(check, asked, REWARD) for check in audited.checks]
        why = f"{reward}, which taught {policy}, was not measured so: run `manners audit reward {reward}`."
        checks += [*of_reward, *_missing(asked, REWARD, of_reward, why, replaces_start)]
    behaviour = _behaviour(record, asked)
    why = f"The behaviour of {policy} was not measured so: run `manners audit policy {policy}`."
    checks += [*behaviour, *_missing(asked, POLICY, behaviour, why, replaces_start)]
    if reviewed := review.check(record, asked, against, review.digest(workspace)):
        checks.append(reviewed)
    return Standing(policy, against, tuple(checks))


def _behaviour(record: CheckRecord, asked: Rules) -> tuple[Check, ...]:
    """Return what is kept of a policy's behaviour; what fails does so after the correction for the number of checks.

    What failed so when it was measured does still: checks that were measured since would only add to that number.
    """
    audited = record.measured.get(POLICY)
    if audited is None:
        return ()
    ruled = [(check, rule) for check in audited.checks if (rule := asked.find(POLICY, check.name))]
    alone = [_again(check, asked, POLICY) for check, _ in ruled]
    corrected = together(alone, [rule for _, rule in ruled])
    return tuple(
        now if _fails_as_before(check, now) else among_all
        for (check, _), now, among_all in zip(ruled, alone, corrected, strict=True)
    )


def _fails_as_before(check: Check, now: Check) -> bool:
    """Return whether a check that failed fails by the rules of now too, which let no more pass."""
    as_strict = check.threshold == now.threshold and (now.margin or 0.0) <= (check.margin or 0.0)
    return as_strict and check.verdict == now.verdict == FAIL


def _missing(asked: Rules, part: str, checks: Sequence[Check], why: str, replaces_start: bool) -> Iterator[Check]:
    """Yield what is required and was not measured; there is no comparison with the start where that is replaced."""
    there = {check.name for check in checks}
    for name in asked.required(part):
        unasked = name == "judge" or (name == "start" and replaces_start)
        if unasked or any(one == name or one.startswith(f"{name}_") for one in there):
            continue
        nothing = " There is none without a reported answer that a reviewer kept away." if name in REPLAYED else ""
        yield held(name, asked.of(part, name), None, None, f"{why}{nothing}")


def _again(check: Check, asked: Rules, part: str) -> Check:
    """Hold a check against the rules of now; one that there is no rule for any more stays as it was."""
    rule = asked.find(part, check.name)
    if rule is None:
        return check
    if check.name == "judge":
        return replace(check, required=rule.required)
    if check.name == "collapse" and check.threshold is not None:
        # Older records have the larger of the two as the threshold, and do not say which.
        before = check.threshold if check.before is None else check.before
        rule = replace(rule, threshold=max(rule.threshold, before))
    if ALONE in check.sentence:  # as it was before the correction for others, which `together` makes anew
        check = replace(check, verdict=FAIL, sentence=check.sentence.replace(ALONE, FAILS))
    asks = (rule.threshold, rule.margin, rule.verdict(check.interval))
    if asks == (check.threshold, check.margin, check.verdict):
        return replace(check, required=rule.required)
    return _held_anew(check, rule)


def _held_anew(check: Check, rule: Rule) -> Check:
    anew = held(check.name, rule, check.interval, check.n, "", check.level or CONFIDENCE)
    return replace(
        anew, before=check.before, sentence=f"{check.sentence} Since then gate.toml was changed.{anew.sentence}"
    )


def keep(
    workspace: Workspace, version: str, part: str, checks: Sequence[Check], against: str | None = None
) -> tuple[Check, ...]:
    """Keep the checks of one measurement with the version, in the place of the last one; return what is kept.

    A check that failed stays until it is shown to pass on as much: a version does not change, and a smaller
    measurement, or other random numbers, that cannot tell undo nothing. Of reported answers, and of verdicts that add
    up, the newest word is the whole one (`_lasts`).
    """
    asked = rules(workspace.root).version
    kept = Kept(created_at=_now(), against=against, gate_version=asked)

    def measured(record: CheckRecord) -> CheckRecord:
        before = record.measured.get(part, Kept())
        found = {check.name: check for check in checks}
        for old in before.checks:
            new = found.get(old.name)
            shown = new is not None and (new.verdict == FAIL or (new.verdict == PASS and (new.n or 0) >= (old.n or 0)))
            if old.verdict == FAIL and not shown and _lasts(old, new, part, before.against == against):
                found[old.name] = old
        return replace(record, measured={**record.measured, part: replace(kept, checks=tuple(found.values()))})

    return change(workspace, version, measured).measured[part].checks


def _lasts(old: Check, new: Check | None, part: str, same: bool) -> bool:
    """Return whether a failure outlasts the next measurement of its part; `same` where that was against the same.

    Of an audit it does, but for what is measured anew whole (`REPLAYED`): a case whose words were deleted, or that was
    taken back, fails no longer. Of an evaluation it does where the version compared with is the same, or has no part in
    it (`BESIDE_NONE`). Not where people judge, of which no `n` is kept: the newest word is that of all verdicts. A
    comparison with the start version itself measures no `start`, and takes away none.
    """
    if part != EVALUATION:
        return old.name not in REPLAYED
    if old.name == "start" and new is None:
        return True
    counted = old.n is not None and new is not None and new.n is not None
    return (counted or old.name in MEASURED) and (same or old.name in BESIDE_NONE)


def keep_people(workspace: Workspace, version: str, people: People, started_by: str | None = None) -> None:
    """Keep whose verdicts were there when a version was made, and who started the run, where that is known."""

    def made(record: CheckRecord) -> CheckRecord:
        return replace(record, people=people, started_by=started_by or record.started_by)

    change(workspace, version, made)


def goes_back(workspace: Workspace, policy: str) -> bool:
    """Return whether to promote a policy is to go back, which asks no gate: unless a reviewer has rejected it since."""
    before = policy in {INITIAL, workspace.start(), *workspace.promoted()}
    return before and not review.is_rejected(read(workspace, policy).reviews)


def roll_back(workspace: Workspace) -> str:
    """Go back to the policy before the current one, past every one that a reviewer has rejected; return which it was.

    It asks no gate, as a server that misbehaves must not wait, and neither a damaged record nor weights that are not
    there hold anybody up: their version is passed by too, for a server that cannot load it would go on with the one
    that misbehaves. Raises MannersError where nothing was promoted.
    """
    return workspace.roll_back(_no_return(workspace))


def before(workspace: Workspace) -> str | None:
    """Return the policy that a roll-back would serve; None where there is nothing to go back to."""
    promoted = workspace.before(_no_return(workspace))
    return None if promoted is None else [workspace.start(), *promoted][-1]


def _no_return(workspace: Workspace) -> set[str]:
    return {name for name in {workspace.start(), *workspace.promoted()} if not _may_return(workspace, name)}


def _may_return(workspace: Workspace, version: str) -> bool:
    try:
        if version != INITIAL:
            weight_files.check(workspace, describe(workspace, version))
        return not review.is_rejected(read(workspace, version).reviews)
    except MannersError:
        return False


def keep_tried(workspace: Workspace, version: str, tried: tuple[Tried, ...]) -> None:
    """Keep what people said of a version in the chat: it is shown on the card, and the gate does not go by it."""
    if tried != read(workspace, version).tried:
        change(workspace, version, lambda record: replace(record, tried=tried))


def promote(workspace: Workspace, policy: str, override: str | None = None, by: str = HERE) -> Gate:
    """Make a policy the current one if the gate lets it through, or for a reason that is kept and shown on its card.

    Going back to the initial model, to the start version, or to one that was promoted before is no promotion.
    Of any other the card is written anew, for `gate.toml` may have been changed since the measurement. Raises Blocked,
    naming every check that blocks, and MannersError for a version whose weights are not there. Both also where it is so
    only once nobody else can promote: another version may have been promoted since, or this one rejected.
    """

    def there() -> None:
        if policy != INITIAL:
            weight_files.check(workspace, describe(workspace, policy))

    def still_back() -> None:
        there()
        if not goes_back(workspace, policy):
            raise MannersError(f"{policy} was rejected, or rolled back, meanwhile: look at it, and promote it again.")

    def still_through() -> None:
        there()
        now = standing(workspace, policy)
        if now.against != found.against:
            raise MannersError(
                f"{policy} was to replace {found.against}, and would {now.against} now: promote it again."
            )
        if _blocking(now) - _blocking(found):
            raise blocked(now)
        if found.gate.blocks:  # on record, and on the card, only where nothing refuses it any more
            _overridden(workspace, found, override or "", by)
        else:
            change(workspace, policy, lambda record: record)

    there()
    if goes_back(workspace, policy):
        workspace.promote(policy, still_back)
        return Gate(verdict=PASS)
    found = standing(workspace, policy)
    if found.gate.blocks and override is None:
        raise blocked(found)
    workspace.promote(policy, still_through)
    return found.gate


def _blocking(found: Standing) -> set[str]:
    return {*found.gate.failed, *found.gate.cannot_tell}


def blocked(found: Standing) -> Blocked:
    """Return the refusal to let a version through."""
    gate, names = found.gate, _blocking(found)
    said = " ".join(check.sentence for check in found.checks if check.name in names)
    parts = [("fails", gate.failed), ("cannot tell, which is required", gate.cannot_tell)]
    what = "; ".join(f"{how}: {', '.join(names)}" for how, names in parts if names)
    return Blocked(f"the gate does not let {found.version} through ({what}). {said}", facts(found))


def facts(found: Standing) -> dict[str, Any]:
    """Return where a version stands, in JSON's types."""
    return {
        "version": found.version,
        "against": found.against,
        "checks": [to_facts(check) for check in found.checks],
        "gate": to_facts(found.gate),
    }


def decide_on(workspace: Workspace, policy: str, made: Review) -> Review:
    """Keep what a reviewer has decided about a version, with where the gate stands now; return what is kept.

    Raises UsageError without a reason, and MannersError for an approval of another report than the one that is there,
    beside another version than it would replace, or of whoever started the run where `gate.toml` asks for two people.
    """
    found, asked = standing(workspace, policy), rules(workspace.root)
    kept = replace(made, reason=_reason(made.reason, "a review"), created_at=_now(), gate=found.gate)

    def decided(record: CheckRecord) -> CheckRecord:
        if kept.decision == APPROVED:
            if why := review.stale(kept, found.against, review.digest(workspace)):
                raise MannersError(f"{policy} cannot be approved so, for {why}: look at the page anew.")
            if asked.two_person and (why := review.barred(kept.by, record.started_by)):
                raise MannersError(f"an approval takes a second person, and {why}.")
        return replace(record, reviews=(*record.reviews, kept))

    change(workspace, policy, decided)
    return kept


def take_out(workspace: Workspace, version: str, reason: Callable[[str, str], str]) -> bool:
    """Change the reasons that people gave, by who gave them and what they say; return whether any is another now."""

    def without(record: CheckRecord) -> CheckRecord:
        overrides = tuple(replace(one, reason=reason(one.by, one.reason)) for one in record.overrides)
        reviews = tuple(replace(one, reason=reason(one.by, one.reason)) for one in record.reviews)
        return replace(record, overrides=overrides, reviews=reviews)

    return redact(workspace, version, without)


def _overridden(workspace: Workspace, found: Standing, reason: str, by: str) -> None:
    """Keep why a version is promoted all the same."""
    against = (*found.gate.failed, *found.gate.cannot_tell)
    made = Override(reason=_reason(reason, "an override"), created_at=_now(), by=by, against=against)
    change(workspace, found.version, lambda record: replace(record, overrides=(*record.overrides, made)))


def _reason(reason: str, what: str) -> str:
    reason = " ".join(reason.split())
    if not reason or len(reason) > LONGEST:
        why = "say why the gate is wrong here" if what == "an override" else "say what you have read"
        raise UsageError(f"{what} takes a reason of 1 to {LONGEST} characters: {why}.")
    return reason


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
