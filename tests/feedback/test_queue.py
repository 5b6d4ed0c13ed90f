"""What is asked next: nothing twice, nothing of one's own, nothing more than needed, and with the stated chances."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.feedback.queue import MOST_AT_ONCE, SPACING, Queue, has_enough, still_to_get
from manners.settings import ServeSettings
from manners.types import Choice, DrawnHow, OpenComparison

PLAIN = ServeSettings(gold_share=0.0, repeat_share=0.0, random_share=1.0, overlap=1, agree=1)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def queue(serve: ServeSettings = PLAIN, count: int = 10, seed: int = 0, clock: Clock | None = None) -> Queue:
    made = Queue(serve, seed, clock or Clock())
    for number in range(count):
        made.add(OpenComparison(number, prompt=number))
    return made


def all_of(made: Queue, annotator: str, choice: Choice = Choice.LEFT) -> list[int]:
    seen = []
    while (draw := made.draw(annotator)) is not None:
        seen.append(draw.comparison)
        made.judge(annotator, draw.comparison, choice)
    return seen


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_each_comparison_gets_its_verdicts_from_different_people(
    overlap: int, count: int, people: int, seed: int
) -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0, overlap=overlap, agree=overlap), count, seed)
    seen = Counter(one for person in range(people) for one in all_of(made, f"p{person}"))
    assert all(seen[number] == min(overlap, people) for number in range(count))


def test_agreement_ends_the_asking_early() -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0, overlap=3, agree=2), count=1)
    for person, choice in (("a", Choice.LEFT), ("b", Choice.LEFT)):
        assert all_of(made, person, choice) == [0]
    assert all_of(made, "c") == []


def test_disagreement_goes_on_to_the_overlap() -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0, overlap=3, agree=2), count=1)
    asked = [
        all_of(made, p, c) for p, c in (("a", Choice.LEFT), ("b", Choice.RIGHT), ("c", Choice.TIE), ("d", Choice.TIE))
    ]
    assert asked == [[0], [0], [0], []]


@pytest.mark.parametrize(
    ("said", "waiting", "still"),
    [
        ("", 0, 3),
        ("L", 0, 2),
        ("LR", 0, 1),
        ("LRT", 0, 0),
        ("LL", 0, 0),
        ("SL", 0, 2),  # a skip is no verdict
        ("LS", 1, 2),  # who has it before them is still to give theirs
        ("LR", 1, 1),
        ("SSS", 0, 3),
        ("SSSS", 0, 0),
    ],
)
def test_how_many_verdicts_are_still_to_come_by_hand(said: str, waiting: int, still: int) -> None:
    """Three are asked for, or two alike; once four have skipped it, nobody is asked any more."""
    choices = [{"L": Choice.LEFT, "R": Choice.RIGHT, "T": Choice.TIE, "S": Choice.SKIP}[letter] for letter in said]
    serve = ServeSettings(overlap=3, agree=2, retire_after=4)
    assert still_to_get(choices, serve) == still
    assert has_enough(choices, serve, waiting) is (still <= waiting)
    assert has_enough([], ServeSettings(overlap=1, agree=1, retire_after=1)) is False


def test_nobody_judges_their_own_text() -> None:
    made = Queue(PLAIN, 0, Clock())
    made.add(OpenComparison(1, prompt=1, authors=frozenset({"anna", "policy-1"})))
    assert made.draw("anna") is None and made.left("anna") == 0
    assert made.draw("ben") is not None


@pytest.mark.parametrize("early", [True, False])
def test_nobody_judges_what_they_wrote_under_another_name(early: bool) -> None:
    made = Queue(PLAIN, 0, Clock())
    own = OpenComparison(1, prompt=1, authors=frozenset({"anna", "policy-1"}))
    if not early:
        made.add(own)
    made.writes_as("key of anna", "anna")
    made.writes_as("ben", "ben")
    if early:
        made.add(own)
    made.add(OpenComparison(2, prompt=2, authors=frozenset({"ben", "policy-1"})))
    assert all_of(made, "key of anna") == [2]
    assert all_of(made, "ben") == [1]


def test_what_is_before_somebody_is_kept_from_others_until_the_lease_ends() -> None:
    clock = Clock()
    made = queue(count=1, clock=clock)
    assert made.draw("a") is not None
    assert made.draw("b") is None and made.draw("a") is None
    clock.now = 60 * PLAIN.lease - 1
    assert made.draw("b") is None, "a lease is set in minutes, and has a second left"
    clock.now = 60 * PLAIN.lease
    assert made.draw("b") is not None
    made.release("b")
    assert made.draw("a") is None, "it may still be on a's screen"
    made.release("a")
    assert made.draw("a") is not None


def test_whoever_asks_for_one_after_another_and_judges_none_keeps_few_of_them_from_the_others() -> None:
    made = queue(count=3 * MOST_AT_ONCE)
    for again in (False, True):
        taken = [draw.comparison for _ in range(3 * MOST_AT_ONCE) if (draw := made.draw("a")) is not None]
        assert sorted(taken) == list(range(3 * MOST_AT_ONCE)) and made.draw("a") is None, again
        assert made.left("b") == 2 * MOST_AT_ONCE
        made.release("a")  # the page is loaded anew, and all of it begins again
        assert made.left("a") == made.left("b") == 3 * MOST_AT_ONCE
    taken = [draw.comparison for _ in range(3 * MOST_AT_ONCE) if (draw := made.draw("a")) is not None]
    assert set(all_of(made, "b")) == set(taken[:-MOST_AT_ONCE]), "what was given out last is on a screen"
    made.judge("a", taken[-2], Choice.LEFT)
    made.lease("a", taken[0])
    assert made.draw("b") is None, "what is judged makes room"
    made.lease("a", taken[1])
    assert all_of(made, "b") == [taken[-MOST_AT_ONCE]]


def test_ten_pages_of_two_are_kept_for_one_person_and_no_more() -> None:
    made = queue(count=21)
    pages = [[made.draw("a"), made.draw("a")] for _ in range(10)]
    assert made.left("b") == 1 and made.draw("a") is not None
    first = pages[0][0]
    assert first is not None and all_of(made, "b") == [first.comparison]


def test_a_pair_with_a_known_verdict_is_not_asked_twice_under_two_numbers() -> None:
    serve = ServeSettings(gold_share=0.5, repeat_share=0, random_share=1.0, overlap=3, agree=3)
    for seed in range(20):
        made = Queue(serve, seed, Clock())
        for number in range(4):
            made.add(OpenComparison(number, prompt=number, pair=frozenset({10 * number, 10 * number + 1})))
        made.add(OpenComparison(9, prompt=3, gold=True, pair=frozenset({30, 31})))
        assert made.left("a") == 5
        seen = all_of(made, "a")
        assert sorted(3 if one == 9 else one for one in seen) == [0, 1, 2, 3], "one of the two, and once"
        made.withdraw("a", seen[-1])
        assert len(all_of(made, "a")) == 1


def test_what_several_skip_is_retired() -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0, retire_after=2), count=1)
    assert [all_of(made, person, Choice.SKIP) for person in "abc"] == [[0], [0], []]


def test_what_was_reported_is_shown_to_nobody_until_it_is_allowed_again() -> None:
    made = queue(count=1)
    made.hold_back(0, True)
    assert made.draw("a") is None
    made.hold_back(0, False)
    assert made.draw("a") is not None


def test_a_verdict_that_was_taken_back_opens_its_comparison_again() -> None:
    made = queue(count=1)
    assert all_of(made, "a") == [0]
    made.withdraw("a", 0)
    assert all_of(made, "b") == [0]


def test_random_draws_are_uniform_and_say_with_which_chance() -> None:
    counts: Counter[int] = Counter()
    for seed in range(4000):
        draw = queue(count=5, seed=seed).draw("a")
        assert draw is not None and draw.drawn is DrawnHow.RANDOM and draw.probability == pytest.approx(1 / 5)
        assert draw.pool == 5
        counts[draw.comparison] += 1
    # By the binomial law a share of 1/5 in 4,000 draws lies within 4 standard errors of 800: 800 +- 101.
    assert all(abs(counts[number] - 800) < 101 for number in range(5))


def test_the_stated_chances_are_those_of_the_draws() -> None:
    """Spread 2 on a prompt with 3 verdicts is worth 1/2, less than 1 on a new prompt: comparison 2 is the top."""
    serve = ServeSettings(gold_share=0.2, repeat_share=0, random_share=0.4, overlap=9, agree=9)
    expected = {1: 0.08, 2: 0.8 * (0.1 + 0.6), 3: 0.08, 4: 0.08, 5: 0.1, 6: 0.1}
    counts: Counter[int] = Counter()
    for seed in range(4000):
        made = Queue(serve, seed, Clock())
        for number, prompt in ((1, 7), (2, 8), (3, 9), (4, 7)):
            made.add(OpenComparison(number, prompt))
        made.add(OpenComparison(5, 10, gold=True))
        made.add(OpenComparison(6, 11, gold=True))
        for person in "xyz":
            made.judge(person, 4, Choice.TIE)
        made.set_spread({1: 2.0, 2: 1.0})
        draw = made.draw("a")
        assert draw is not None
        counts[draw.comparison] += 1
        assert draw.probability == pytest.approx(expected[draw.comparison]), "in whichever of two ways it was drawn"
        assert draw.pool == (2 if draw.drawn is DrawnHow.GOLD else 4)
    for number, chance in expected.items():
        assert abs(counts[number] / 4000 - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5


def test_repeats_come_late_and_once() -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0.5, overlap=1, agree=1), count=200)
    seen = all_of(made, "a")
    places: dict[int, list[int]] = {}
    for place, number in enumerate(seen):
        places.setdefault(number, []).append(place)
    repeated = [found for found in places.values() if len(found) > 1]
    assert len(repeated) > 20 and all(len(found) == 2 for found in repeated)
    assert all(later - earlier > SPACING / 2 for earlier, later in repeated)


def test_ten_others_lie_between_a_comparison_and_its_repeat() -> None:
    serve = ServeSettings(gold_share=0, repeat_share=0.5, overlap=1, agree=1)
    runs = [all_of(queue(serve, 13, seed), "a") for seed in range(40)]
    assert all(len(set(seen[:11])) == 11 for seen in runs)
    early = [seen for seen in runs if seen[11] in seen[:11]]
    assert early and all(seen[11] == seen[0] for seen in early)


def test_the_stated_chances_of_repeats_are_those_of_the_draws() -> None:
    """Of twelve verdicts those on the first two lie far enough back; one was then taken back, and one reported."""
    serve = ServeSettings(gold_share=0.2, repeat_share=0.3, random_share=1.0, overlap=9, agree=9)
    counts: Counter[int] = Counter()
    for seed in range(2000):
        made = queue(serve, 17, seed)
        made.add(OpenComparison(17, prompt=17, gold=True))
        for number in (14, 15, 0, 1, *range(2, 12)):
            made.judge("a", number, Choice.LEFT)
        made.withdraw("a", 14)
        made.judge("b", 14, Choice.LEFT)
        made.hold_back(15, True)
        draw = made.draw("a")
        assert draw is not None
        chance, pool = {DrawnHow.GOLD: (0.2, 1), DrawnHow.REPEAT: (0.15, 2), DrawnHow.RANDOM: (0.125, 4)}[draw.drawn]
        assert draw.probability == pytest.approx(chance) and draw.pool == pool
        counts[draw.comparison] += 1
    expected = {17: 0.2, 0: 0.15, 1: 0.15} | dict.fromkeys((12, 13, 14, 16), 0.125)
    assert counts.keys() == expected.keys()
    for number, chance in expected.items():
        assert abs(counts[number] / 2000 - chance) < 4 * (chance * (1 - chance) / 2000) ** 0.5


def test_what_was_skipped_is_no_repeat_and_can_be_taken_back() -> None:
    serve = ServeSettings(gold_share=0, repeat_share=0.5, overlap=1, agree=1)
    made = queue(serve, 12)
    made.judge("a", 0, Choice.SKIP)
    made.withdraw("a", 0)
    for number in range(11):
        made.judge("a", number, Choice.SKIP)
    assert [draw and draw.comparison for draw in (made.draw("a"), made.draw("a"))] == [11, None]


def top(made: Queue) -> int:
    """Return what is drawn because the reward model's members differ about it, asking person after person."""
    for person in map(str, range(100)):
        draw = made.draw(person)
        assert draw is not None
        if draw.drawn is DrawnHow.DISAGREEMENT:
            return draw.comparison
        made.release(person)
    raise AssertionError("nothing was drawn for disagreement")


