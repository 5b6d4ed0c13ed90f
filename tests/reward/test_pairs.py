"""Pairs as the model reads them: both sides see one prompt, and what cannot be told apart is not learnt from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manners.errors import MannersError
from manners.results import Shortened
from manners.reward.groups import divided
from manners.reward.labelled import LeftOut
from manners.reward.pairs import read, render_compared, sayable, sides_said, unended
from manners.reward.train import train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.text import Rendered
from manners.types import Comparison, FinishReason, Response, Role, Turn
from tests.reward.planted import comparisons
from tests.worlds import BOS, END, TEMPLATE, tiny_pretrained, tiny_renderer

CONTEXT = 128
TALK = (
    Turn(Role.SYSTEM, "Be kind."),
    Turn(Role.USER, "How do I bake bread without yeast?"),
    Turn(Role.ASSISTANT, "Mix flour and water, and wait."),
    Turn(Role.USER, "And how long does it take in the oven, if I may ask?"),
)
SHORT = Response("An hour, thank you.", "a", FinishReason.STOP)
LONG = Response("the bread takes long " * 20, "b", FinishReason.STOP)
"""Longer than half the context."""


def planted(left: Response, right: Response) -> Comparison:
    """A comparison of these two, judged like the others."""
    return replace(comparisons(1, agreement=1.0)[0], prompt=TALK, left=left, right=right, id=99)


def test_both_sides_of_a_pair_see_one_prompt_shortened_once() -> None:
    renderer = tiny_renderer(context=CONTEXT)
    _, rendered = read(renderer, label([planted(SHORT, LONG)]))
    left, right = (rendered[TALK, side] for side in (SHORT, LONG))
    whole = len(renderer.prompt_ids(TALK)[0])
    assert whole + len(renderer.response_ids(SHORT)) <= CONTEXT, "alone, the short one would have seen it all"
    assert left.prompt_ids == right.prompt_ids and len(left.prompt_ids) < whole
    assert left.prompt_ids[0] == BOS and "Be kind." in renderer.tokenizer.decode(list(left.prompt_ids))
    assert left.response_ids == renderer.response_ids(SHORT)
    assert right.response_ids[-1] == END and right.length == CONTEXT
    assert left.shortened and right.shortened
    lost = whole - len(left.prompt_ids)
    assert left.dropped == lost and right.dropped == lost + len(renderer.response_ids(LONG)) - len(right.response_ids)


def test_all_that_is_compared_on_a_prompt_sees_the_same_of_it() -> None:
    # A third answer stands in no pair with the long one, but is scored once, for pairs with others that do.
    renderer = tiny_renderer(context=CONTEXT)
    third = replace(SHORT, text="Half an hour.")
    other = (Turn(Role.USER, "Hi"),)
    exchanges = [(TALK, SHORT), (other, SHORT), (TALK, third), (TALK, LONG), (TALK, SHORT)]
    rendered = render_compared(renderer, exchanges)
    assert list(rendered) == exchanges[:-1], "once each, in the order given"
    assert len({rendered[TALK, side].prompt_ids for side in (SHORT, third, LONG)}) == 1
    assert rendered[other, SHORT] == renderer.render(other, SHORT), "other prompts are not touched"


def test_what_differs_only_past_the_context_is_left_out_and_counted() -> None:
    world = tiny_pretrained(context=CONTEXT)
    alike = planted(LONG, replace(LONG, text=LONG.text + "thank you"))
    good = comparisons(20, agreement=1.0)
    settings = RewardSettings(members=1, epochs=1, curve=False, set_aside=0.3)
    trained = train(settings, 0, world, [*good, alike])
    assert trained.labelled.left_out == {LeftOut.ALIKE: 1}
    assert {pair.comparison_id for pair in trained.labelled.pairs} == {c.id for c in good}
    roomy = read(tiny_renderer(context=1024), label([*good, alike]))[0]
    assert len(roomy.pairs) == 21 and not roomy.left_out, "it differs where there is room for it"
    with pytest.raises(
        MannersError, match=r"all 1 comparisons are alike once they are shortened to model\.context = 128"
    ):
        read(world.renderer, label([alike]))


def test_what_was_cut_is_counted_with_its_tokens() -> None:
    # 40 pairs of two sides that fit half the context each, and one side that does not fit.
    world = tiny_pretrained(context=CONTEXT)
    good = comparisons(40, agreement=1.0)
    settings = RewardSettings(members=1, epochs=1, curve=False, set_aside=0.3)
    fits = train(settings, 0, world, good)
    assert fits.shortened == Shortened(count=0, share=0.0, tokens=0)
    prompt = (Turn(Role.USER, "Hi"),)
    trained = train(settings, 0, world, [*good, replace(planted(SHORT, LONG), prompt=prompt)])
    encode = world.renderer.tokenizer.encode
    whole = len(world.renderer.prompt_ids(prompt)[0]) + len(encode(LONG.text, add_special_tokens=False)) + 1
    sides = len({(c.prompt, side) for c in good for side in (c.left, c.right)}) + 2
    assert trained.shortened == Shortened(count=1, share=1 / sides, tokens=whole - CONTEXT)


def test_forty_pairs_that_differ_only_past_the_context_are_not_learnt_from() -> None:
    renderer = tiny_renderer(context=CONTEXT)
    past = [
        replace(
            planted(LONG, replace(LONG, text=LONG.text + f"and {n}")), prompt=(Turn(Role.USER, f"{n}?"),), id=1000 + n
        )
        for n in range(40)
    ]
    good = comparisons(20, agreement=1.0)
    labelled, _ = read(renderer, label([*good, *past]))
    assert labelled.left_out == {LeftOut.ALIKE: 40} and len(labelled.pairs) == 20


REFUSING = "{% if messages[-1]['content'].startswith('question') %}{{ raise_exception('no questions') }}{% endif %}"


@pytest.mark.parametrize("count", [1, 2])
def test_where_the_template_refuses_every_prompt_it_is_said_why(count: int) -> None:
    with pytest.raises(MannersError, match=rf"refuses the prompts of all {count} comparisons \(.*no questions.*\)"):
        read(tiny_renderer(REFUSING + TEMPLATE), label(comparisons(count, agreement=1.0)))


def test_pairs_that_fit_are_rendered_each_as_alone() -> None:
    renderer = tiny_renderer()
    labelled = label(comparisons(10, agreement=1.0))
    same, rendered = read(renderer, labelled)
    assert same == labelled
    assert all(found == renderer.render(*exchange) and not found.shortened for exchange, found in rendered.items())


@pytest.mark.parametrize("seed", range(4))
def test_what_no_policy_can_say_sets_no_other_groups_aside(seed: int) -> None:
    """Of few groups another would take the place of one that is gone: one that a reward model has learned from."""
    labelled = label(comparisons(12, agreement=0.5))
    labelled = replace(labelled, pairs=tuple(replace(pair, group=str(n)) for n, pair in enumerate(labelled.pairs)))
    split = divided(labelled.pairs, RewardSettings(set_aside=0.2), seed)
    sides = [(pair.prompt, side) for pair in labelled.pairs for side in (pair.left, pair.right)]
    rendered = {exchange: Rendered((1,), (10, 20 + place)) for place, exchange in enumerate(sides)}
    gone = split.held_out[0]
    [token] = {rendered[gone.prompt, gone.left].response_ids[-1]}
    kept = sides_said(split, rendered, {token})
    assert kept.train == split.train and kept.held_out == split.held_out[1:]
    with pytest.raises(MannersError, match="of the comparisons to learn from none is left"):
        sides_said(split, rendered, {10})


def test_a_pair_with_a_side_that_no_policy_can_say_is_left_out_and_counted() -> None:
    labelled = label(comparisons(4, agreement=1.0))
    sides = [(pair.prompt, side) for pair in labelled.pairs for side in (pair.left, pair.right)]
    rendered = {exchange: Rendered((1,), (10, 20 + place)) for place, exchange in enumerate(sides)}
    kept = sayable(labelled, rendered, {21, 24})  # one is said on the right of the first, one on the left of the third
    assert kept.pairs == labelled.pairs[1::2] and kept.left_out == {LeftOut.UNSAYABLE: 2}
    assert sayable(labelled, rendered, {1}) == labelled, "a prompt is not said"
    with pytest.raises(MannersError, match="all 4 comparisons have a response"):
        sayable(labelled, rendered, {10})


def test_a_policy_learns_no_end_where_a_response_was_cut_to_fit() -> None:
    renderer = tiny_renderer(context=CONTEXT)
    _, rendered = read(renderer, label([planted(SHORT, LONG)]))
    learned = unended(renderer, rendered)
    whole, cut = rendered[TALK, SHORT], rendered[TALK, LONG]
    assert learned[TALK, SHORT] == whole and whole.response_ids[-1] == END
    assert learned[TALK, LONG].response_ids == cut.response_ids[:-1] and cut.response_ids[-1] == END
    assert learned[TALK, LONG].dropped == cut.dropped + 1, "the end that is not learned is a token left out, too"
