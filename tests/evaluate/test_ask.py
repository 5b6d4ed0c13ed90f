"""Asking people about two versions: blind, on unused prompts, one bet per comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import betaln

from manners.errors import MannersError
from manners.evaluate.ask import AskOutcome, can_show, due_bets, open_comparisons, plan, read_outcome, spent, to_judge
from manners.feedback.statistics import Decision
from manners.settings import ServeSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Bet,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
)

Make = Callable[..., Answer]


def both(answer: Make, prompts: int) -> list[list[Answer]]:
    return [[answer(f"p{i}", f"{author} {i}", author) for i in range(prompts)] for author in ("old", "new")]


def test_the_plan_says_what_n_can_show() -> None:
    small, large = plan(50), plan(400)
    assert 0.5 < large.detectable_win_rate < small.detectable_win_rate < 1
    assert f"{100 * large.detectable_win_rate:.0f} %" in large.sentence
    with pytest.raises(MannersError, match="at least 10"):
        plan(5)


def wealth(wins: int, losses: int) -> float:
    """What a bettor against equal versions owns by the closed form, its bets spread by Beta(3, 3)."""
    return math.exp(float(betaln(3 + wins, 3 + losses) - betaln(3, 3)) + (wins + losses) * math.log(2))


def test_what_the_plan_promises_is_found_in_eight_of_ten_tries() -> None:
    """By following the chances of all results, against the closed form of what is owned after each."""
    rate = plan(50).detectable_win_rate
    open_still, found = {0: 1.0}, 0.0
    for n in range(1, 51):
        chances = dict.fromkeys(range(n + 1), 0.0)
        for wins, chance in open_still.items():
            chances[wins + 1] += chance * rate
            chances[wins] += chance * (1 - rate)
        ended = {wins for wins in chances if wealth(wins, n - wins) >= 20}
        found += sum(chances[wins] for wins in ended if 2 * wins > n)
        open_still = {wins: chance for wins, chance in chances.items() if wins not in ended}
    assert found == pytest.approx(0.8, abs=1e-6)


def test_so_many_can_show_a_difference_as_decide_it_where_one_version_wins_them_all() -> None:
    assert [n for n in range(1, 20) if can_show(n)] == [n for n in range(1, 20) if wealth(n, 0) >= 20]
    assert can_show(5, level=0.5) and not can_show(12, level=0.999)


def test_comparisons_are_blind_and_each_on_another_unused_prompt(answer: Make) -> None:
    before, after = both(answer, 400)
    asked = open_comparisons(before[:100], after[:100], [], 50, 0)
    opened = open_comparisons(before, after, asked, 200, 0)
    assert len({c.prompt for c in opened}) == 200
    assert not {c.prompt for c in opened} & {c.prompt for c in asked}
    assert all({c.left.author, c.right.author} == {"old", "new"} for c in opened)
    assert all(c.asked_how is AskedHow.EVALUATION and c.ask_probability == 200 / 350 for c in opened)
    assert 70 <= sum(c.left.author == "new" for c in opened) <= 130
    assert open_comparisons(before, after, asked, 200, 0) == opened
    assert open_comparisons(before, after, asked, 200, 1) != opened


def test_what_cannot_be_asked(answer: Make) -> None:
    before, after = both(answer, 20)
    after[0] = replace(after[0], response=replace(after[0].response, text=before[0].response.text + " "))
    assert len(open_comparisons(before, after, [], 19, 0)) == 19
    with pytest.raises(MannersError, match="only 19 unused prompts"):
        open_comparisons(before, after, [], 20, 0)
    with pytest.raises(MannersError, match="'old'"):
        open_comparisons(before, before, [], 5, 0)
    with pytest.raises(ValueError, match="same prompt"):
        open_comparisons(before, after[::-1], [], 5, 0)
    with pytest.raises(ValueError, match="shorter"):
        open_comparisons(before, after[:10], [], 5, 0)


def test_where_fewer_will_do_all_that_is_left_is_asked(answer: Make) -> None:
    before, after = both(answer, 20)
    opened = open_comparisons(before, after, [], 30, 0, fewer=True)
    assert len(opened) == 20 and all(one.ask_probability == 1 for one in opened)
    assert open_comparisons(before, after, opened, 30, 0, fewer=True) == []


def test_a_prompt_is_spent_by_versions_that_were_compared_on_it_and_by_what_is_trained_on() -> None:
    """What came with a file on a prompt that is kept for evaluation is not trained on, and leaves it for versions."""
    one = comparison("N")
    imported, kept = (replace(one, asked_how=AskedHow.IMPORTED, kept=kept) for kept in (False, True))
    evaluated = replace(one, kept=True)
    assert [spent([some]) for some in (imported, kept, evaluated)] == [{one.prompt}, set(), {one.prompt}]


def comparison(
    choices: str,
    new_left: bool = True,
    kind: AnnotatorKind = AnnotatorKind.HUMAN,
    by: Sequence[str] = "abcdefgh",
) -> Comparison:
    """Return a comparison with a verdict a letter: N for new, O for old, T, B(oth bad), S(kip), of each of `by`."""
    new, old = Response("a", "new"), Response("b", "old")
    left, right = (new, old) if new_left else (old, new)
    choice = {"T": Choice.TIE, "B": Choice.BOTH_BAD, "S": Choice.SKIP}
    sides = {"N": Choice.LEFT, "O": Choice.RIGHT}
    choice |= {letter: side if new_left else side.swapped() for letter, side in sides.items()}
    verdicts = tuple(Verdict(choice[c], Annotator(who, kind)) for c, who in zip(choices, by, strict=False))
    return Comparison((Turn(Role.USER, "p"),), left, right, AskedHow.EVALUATION, 1.0, verdicts)


def looked_at(given: Sequence[Comparison], overlap: int = 1, agree: int = 100, close: bool = False) -> list[Comparison]:
    """Return the comparisons, numbered, after those that can have placed their bets."""
    numbered = [replace(one, id=number) for number, one in enumerate(given)]
    due = due_bets(numbered, ServeSettings(overlap=overlap, agree=agree), closing=close)
    return [replace(one, bets=(*one.bets, *(bet for n, bet in due if n == one.id))) for one in numbered]


def read(given: Sequence[Comparison], overlap: int = 1, agree: int = 100, close: bool = False) -> AskOutcome:
    return read_outcome(looked_at(given, overlap, agree, close), "old", "new")


@pytest.mark.parametrize(
    ("choices", "overlap", "agree", "stake", "first"),
    [
        ("NN", 2, 2, 1, 2),
        ("NO", 1, 1, 1, 1),  # one is enough, and the second came too late
        ("NO", 2, 2, 0, 2),
        ("NT", 2, 2, 0.5, 2),
        ("NNO", 3, 3, 1 / 3, 3),
        ("BB", 2, 2, 0, 2),
        ("NNO", 2, 2, 1, 2),  # the third came after the bet
        ("NNO", 3, 2, 1, 2),  # the queue asks nobody once two agree, so there is nothing to wait for
        ("SNO", 2, 2, 0, 3),  # a skip is no answer
        ("SNSS", 2, 2, 1, 4),  # three have skipped it: nobody is asked any more
        ("SSSNO", 2, 2, 1, 4),  # three have skipped it, and somebody had it before them
        ("SSSS", 2, 2, None, 0),
        ("N", 2, 2, None, 0),
        ("SSS", 2, 2, None, 0),
        ("", 2, 2, None, 0),
    ],
)
def test_bets_by_hand(choices: str, overlap: int, agree: int, stake: float | None, first: int) -> None:
    """What is expected is worked out by hand from the rule of the queue."""
    for new_left in (True, False):
        [one] = looked_at([comparison(choices, new_left)], overlap, agree)
        assert one.bets == (() if stake is None else (Bet(AnnotatorKind.HUMAN, stake if new_left else -stake, first),))


def test_closing_bets_with_what_there_is() -> None:
    given = [comparison("N"), comparison("NO"), comparison("S"), comparison("")]
    before = read(given, overlap=3, agree=3)
    assert (before.wins, before.ties, before.unanswered, before.waiting) == (0, 0, 4, 2)
    assert "2 of the unanswered have too few verdicts so far" in before.sentence
    closed = read(given, overlap=3, agree=3, close=True)
    assert (closed.wins, closed.ties, closed.unanswered, closed.waiting) == (1, 1, 2, 0)
    assert "too few verdicts" not in closed.sentence


def test_without_closing_and_without_a_number_nothing_is_bet() -> None:
    serve = ServeSettings(overlap=2, agree=2)
    assert due_bets([replace(comparison("N"), id=1), comparison("NN")], serve) == []
    assert due_bets([replace(comparison("N"), id=1)], serve, closing=True) == [(1, Bet(AnnotatorKind.HUMAN, 1.0, 1))]


def test_every_verdict_counts_where_two_are_asked_for() -> None:
    """Planted: the second verdicts all say old. The first alone said that new is better."""
    given = [comparison("NO", i % 2 == 0) for i in range(30)]
    outcome = read(given, overlap=2, agree=2)
    assert (outcome.wins, outcome.losses, outcome.ties) == (0, 0, 30)
    assert outcome.decision is Decision.CANNOT_TELL
    turned = read_outcome(looked_at([comparison("OO")] * 12, 2, 2), "new", "old")
    assert (turned.wins, turned.losses, turned.decision) == (12, 0, Decision.BETTER)


LATER = {
    "a third verdict": "NNO",
    "corrections by those who gave it": "NNOO",
    "one taken back": "N",
    "all deleted": "",
}


@pytest.mark.parametrize("choices", LATER.values(), ids=LATER)
def test_nothing_that_comes_later_changes_a_bet(choices: str) -> None:
    [bet_on] = looked_at([comparison("NN")], 2, 2)
    later = comparison(choices, by="abab" if choices == "NNOO" else "abc")
    for closing in (False, True):
        # Nor does another setting.
        for overlap in (1, 2, 4):
            [again] = looked_at([replace(bet_on, verdicts=later.verdicts)], overlap, overlap, closing)
            assert again.bets == bet_on.bets
            outcome = read_outcome([again], "old", "new")
            assert (outcome.wins, outcome.losses) == (1, 0)
            late = max(0, len(choices) - 2)
            assert outcome.late == late
            assert (f"{late} verdicts came after" in outcome.sentence) is (late > 0)


def test_a_verdict_that_is_taken_back_moves_no_other() -> None:
    """Of three the third came too late: that is said still once the first is gone, and the third is no rater."""
    full = comparison("NNO")
    stored = replace(full, verdicts=tuple(replace(v, arrived=n) for n, v in enumerate(full.verdicts, 5)))
    [counted] = looked_at([stored], 2, 2)
    assert counted.bets == (Bet(AnnotatorKind.HUMAN, 1.0, 2, 6),)
    for verdicts, late, raters in (
        (counted.verdicts, 1, ("a", "b")),
        (counted.verdicts[1:], 1, ("b",)),
        (counted.verdicts[2:], 1, ()),
        (counted.verdicts[:2], 0, ("a", "b")),
    ):
        outcome = read_outcome([replace(counted, verdicts=verdicts)], "old", "new")
        assert (outcome.wins, outcome.late, outcome.raters) == (1, late, raters)
    unnumbered = (*full.verdicts[:1], *counted.verdicts[1:])
    assert read_outcome([replace(counted, verdicts=unnumbered)], "old", "new").raters == ("b",), "nobody knows when"


@given(st.text("NOTBS", max_size=9), st.text("abcd", min_size=9, max_size=9), st.integers(1, 4), st.integers(1, 4))
def test_looking_after_every_verdict_or_once_at_the_end_places_the_same_bets(
    choices: str, by: str, overlap: int, agree: int
) -> None:
    full = comparison(choices, by=by)
    [at_once] = looked_at([full], overlap, agree)
    [watched] = looked_at([comparison("")])
    for count in range(len(choices) + 1):
        [watched] = looked_at([replace(watched, verdicts=full.verdicts[:count])], overlap, agree)
    assert watched.bets == at_once.bets


def test_a_correction_before_the_bet_counts() -> None:
    assert read([comparison("NOO", by="aab")], overlap=2, agree=2).losses == 1
    assert read([comparison("NO", by="aa")], overlap=2, agree=2).waiting == 1


@pytest.mark.parametrize(
    ("letter", "decision", "words"),
    [("N", Decision.BETTER, "new is better than old"), ("O", Decision.WORSE, "new is worse than old")],
)
def test_decisions(letter: str, decision: Decision, words: str) -> None:
    outcome = read([comparison(letter, i % 2 == 0) for i in range(12)])
    assert outcome.decision is decision
    assert outcome.interval.excludes(0.5)
    assert outcome.e_value > 20
    assert outcome.sentence.startswith(words)


def test_balanced_verdicts_cannot_be_told() -> None:
    outcome = read([comparison("NO"[i % 2]) for i in range(40)] + [comparison("B")])
    assert outcome.decision is Decision.CANNOT_TELL
    assert outcome.sentence.startswith("It cannot be told yet")
    assert "1 ties" in outcome.sentence


def test_the_sentence_says_what_was_won_and_within_which_limits() -> None:
    """The limits are where the closed form B(3 + wins, 3 + losses) / (B(3, 3) p^wins (1 - p)^losses) reaches 20."""
    wins, losses = 12, 2

    def surplus(p: float) -> float:
        return float(betaln(3 + wins, 3 + losses) - betaln(3, 3)) - math.log(20 * p**wins * (1 - p) ** losses)

    share = wins / (wins + losses)
    low, high = brentq(surplus, 1e-9, share), brentq(surplus, share, 1 - 1e-9)
    outcome = read([comparison(letter) for letter in "N" * wins + "O" * losses + "T"] + [comparison("")])
    assert outcome.sentence.startswith(
        "It cannot be told yet which of new and old is better: by the verdicts of one person, new wins 12 of 14 decided"
        f" comparisons, 85.7 % of what they weigh (95 % interval, good at every look, {100 * low:.1f} to"
        f" {100 * high:.1f}), with 1 ties and 1 unanswered."
    )


def test_what_people_still_have_to_judge_by_hand() -> None:
    closed, ai = (
        replace(comparison(""), bets=(Bet(kind, 1.0, 1),)) for kind in (AnnotatorKind.HUMAN, AnnotatorKind.AI)
    )
    serve = ServeSettings(overlap=2, agree=2)
    by_ai = comparison("NN", kind=AnnotatorKind.AI)
    assert [to_judge([one], serve) for one in (comparison(""), comparison("N"), by_ai, ai)] == [1, 1, 1, 1]
    assert [to_judge([one], serve) for one in (comparison("NN"), comparison("NO"), closed)] == [0, 0, 0]
    assert to_judge([comparison("N"), closed, ai, comparison("NO")], serve) == 2


def test_the_sentence_says_whose_verdicts_these_are() -> None:
    alone = read([comparison("N")])
    assert "by the verdicts of one person, " in alone.sentence
    assert "One person speaks for themselves" in alone.sentence
    three = read([comparison("NN"), comparison("OO", by="bc"), comparison("SNN", by="dab")], overlap=2, agree=2)
    assert three.raters == ("a", "b", "c"), "who only skips has said nothing"
    assert "by the verdicts of 3 people, " in three.sentence and "speaks" not in three.sentence
    unheard = read([comparison("NNO"), comparison("N", by="d")], overlap=2, agree=2)
    assert unheard.raters == ("a", "b"), "neither has who came late, or whose comparison waits"
    nobody = read([comparison("")])
    assert "by the verdicts of people, " in nobody.sentence


def test_an_ai_annotator_is_read_under_its_own_name() -> None:
    given = looked_at([comparison("N", kind=AnnotatorKind.AI, by=["claude-x"])] * 12, 2, 2)
    outcome = read_outcome(given, "old", "new", kind=AnnotatorKind.AI)
    assert (outcome.wins, outcome.decision) == (12, Decision.BETTER), "the queue's overlap is one of people"
    assert "by the verdicts of the AI annotator claude-x, " in outcome.sentence
    both = looked_at([comparison("NO", kind=AnnotatorKind.AI, by=["claude-x", "judge-2"])], 2, 2)
    assert "the AI annotators claude-x, judge-2" in read_outcome(both, "old", "new", kind=AnnotatorKind.AI).sentence
    unheard = read_outcome([comparison("")], "old", "new", kind=AnnotatorKind.AI)
    assert "by the verdicts of an AI annotator, " in unheard.sentence
    assert "12 verdicts of an AI annotator are left out" in read_outcome(given, "old", "new").sentence


def test_kinds_of_annotators_are_never_mixed() -> None:
    mixed = comparison("N")
    mixed = replace(mixed, verdicts=(*mixed.verdicts, *comparison("O", kind=AnnotatorKind.SIMULATED).verdicts))
    given = [mixed, *[comparison("O", kind=AnnotatorKind.SIMULATED)] * 12]
    people = read(given)
    assert (people.wins, people.losses, people.unanswered) == (1, 0, 12)
    assert people.other_verdicts == {AnnotatorKind.SIMULATED: 13}
    assert "13 verdicts of simulated annotators are left out" in people.sentence
    simulated = read_outcome(looked_at(given), "old", "new", kind=AnnotatorKind.SIMULATED)
    assert simulated.losses == 13


def test_other_comparisons_are_not_read() -> None:
    others = [replace(comparison("N"), asked_how=how) for how in AskedHow if how is not AskedHow.EVALUATION]
    given = [*others, comparison("N"), comparison("O")]
    assert [bool(one.bets) for one in looked_at(given)] == [False] * len(others) + [True] * 2
    # Users' verdicts on their chats are not an evaluation, even with a bet that should not be there.
    assert read_outcome([replace(one, bets=looked_at(given)[-1].bets) for one in others], "old", "new").losses == 0
    assert read(given).wins == 1
    other = read_outcome(looked_at(given), "old", "newer")
    assert (other.wins, other.losses, other.ties, other.unanswered) == (0, 0, 0, 0)