@pytest.mark.parametrize(("spread", "verdicts", "expected"), [(0.9, 1, 1), (1.1, 1, 2), (0.6, 2, 1), (0.7, 2, 2)])
def test_interest_is_spread_over_one_and_the_verdicts_on_the_prompt(
    spread: float, verdicts: int, expected: int
) -> None:
    """Comparison 1 has spread 2 on a prompt with so many verdicts, 2 the given one on a new prompt."""
    serve = ServeSettings(gold_share=0, repeat_share=0, random_share=0.3, overlap=9, agree=9)
    made = queue(serve, 4)
    made.add(OpenComparison(9, prompt=1))
    for person in "xyz"[:verdicts]:
        made.judge(person, 9, Choice.LEFT)
        made.judge(person, 9, Choice.RIGHT)  # who changes their mind counts once
    made.judge("w", 9, Choice.LEFT)
    made.withdraw("w", 9)
    for stranger, number in (("w", 9), ("w", 1), ("w", 77)):
        made.withdraw(stranger, number)  # there is nothing to take back any more
    made.set_spread({1: 2.0, 2: spread, 3: 0.1})
    assert top(made) == expected


def test_what_the_members_differ_about_most_is_drawn_though_two_others_are_alike() -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0, random_share=0.3), 5)
    made.set_spread({1: 1.0, 2: 1.0, 3: 2.0})
    assert top(made) == 3


