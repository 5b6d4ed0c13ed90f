"""What is said of a candidate: whose choices count, how often, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from manners.evaluate.tried import outcomes
from manners.feedback import bets
from manners.feedback.statistics import clustered_share, wilson
from manners.results.audit import Tried
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict

ORDER = ["initial", "policy-1", "policy-2"]
LETTERS = {"N": Choice.LEFT, "O": Choice.RIGHT, "T": Choice.TIE, "B": Choice.BOTH_BAD, "S": Choice.SKIP}


def asked(choices: str, account: int | None = 1, name: str = "anna", turned: bool = False) -> Comparison:
    """Return a comparison with one person's choices, one after another: N(ew), O(ld), T, B(oth bad), S(kip)."""
    who = Annotator(name, AnnotatorKind.HUMAN, account)
    verdicts = tuple(Verdict(LETTERS[letter], who) for letter in choices)
    pair = Response("a", "policy-2"), Response("b", "policy-1")
    one = Comparison((Turn(Role.USER, "p"),), *pair, AskedHow.CANDIDATE, 0.1, verdicts)
    return one.turned() if turned else one


def read(comparisons: Sequence[Comparison]) -> Tried:
    [found] = outcomes(comparisons, ORDER)
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_counts_are_those_by_hand_on_either_side(turned: bool) -> None:
    letters = ["N", "N", "O", "T", "B", "S", ""]
    found = read([asked(letter, account, turned=turned) for account, letter in enumerate(letters)])
    assert (found.version, found.against) == ("policy-2", "policy-1")
    assert (found.comparisons, found.unanswered, found.people) == (7, 2, 5)
    assert (found.wins, found.losses, found.ties) == (2, 1, 2)
    assert found.win_rate is not None and found.win_rate.estimate == pytest.approx((2 + 2 / 2) / 5)
    assert "won 2 and lost 1 by the choices of 5 people, with 2 ties and 2 unanswered" in found.sentence


def test_the_first_choice_that_is_no_skip_counts_for_good() -> None:
    found = read([asked("SNO", 1), asked("ON", 2)])
    assert (found.wins, found.losses) == (1, 1)


def test_people_are_accounts_and_not_names() -> None:
    named = [asked("N", 1, name) for name in ("anna", "app anna", "app ben")]
    assert read(named).people == 1 and read(named).win_rate is None
    assert "One person speaks for themselves" in read(named).sentence
    found = read([asked("N", 1, "anna"), asked("N", 2, "anna"), asked("N", None, "anna"), asked("N", None, "ben")])
    assert found.people == 4


def test_a_person_counts_as_a_whole_and_few_are_not_trusted() -> None:
    """Two who always choose the one, and two the other: forty choices say no more of others than four."""
    alike = [asked(letter, account) for account, letter in enumerate("NNOO") for _ in range(10)]
    found = read(alike)
    alone, apart = found.win_rate, wilson(20, 40)
    four = clustered_share([1.0, 1.0, 0.0, 0.0], [0, 1, 2, 3])
    assert alone is not None and (alone.low, alone.high) == pytest.approx((four.low, four.high))
    assert alone.high - alone.low > 2 * (apart.high - apart.low)
    assert "from fewer than 5 people and so not to be trusted" in found.sentence
    assert found.decision == "cannot_tell" and "not decided yet" in found.sentence


def test_one_account_with_many_turns_decides_nothing_for_nine_others() -> None:
    loud = [asked("N", 0) for _ in range(200)]
    others = [asked("O", account) for account in range(1, 10) for _ in range(3)]
    found = read(loud + others)
    assert (found.wins, found.losses, found.people) == (200, 27, 10)
    assert (found.people_for, found.people_against) == (1, 9)
    assert found.win_rate is not None and found.win_rate.estimate == pytest.approx(0.1)
    assert found.decision == "cannot_tell" and "for those who were asked it is" not in found.sentence
    assert "Of these people 1 preferred it, 9 policy-1, and 0 neither." in found.sentence
    assert read(loud).decision == "cannot_tell", "a single person's choices are one bet"


def test_a_person_bets_by_the_first_choice_that_came_and_prefers_one() -> None:
    def at(arrived: int, letter: str, account: int) -> Comparison:
        one = asked(letter, account)
        return replace(one, verdicts=tuple(replace(verdict, arrived=arrived) for verdict in one.verdicts))

    found = read([one for n in range(12) for one in (at(3, "O", n), at(4, "O", n), at(2, "N", n), at(1, "T", n))])
    assert found.decided_share is not None and found.decided_share.estimate == 1.0 and found.decision == "better"
    assert found.people_against == 12 and "by the first preference of each person" in found.sentence


def test_what_was_reported_is_left_out_and_counted() -> None:
    found = read([asked("N", 1), replace(asked("O", 2), reported=True)])
    assert (found.comparisons, found.reported, found.losses, found.people) == (1, 1, 0, 1)
    assert "0 unanswered, and 1 left out that were reported." in found.sentence


@pytest.mark.parametrize("letter", "NO")
def test_it_is_decided_where_the_bettor_owns_twenty(letter: str) -> None:
    sign = 1.0 if letter == "N" else -1.0
    needed = next(n for n in range(1, 100) if bets.e_value({sign: n}) >= 20)
    before, after = (read([asked(letter, account) for account in range(count)]) for count in (needed - 1, needed))
    assert before.decision == "cannot_tell" and "not decided yet" in before.sentence
    assert after.decision == ("better" if letter == "N" else "worse")
    assert f"each person: for those who were asked it is {after.decision}." in after.sentence
    assert after.decided_share is not None and not after.decided_share.low <= 0.5 <= after.decided_share.high


def test_only_people_and_only_candidates_count_and_each_pair_is_apart() -> None:
    machine = Verdict(Choice.LEFT, Annotator("judge", AnnotatorKind.AI))
    one = asked("N")
    pair = Response("a", "policy-1"), Response("b", "initial")
    older = Comparison(one.prompt, *pair, AskedHow.CANDIDATE, 0.1, (machine,))
    other = Comparison(one.prompt, one.left, one.right, AskedHow.EVALUATION, 0.1, one.verdicts)
    found = outcomes([one, other, older, asked("")], ORDER)
    assert [(each.version, each.against, each.comparisons, each.wins) for each in found] == [
        ("policy-2", "policy-1", 2, 1),
        ("policy-1", "initial", 1, 0),
    ]
    assert found[1].sentence == "Put beside initial in the chat 1 times, policy-1 has no choice yet."
    assert outcomes([other], ORDER) == []
