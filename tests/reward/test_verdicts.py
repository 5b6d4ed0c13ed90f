"""What is learnt from a comparison, what is left out and counted, and that no opening is on both sides of a split."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.reward.groups import groups, set_aside, subset
from manners.reward.labelled import Counts, LabelledPair, LeftOut
from manners.reward.verdicts import authored, label, pooled, user_factors
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
    opening,
)
from tests.conftest import some

ANNA = Annotator("anna", AnnotatorKind.HUMAN)
BEN = Annotator("ben", AnnotatorKind.HUMAN)
CLEO = Annotator("cleo", AnnotatorKind.HUMAN)
JUDGE = Annotator("judge", AnnotatorKind.AI)


def comparison(*verdicts: Verdict, text: str = "Hello?", left: str = "Yes.", right: str = "No.") -> Comparison:
    return Comparison(
        prompt=(Turn(Role.USER, text),),
        left=Response(left, "someone"),
        right=Response(right, "someone else"),
        asked_how=AskedHow.RANDOM,
        verdicts=verdicts,
    )


def pair(group: str, left: float = 1.0, right: float = 0.0, tie: float = 0.0) -> LabelledPair:
    counts = Counts(float(left), float(right), float(tie))
    prompt = (Turn(Role.USER, group),)
    return LabelledPair(None, prompt, Response("a", "x"), Response("b", "y"), counts, counts, 0, group)


def only(*verdicts: Verdict) -> LabelledPair:
    (found,) = label([comparison(*verdicts)]).pairs
    return found


def test_every_verdict_is_counted_once_and_weighted_by_strength() -> None:
    found = only(
        Verdict(Choice.LEFT, ANNA, strength=3), Verdict(Choice.LEFT, BEN), Verdict(Choice.RIGHT, CLEO, strength=1)
    )
    assert found.counts == Counts(2, 1, 0)
    assert found.weights == Counts(2.5, 0.5, 0)


def test_both_bad_is_a_tie_and_is_counted_apart() -> None:
    found = only(Verdict(Choice.BOTH_BAD, ANNA), Verdict(Choice.TIE, BEN), Verdict(Choice.SKIP, CLEO))
    assert found.counts == found.weights == Counts(0, 0, 2)
    assert found.both_bad == 1


def test_the_latest_verdict_of_an_annotator_counts() -> None:
    assert only(Verdict(Choice.LEFT, ANNA), Verdict(Choice.TIE, BEN), Verdict(Choice.RIGHT, ANNA)).counts == Counts(
        0, 1, 1
    )


def test_a_skip_takes_an_earlier_choice_back() -> None:
    labelled = label(
        [
            comparison(Verdict(Choice.LEFT, ANNA), Verdict(Choice.SKIP, ANNA)),
            comparison(Verdict(Choice.TIE, BEN), text="Really?"),
        ]
    )
    assert labelled.left_out == {LeftOut.SKIPPED: 1}


def test_what_is_left_out_is_counted_by_reason() -> None:
    good = Verdict(Choice.LEFT, ANNA)
    labelled = label(
        [
            comparison(good),
            replace(comparison(good), asked_how=AskedHow.EVALUATION),
            comparison(good, left=" \n"),
            comparison(good, right="Yes. "),
            comparison(text="1"),
            comparison(text="2"),
            comparison(Verdict(Choice.LEFT, JUDGE), text="3"),
            comparison(Verdict(Choice.SKIP, ANNA), text="4"),
        ],
        AnnotatorKind.HUMAN,
    )
    assert len(labelled.pairs) == 1
    assert labelled.kind is AnnotatorKind.HUMAN
    assert labelled.left_out == {
        LeftOut.EVALUATION: 1,
        LeftOut.EMPTY: 1,
        LeftOut.IDENTICAL: 1,
        LeftOut.NO_VERDICT: 2,
        LeftOut.OTHER_KIND: 1,
        LeftOut.SKIPPED: 1,
    }


def test_kinds_of_annotators_are_never_mixed() -> None:
    mixed = [comparison(Verdict(Choice.LEFT, ANNA), Verdict(Choice.RIGHT, JUDGE))]
    with pytest.raises(MannersError, match=r"1 ai annotator and 1 human annotator.*set reward\.annotators"):
        label(mixed)
    with pytest.raises(MannersError, match="1 with only verdicts of another kind"):
        label(mixed, AnnotatorKind.SIMULATED)
    assert label(mixed, AnnotatorKind.AI).pairs[0].counts == Counts(0, 1, 0)


def test_no_comparisons_yet() -> None:
    with pytest.raises(MannersError, match=r"no comparisons to learn from.*manners sample.*manners comparisons import"):
        label([])
    with pytest.raises(MannersError, match="2 with no verdict"):
        label([comparison(), comparison(text="Really?")])


def test_opening_ignores_case_white_space_and_the_system_turn() -> None:
    system, first, reply = (
        Turn(Role.SYSTEM, "Be kind."),
        Turn(Role.USER, " What\n time IS it? "),
        Turn(Role.ASSISTANT, "x"),
    )
    assert opening((system, first, reply, Turn(Role.USER, "And now?"))) == "what time is it?" == opening((first,))


drawn_groups = st.lists(st.integers(0, 30), min_size=2, max_size=80).filter(lambda drawn: len(set(drawn)) > 1)


def pairs_of(drawn: list[int]) -> list[LabelledPair]:
    """One pair per number, in the group of that name, with the sides chosen in turn."""
    return [pair(str(group), left=i % 2, right=1 - i % 2) for i, group in enumerate(drawn)]


@given(drawn_groups, st.floats(0.02, 0.9), st.integers(0, 5))
def test_every_pair_is_on_exactly_one_side_and_no_opening_on_both(drawn: list[int], share: float, seed: int) -> None:
    pairs = pairs_of(drawn)
    split = set_aside(pairs, share, seed)
    assert sorted(map(id, split.train + split.held_out)) == sorted(map(id, pairs)) and split.divided == 0
    assert split.train and split.held_out
    assert not {p.group for p in split.train} & {p.group for p in split.held_out}
    assert split == set_aside(pairs, share, seed)


@given(drawn_groups, st.integers(0, 5))
def test_subsets_are_nested_and_keep_openings_whole(drawn: list[int], seed: int) -> None:
    pairs = pairs_of(drawn)
    quarter, half, whole = (subset(pairs, share, seed) for share in (0.25, 0.5, 1.0))
    assert set(map(id, quarter)) <= set(map(id, half)) <= set(map(id, whole)) == set(map(id, pairs))
    kept = {p.group for p in half}
    assert len(half) == sum(p.group in kept for p in pairs) >= len(pairs) / 2
    assert quarter


def test_about_the_share_is_set_aside_and_it_depends_on_the_seed() -> None:
    pairs = pairs_of(list(range(2000)))
    first, second = set_aside(pairs, 0.2, 0).held_out, set_aside(pairs, 0.2, 1).held_out
    assert 330 < len(first) < 470  # 400 expected, standard deviation 18
    assert first != second
    train = set_aside(pairs, 0.2, 0).train
    assert abs(len(subset(train, 0.25, 0)) - len(train) / 4) <= 1


def test_what_is_held_out_stays_held_out_when_more_arrives() -> None:
    pairs = pairs_of(list(range(200)))
    before, after = set_aside(pairs[:100], 0.2, 3), set_aside(pairs, 0.2, 3)
    assert set(before.held_out) <= set(after.held_out)
    assert set(before.train) <= set(after.train)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2.0, 0.0, 1.0), "all 6 verdicts that choose a side say `left`"),
        ((0.0, 2.0, 1.0), "all 6 verdicts that choose a side say `right`"),
        ((0.0, 0.0, 3.0), "none of the 9 verdicts prefers a response"),
    ],
)
def test_comparisons_all_one_way_are_refused(counts: tuple[float, float, float], message: str) -> None:
    with pytest.raises(MannersError, match=message):
        set_aside([pair(group, *counts) for group in "abc"], 0.2, 0)


def test_a_single_prompt_cannot_be_split() -> None:
    with pytest.raises(MannersError, match="all 2 comparisons are about one prompt"):
        set_aside([pair("a"), pair("a", left=0.0, right=1.0)], 0.2, 0)


def conversations(count: int, first: str, users: int = 0) -> list[Comparison]:
    """Say the same first, and each time something else next; in a chat, where `users` say it in turn."""
    said = []
    for i in range(count):
        who = Annotator(f"user {i % users}", AnnotatorKind.HUMAN) if users else ANNA
        one = comparison(Verdict(Choice.LEFT if i % 2 else Choice.RIGHT, who), text=first)
        begun = (*one.prompt, Turn(Role.ASSISTANT, "Hello."), Turn(Role.USER, f"{first} again, {i}"))
        said.append(replace(one, prompt=begun, asked_how=AskedHow.CHAT if users else AskedHow.RANDOM))
    return said


@pytest.mark.parametrize("covered", some([1.0, 0.9, 0.6, 0.3, 0.19], 2))
@pytest.mark.parametrize("users", [0, 50])
def test_about_the_share_is_set_aside_when_one_opening_covers_most(covered: float, users: int) -> None:
    common = round(covered * 1000)
    asked = conversations(common, "Hi", users)
    asked += [one for i in range(1000 - common) for one in conversations(1, f"Question {i}")]
    pairs = label(asked).pairs
    for seed in range(10):
        split = set_aside(pairs, 0.2, seed)
        assert 0.1 < len(split.held_out) / len(pairs) < 0.4
        assert split.divided == (common if covered > 0.2 else 0)
        prompts = [{p.prompt for p in side} for side in (split.train, split.held_out)]
        assert not prompts[0] & prompts[1]
        rare = [{opening(p.prompt) for p in side} - {"hi"} for side in (split.train, split.held_out)]
        assert not rare[0] & rare[1], "only the opening that holds too much is divided"


def test_users_who_hold_too_much_are_divided_by_opening_first() -> None:
    asked = [one for i in range(40) for one in conversations(5, f"Topic {i}", users=1)]
    asked += [one for i in range(40) for one in conversations(5, f"Other {i}")]
    split = set_aside(label(asked).pairs, 0.2, 0)
    openings = [{opening(p.prompt) for p in side} for side in (split.train, split.held_out)]
    assert split.divided == 200 and not openings[0] & openings[1] and 40 < len(split.held_out) < 130


@given(st.integers(0, 200), st.integers(2, 30), st.floats(0.02, 0.9))
def test_of_four_openings_at_least_two_are_held_out(seed: int, count: int, share: float) -> None:
    split = set_aside(pairs_of(list(range(count))), share, seed)
    held_out = len({p.group for p in split.held_out})
    assert held_out >= (2 if count >= 4 else 1) and len({p.group for p in split.train}) >= 1


def test_what_was_set_aside_before_is_what_is_set_aside_now() -> None:
    found = [sorted(p.group for p in set_aside(pairs_of(list(range(12))), 0.3, seed).held_out) for seed in (0, 1, 2)]
    assert found == [["3", "5", "9"], ["2", "3", "4"], ["0", "1", "4"]]


def test_what_is_set_aside_must_choose_a_side() -> None:
    decided = [pair(str(i), left=i % 2, right=1 - i % 2) for i in range(6)]
    held_out = {p.group for p in set_aside(decided, 0.2, 0).held_out}
    tied = [replace(p, counts=Counts(0, 0, 2)) if p.group in held_out else p for p in decided]
    with pytest.raises(
        MannersError, match=r"none of the verdicts that would be set aside .* chooses a side \(all are ti"
    ):
        set_aside(tied, 0.2, 0)


def chatted(text: str, *users: Annotator, how: AskedHow = AskedHow.CHAT) -> Comparison:
    return replace(comparison(*(Verdict(Choice.LEFT, user) for user in users), text=text), asked_how=how)


def test_a_user_of_the_chat_is_in_one_group() -> None:
    asked = [
        chatted("Why?", ANNA),
        chatted("How?", ANNA),
        chatted("How?", how=AskedHow.RANDOM),
        chatted("When?", BEN, how=AskedHow.API),
        chatted("Who?", BEN, ANNA, how=AskedHow.RANDOM),
        chatted("Who?", CLEO),
        chatted("What?", CLEO),
    ]
    assert groups(asked) == ["why?", "why?", "why?", "when?", "who?", "who?", "who?"]
    assert groups(asked[:2]) == ["why?", "how?"], "of one user nothing could be set aside"
    assert groups([replace(one, asked_how=AskedHow.RANDOM) for one in asked]) == [opening(one.prompt) for one in asked]


def arriving(place: int, one: Comparison) -> Comparison:
    return replace(one, verdicts=tuple(replace(verdict, arrived=place) for verdict in one.verdicts))


def test_a_group_is_named_by_what_was_judged_first() -> None:
    asked = [
        arriving(9, chatted("How?", CLEO, how=AskedHow.RANDOM)),  # asked about first, and judged last
        arriving(1, chatted("Why?", ANNA)),
        arriving(3, chatted("When?", BEN)),
        arriving(4, chatted("How?", ANNA)),
        arriving(6, chatted("Ah?", ANNA)),
    ]
    assert groups(asked) == ["why?", "why?", "when?", "why?", "why?"]
    assert groups(asked[1:3]) == ["why?", "when?"], "and was before the rest came"


def test_who_was_given_a_chat_to_label_joins_nothing() -> None:
    asked = [chatted("Why?", ANNA), chatted("How?", BEN)]
    labelled = Verdict(Choice.LEFT, CLEO, drawn=DrawnHow.RANDOM, draw_probability=0.5)
    asked = [replace(one, verdicts=(*one.verdicts, labelled)) for one in asked]
    assert groups(asked) == ["why?", "how?"]


users = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=2, max_size=60)


@given(users, st.integers(1, 59))
def test_what_users_say_later_names_no_group_anew(said: list[tuple[int, int]], known: int) -> None:
    chats = [chatted(f"{text}?", Annotator(f"user {user}", AnnotatorKind.HUMAN)) for text, user in said]
    asked = [comparison(text="Other"), comparison(text="More"), *chats]
    before, after = groups(asked[: known + 2]), groups(asked)
    oldest: dict[str, int] = {}
    for place, name in enumerate(after):
        oldest.setdefault(name, place)
    for name, place in oldest.items():
        assert name == opening(asked[place].prompt)
        assert place >= len(before) or before[place] == name


@given(users, st.integers(0, 5))
def test_no_user_of_the_chat_is_on_both_sides(said: list[tuple[int, int]], seed: int) -> None:
    asked = [chatted(f"{text}?", Annotator(f"user {user}", AnnotatorKind.HUMAN)) for text, user in said]
    asked[0] = replace(asked[0], verdicts=(replace(asked[0].verdicts[0], choice=Choice.RIGHT),))
    asked += [
        comparison(Verdict(Choice.LEFT, ANNA), text="Other"),
        comparison(Verdict(Choice.RIGHT, ANNA), text="More"),
    ]
    pairs = label(asked).pairs
    split = set_aside(pairs, 0.3, seed)
    if split.divided:
        assert max(Counter(p.group for p in pairs).values()) > 0.3 * len(pairs)
        return
    by_opening = {f"{text}?": set[int]() for text, _ in said}
    for text, user in said:
        by_opening[f"{text}?"].add(user)
    sides = [{opening(p.prompt) for p in side} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1]
    present = [set().union(*(by_opening.get(text, set()) for text in side)) for side in sides]
    assert not present[0] & present[1]


def test_what_was_reported_is_left_out() -> None:
    good = Verdict(Choice.LEFT, ANNA)
    labelled = label([comparison(good), replace(comparison(good, text="Really?"), reported=True)])
    assert labelled.left_out == {LeftOut.REPORTED: 1} and len(labelled.pairs) == 1


def test_rows_on_one_pair_are_one_comparison() -> None:
    asked = [
        comparison(Verdict(Choice.LEFT, ANNA)),
        comparison(Verdict(Choice.LEFT, BEN), left="No.", right="Yes."),
        comparison(Verdict(Choice.LEFT, CLEO), text="Other?"),
        replace(comparison(Verdict(Choice.TIE, CLEO)), asked_how=AskedHow.IMPORTED),
    ]
    both = label(asked)
    assert both.left_out == {}
    assert [p.counts for p in both.pairs] == [Counts(1, 1, 1), Counts(1, 0, 0)]
    assert [p.left.text for p in both.pairs] == ["Yes.", "Yes."]
    assert [v.exchanged for v in pooled(asked)[0].verdicts] == [False, True, False]
    assert pooled([chatted("Hm?", ANNA)])[0].asked_how is AskedHow.CHAT
    assert [p.shown_left for p in both.pairs] == [2.0, 1.0]
    assert pooled(pooled(asked)) == pooled(asked)


def test_what_has_rules_of_its_own_is_not_pooled_with_the_rest() -> None:
    given = comparison(Verdict(Choice.LEFT, ANNA))
    kinds = [AskedHow.RANDOM, AskedHow.EVALUATION, AskedHow.GOLD, AskedHow.GOLD, AskedHow.CHAT]
    asked = [replace(given, asked_how=how) for how in kinds]
    deleted = replace(given, left=Response(DELETED, "x"), right=Response(DELETED, "x"))
    cut = replace(given, left=replace(given.left, finish_reason=FinishReason.LENGTH))
    assert pooled([*asked, deleted, deleted, cut]) == [*asked, deleted, deleted, cut]
    joined = pooled([*asked, replace(given, asked_how=AskedHow.API), replace(given, reported=True)])
    assert [one.asked_how for one in joined] == kinds and [one.reported for one in joined] == [True] + [False] * 4
    assert len(joined[4].verdicts) == 2
    other = replace(given, left=replace(given.left, author="x"))
    assert len(pooled([given, other])) == 1 and pooled([given, other], authored) == [given, other]


def test_the_nameless_of_two_comparisons_are_two_people() -> None:
    """As an older import left them: whoever preferred the other text stood in a comparison of the opposite order."""
    nobody = Annotator("imported", AnnotatorKind.HUMAN)
    one = comparison(Verdict(Choice.LEFT, nobody), Verdict(Choice.TIE, Annotator("imported-2", AnnotatorKind.HUMAN)))
    other = comparison(Verdict(Choice.LEFT, nobody), left="No.", right="Yes.")
    [joined] = pooled([one, other])
    assert sorted(v.annotator.name for v in joined.verdicts) == ["imported", "imported-2", "imported-3"]
    assert only(*joined.verdicts).counts == Counts(1, 1, 1)


def test_what_is_about_prompts_kept_for_evaluation_is_left_out() -> None:
    good = Verdict(Choice.LEFT, ANNA)
    labelled = label([comparison(good), replace(comparison(good, text="Really?"), kept=True)])
    assert labelled.left_out == {LeftOut.KEPT: 1} and len(labelled.pairs) == 1


def test_conversations_of_real_people_are_split_by_opening(shared_data: Path) -> None:
    comparisons = []
    with gzip.open(shared_data / "hh_rlhf_harmless" / "pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            first = row["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0]
            texts = [row["chosen"], row["rejected"]]
            choice = (Choice.LEFT, Choice.RIGHT)[number % 2]
            left, right = texts if choice is Choice.LEFT else reversed(texts)
            comparisons.append(comparison(Verdict(choice, ANNA), text=first, left=left, right=right))
    labelled = label(comparisons)
    assert len(labelled.pairs) + sum(labelled.left_out.values()) == len(comparisons) == 1775
    split = set_aside(labelled.pairs, 0.2, 0)
    assert not {p.group for p in split.train} & {p.group for p in split.held_out}
    assert 0.15 < len(split.held_out) / len(labelled.pairs) < 0.25


def said_by(busy: Annotator, count: int, how: AskedHow) -> list[Comparison]:
    """Comparisons whose verdicts are for the left one, shown on either side in turn, but for the last one."""
    verdicts = [Verdict(Choice.LEFT, busy, exchanged=bool(i % 2)) for i in range(count)]
    one = [replace(comparison(v, text=f"{busy.name} {i}"), asked_how=how) for i, v in enumerate(verdicts)]
    return [*one[:-1], replace(one[-1], verdicts=(Verdict(Choice.RIGHT, busy),))]


def test_one_user_weighs_no_more_than_a_share_of_all() -> None:
    """By hand: 90 verdicts of labellers and 60 of one user; at 10 % of the whole the user has 10 beside the 90."""
    asked = said_by(ANNA, 90, AskedHow.RANDOM) + said_by(BEN, 60, AskedHow.CHAT)
    labelled = label(asked, user_share=0.1)
    weights = [sum(pair.weights) for pair in labelled.pairs]
    assert weights[:90] == [1.0] * 90 and sum(weights[90:]) == pytest.approx(10)
    assert labelled.limited == 1
    assert [sum(pair.counts) for pair in labelled.pairs] == [1.0] * 150, "what is measured counts every verdict once"


@pytest.mark.parametrize("how", [AskedHow.CHAT, AskedHow.RANDOM])
def test_who_chooses_by_side_is_set_aside_where_they_came_by_themselves(how: AskedHow) -> None:
    asked = said_by(ANNA, 40, AskedHow.RANDOM)
    clicked = [replace(one, verdicts=(Verdict(Choice.LEFT, BEN),)) for one in said_by(BEN, 40, how)]
    labelled = label(asked + clicked)
    volunteered = how is AskedHow.CHAT
    assert labelled.outlying == volunteered
    assert labelled.left_out == ({LeftOut.OUTLYING: 40} if volunteered else {})
    assert len(labelled.pairs) == (40 if volunteered else 80)


def test_annotators_who_were_asked_to_label_are_not_limited() -> None:
    labelled = label(said_by(ANNA, 90, AskedHow.RANDOM) + said_by(BEN, 10, AskedHow.IMPORTED), user_share=0.05)
    assert labelled.limited == 0 and all(sum(pair.weights) == 1 for pair in labelled.pairs)


def given_out(some: list[Comparison]) -> list[Comparison]:
    """Comparisons that a queue has put before whoever judged them."""
    return [
        replace(one, verdicts=tuple(replace(v, drawn=DrawnHow.RANDOM, draw_probability=0.5) for v in one.verdicts))
        for one in some
    ]


@pytest.mark.parametrize("how", [AskedHow.CHAT, AskedHow.API])
def test_who_was_asked_to_label_chats_is_not_limited_but_who_chats_is(how: AskedHow) -> None:
    """By hand: 90 verdicts on shared chats that a queue gave out, and 60 of a user; of the whole a tenth is 10."""
    asked = [*given_out(said_by(ANNA, 90, how)), *said_by(BEN, 60, how)]
    weights = [sum(pair.weights) for pair in label(asked, user_share=0.1).pairs]
    assert weights[:90] == [1.0] * 90 and sum(weights[90:]) == pytest.approx(10)
    both = [replace(one, verdicts=(*one.verdicts, *given_out(said_by(CLEO, 1, how))[0].verdicts)) for one in asked[90:]]
    together = label([*asked[:90], *both], user_share=0.1)
    assert sum(sum(pair.weights) for pair in together.pairs[90:]) == pytest.approx(60 + (90 + 60) / 9)


def test_who_chooses_by_side_where_they_label_chats_is_not_set_aside() -> None:
    clicked = [replace(one, verdicts=(Verdict(Choice.LEFT, BEN),)) for one in said_by(BEN, 40, AskedHow.CHAT)]
    labelled = label([*said_by(ANNA, 40, AskedHow.RANDOM), *given_out(clicked)])
    assert labelled.outlying == 0 and len(labelled.pairs) == 80
    own = [replace(one, prompt=(Turn(Role.USER, f"own {n}"),)) for n, one in enumerate(clicked)]
    mixed = label([*said_by(ANNA, 40, AskedHow.RANDOM), *given_out(clicked), *own])
    assert mixed.outlying == 1 and len(mixed.pairs) == 80, "what they said as a user is, and what they labelled is not"


def test_where_too_few_users_are_all_there_is_no_limit_is_set() -> None:
    labelled = label(said_by(ANNA, 9, AskedHow.API) + said_by(BEN, 3, AskedHow.API), user_share=0.05)
    assert labelled.limited == 0 and all(sum(pair.weights) == 1 for pair in labelled.pairs)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(0, 300),
    st.sampled_from([0.05, 0.1, 0.3, 1.0]),
)
def test_no_user_is_above_the_limit_and_none_below_it_is_touched(counts: list[int], asked: int, share: float) -> None:
    users = [Annotator(f"user {number}", AnnotatorKind.HUMAN) for number in range(len(counts))]
    given_by = [
        (replace(comparison(), asked_how=AskedHow.API), [Verdict(Choice.LEFT, user)] * count)
        for user, count in zip(users, counts, strict=True)
    ]
    given_by.append((comparison(), [Verdict(Choice.LEFT, ANNA)] * asked))
    factors = user_factors(given_by, share)
    weights = {user: count * factors.get(user, 1.0) for user, count in zip(users, counts, strict=True)}
    whole = asked + sum(weights.values())
    if asked or len(users) * share >= 1:
        assert max(weights.values()) <= share * whole * (1 + 1e-9)
    assert all(0 < factor < 1 for factor in factors.values())
    for user in factors:
        assert weights[user] == pytest.approx(share * whole)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1, max_size=8),
    st.integers(0, 300),
    st.sampled_from([0.02, 0.05, 0.2, 1.0]),
    st.sampled_from([0.1, 0.25, 0.5, 1.0]),
)
def test_no_account_is_above_its_limit_whatever_users_it_names(
    counts: list[list[int]], asked: int, share: float, account_share: float
) -> None:
    given_by = [(comparison(), [Verdict(Choice.LEFT, ANNA)] * asked)]
    said: dict[Annotator, int] = {}
    for account, users in enumerate(counts):
        for number, count in enumerate(users):
            said[Annotator(f"{account}:{number}", AnnotatorKind.HUMAN, account)] = count
    given_by += [
        (replace(comparison(), asked_how=AskedHow.API), [Verdict(Choice.LEFT, u)] * n) for u, n in said.items()
    ]
    factors = user_factors(given_by, share, account_share)
    weights = {user: count * factors.get(user, 1.0) for user, count in said.items()}
    whole = asked + sum(weights.values())
    assert all(0 < factor < 1 for factor in factors.values())
    if asked:  # then both limits can hold together
        of = [sum(weight for user, weight in weights.items() if user.account == one) for one in range(len(counts))]
        assert max(of) <= account_share * whole * (1 + 1e-4) and max(weights.values()) <= share * whole * (1 + 1e-4)
    if account_share == 1:
        assert factors == pytest.approx(user_factors(given_by, share))
    if share == account_share == 1:
        assert not factors


def test_a_thousand_made_up_users_are_one_account() -> None:
    honest = [Annotator(f"reader {number}", AnnotatorKind.HUMAN, number) for number in range(1, 41)]
    made_up = [Annotator(f"app:{number}", AnnotatorKind.HUMAN, 99) for number in range(1000)]
    asked = [one for user in (*honest, *made_up) for one in said_by(user, 1, AskedHow.API)]
    weights = [sum(pair.weights) for pair in label(asked, user_share=0.05, account_share=0.25).pairs]
    assert weights[:40] == [1.0] * 40
    assert sum(weights[40:]) == pytest.approx(40 / 3, rel=1e-4), "a quarter of the whole: 40 + 40 / 3"
    assert sum(sum(pair.weights) for pair in label(asked, user_share=0.05).pairs) == 1040, (
        "each alone is below its limit"
    )


def test_known_verdicts_are_never_learnt_from() -> None:
    gold = replace(comparison(Verdict(Choice.LEFT, ANNA)), asked_how=AskedHow.GOLD)
    labelled = label([gold, comparison(Verdict(Choice.LEFT, ANNA))])
    assert len(labelled.pairs) == 1 and labelled.left_out == {LeftOut.GOLD: 1}