def test_a_comparison_that_is_known_stays_as_it_is() -> None:
    made = queue(count=1)
    made.judge("a", 0, Choice.LEFT)
    made.add(OpenComparison(0, prompt=5))
    assert made.draw("b") is None and made.open == 0
    made.hold_back(77, True)
    made.lease("a", 77)
    made.judge("a", 77, Choice.LEFT)
    assert made.left("a") == 0, "what is not known is nothing to anybody"


def test_gold_is_given_once_to_each() -> None:
    made = queue(ServeSettings(gold_share=0.5, repeat_share=0), count=20)
    for number in (100, 101):
        made.add(OpenComparison(number, prompt=number, gold=True))
    for person in "abc":
        assert [one for one in sorted(all_of(made, person)) if one >= 100] == [100, 101]


def test_where_only_gold_is_left_it_is_drawn_for_certain() -> None:
    made = queue(ServeSettings(gold_share=0.2, repeat_share=0), count=0)
    for number in (100, 101, 102, 103):
        made.add(OpenComparison(number, prompt=number, gold=True))
    draws = [made.draw("a") for _ in range(5)]
    assert [one and (one.probability, one.pool) for one in draws] == [(1 / 4, 4), (1 / 3, 3), (1 / 2, 2), (1, 1), None]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_left_is_as_much_as_will_be_drawn(known: bool, held: bool) -> None:
    """A page gave a comparison back; then it was reported, or was not. What is left is counted by drawing it."""
    made = queue(ServeSettings(gold_share=0.5, repeat_share=0), count=3)
    made.add(OpenComparison(100, prompt=100, gold=True))
    first = made.draw("a")
    while first is not None and (first.comparison == 100) is not known:
        first = made.draw("a")
    assert first is not None
    made.release("a")
    made.hold_back(first.comparison, held)
    left = made.left("a")
    assert left == len(all_of(made, "a")) == (3 if held else 4)


def test_sides_are_drawn_for_each_view() -> None:
    made = queue(ServeSettings(gold_share=0, repeat_share=0, overlap=100, agree=100), count=1)
    exchanged = []
    for person in range(100):
        draw = made.draw(f"p{person}")
        assert draw is not None
        exchanged.append(draw.exchanged)
    assert 30 < sum(exchanged) < 70


def test_what_another_page_may_show_comes_last() -> None:
    made = queue(count=3)
    first = made.draw("a")
    assert first is not None and made.left("a") == 2
    made.release("a")
    assert made.left("a") == 3, "it is to be judged still"
    drawn = [made.draw("a") for _ in range(4)]
    assert [one and one.pool for one in drawn] == [2, 1, 1, None]
    assert drawn[2] is not None and drawn[2].comparison == first.comparison
    made.release("a")
    made.judge("a", first.comparison, Choice.LEFT)
    assert made.left("a") == 2


def test_what_was_answered_late_is_not_left_when_the_page_is_loaded_anew() -> None:
    """Its lease had ended, and somebody else may have it still; the same two answers stand under another number too."""
    clock = Clock()
    made = queue(replace(PLAIN, overlap=2, agree=2), count=2, clock=clock)
    for number in (10, 11):
        made.add(OpenComparison(number, prompt=10, pair=frozenset({1, 2})))
    drawn = [made.draw("a") for _ in range(3)]
    clock.now += 60 * PLAIN.lease
    assert made.draw("a") is None, "all of it is before them still"
    for one in drawn:
        assert one is not None
        made.judge("a", one.comparison, Choice.LEFT)
        made.release("a")
        assert made.left("a") == 2 - drawn.index(one)
    assert made.draw("a") is None and made.open == 4


def with_adversarial(serve: ServeSettings, seed: int, clock: Clock | None = None) -> Queue:
    """Four comparisons, 1 of which the members differ about, and two that a reward model chose, 5 and then 6."""
    made = Queue(serve, seed, clock or Clock())
    for number in (1, 2, 3, 4):
        made.add(OpenComparison(number, prompt=number))
    for number in (5, 6):
        made.add(OpenComparison(number, prompt=number, adversarial=True))
    made.set_spread({1: 2.0, 6: 9.0})
    return made


def test_what_a_reward_model_chose_comes_before_disagreement_with_the_stated_chances() -> None:
    """By hand: 0.8 of the draws are of new ones; of these 0.4 are uniform among four, and the rest is the first."""
    serve = ServeSettings(gold_share=0.2, repeat_share=0, random_share=0.4, overlap=9, agree=9)
    counts: Counter[int] = Counter()
    for seed in range(3000):
        made = with_adversarial(serve, seed)
        made.add(OpenComparison(7, 7, gold=True))
        draw = made.draw("a")
        assert draw is not None
        counts[draw.comparison] += 1
        how = {5: DrawnHow.ADVERSARIAL, 7: DrawnHow.GOLD}.get(draw.comparison, DrawnHow.RANDOM)
        chance, pool = {DrawnHow.ADVERSARIAL: (0.48, 2), DrawnHow.GOLD: (0.2, 1), DrawnHow.RANDOM: (0.08, None)}[how]
        assert (draw.drawn, draw.pool) == (how, pool) and draw.probability == pytest.approx(chance)
    expected = {1: 0.08, 2: 0.08, 3: 0.08, 4: 0.08, 5: 0.48, 7: 0.2}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[one] / 3000 - p) < 4 * (p * (1 - p) / 3000) ** 0.5 for one, p in expected.items())


def test_once_adversarial_ones_are_judged_disagreement_comes_next() -> None:
    serve = ServeSettings(gold_share=0, repeat_share=0, random_share=0.5, overlap=1, agree=1)
    for seed in range(40):
        made = with_adversarial(serve, seed)
        seen = [draw for _ in range(6) if (draw := made.draw("a")) is not None]
        assert sorted(draw.comparison for draw in seen) == [1, 2, 3, 4, 5, 6] and made.draw("a") is None
        chosen = [draw.comparison for draw in seen if draw.drawn is not DrawnHow.RANDOM]
        first = [one for one in chosen if one in (5, 6)]
        assert first == [5, 6], "in the order in which they were opened, and never by chance"
        assert chosen[:2] == [5, 6] and set(chosen[2:]) <= {1}


def test_where_all_draws_are_by_chance_what_a_model_chose_comes_last_and_for_certain() -> None:
    made = with_adversarial(PLAIN, 0)
    seen = [draw for _ in range(6) if (draw := made.draw("a")) is not None]
    assert {draw.comparison for draw in seen[:4]} == {1, 2, 3, 4}
    assert [(draw.comparison, draw.drawn, draw.probability, draw.pool) for draw in seen[4:]] == [
        (5, DrawnHow.ADVERSARIAL, 1.0, 2),
        (6, DrawnHow.ADVERSARIAL, 1.0, 1),
    ]


def test_adversarial_ones_are_counted_leased_given_back_and_withdrawn_as_others_are() -> None:
    made = Queue(PLAIN, 0, Clock())
    for number in (5, 6):
        made.add(OpenComparison(number, prompt=number, adversarial=True))

    def given(annotator: str) -> int | None:
        draw = made.draw(annotator)
        assert draw is None or (draw.drawn, draw.probability) == (DrawnHow.ADVERSARIAL, 1.0)
        return None if draw is None else draw.comparison

    assert made.open == made.left("a") == 2
    assert given("a") == 5 and (made.open, made.left("a"), made.left("b")) == (1, 1, 1)
    assert given("b") == 6 and given("c") is None, "both are before somebody"
    made.release("a")
    assert made.left("a") == made.open == 1, "it may be on a page of theirs still, and is given to them again last"
    assert given("c") == 5
    made.judge("c", 5, Choice.LEFT)
    made.judge("b", 6, Choice.LEFT)
    assert made.open == made.left("d") == 0
    made.withdraw("c", 5)
    made.withdraw("b", 6)
    made.hold_back(5, True)
    assert made.open == 1 and given("d") == 6
    made.hold_back(5, False)
    assert given("d") == 5


def test_what_a_reward_model_chose_is_never_repeated() -> None:
    serve = ServeSettings(gold_share=0, repeat_share=0.5, random_share=0.5, overlap=9, agree=9)
    for seed in range(10):
        made = Queue(serve, seed, Clock())
        for number in range(30):
            made.add(OpenComparison(number, prompt=number, adversarial=number < 15))
        seen = Counter(all_of(made, "a"))
        assert all(seen[number] == 1 for number in range(15)) and max(seen.values()) == 2
