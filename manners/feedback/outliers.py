"""Users whose verdicts say nothing about the answers: those who choose by side, and those who are against everybody."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from scipy.special import betaincc, betaln

from manners.types import Annotator, Choice, Comparison, Verdict

RISK = 0.001
"""Chance that a user who judges the answers is ever set aside, however many verdicts they give."""
BY_SIDE = 0.75
"""Largest share of one side, as shown, that passes for a habit: sides drawn by coin average a habit out."""
SIDES = (Choice.LEFT, Choice.RIGHT)
OTHERS = 2
"""Others whose decided verdicts a comparison must have to say what they think: all users of one account are one."""


def outlying(usable: Iterable[tuple[Comparison, Sequence[Verdict]]]) -> set[Annotator]:
    """Return the users who are to be set aside, from comparisons with the latest verdict of each annotator.

    Three bettors start with 1 each: two against "at most `BY_SIDE` of the decided verdicts are for the left side as
    shown" (and for the right), by `side_wealth`, one against "the user agrees with another verdict on the same
    comparison at least as often as a coin", whose wealth is multiplied by 1 + (1/2 - share of the others who agree)
    at each comparison with decided verdicts of `OTHERS`. A user is outlying where the mean of the three is at least
    1 / `RISK`: by Ville's inequality that happens to a user for whom all three hold with probability `RISK` at most,
    whenever one looks. Who merely answers at random, or likes other things than most but agrees with most on the rest,
    is not set aside; nor is who was asked to label, who is one of the others. An account can make its users up, so that
    the others of an account have one voice, shared out among them.
    Source: Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid inference".
    """
    sides: defaultdict[Annotator, Counter[Choice]] = defaultdict(Counter)
    against: defaultdict[Annotator, float] = defaultdict(float)
    for comparison, verdicts in usable:
        decided = [verdict for verdict in verdicts if verdict.choice in SIDES]
        voices: defaultdict[Annotator | int, Counter[Choice]] = defaultdict(Counter)
        for verdict in decided:
            voices[_voice(verdict.annotator)][verdict.choice] += 1
        shares = {side: sum(voice[side] / voice.total() for voice in voices.values()) for side in SIDES}
        for verdict in filter(comparison.volunteered, decided):
            sides[verdict.annotator][verdict.shown_choice] += 1
            own, chosen = voices[_voice(verdict.annotator)], verdict.choice
            fellows = own.total() - 1
            if (others := len(voices) - (not fellows)) >= OTHERS:
                agreeing = shares[chosen] - own[chosen] / own.total() + (own[chosen] - 1) / max(1, fellows)
                against[verdict.annotator] += math.log1p(0.5 - agreeing / others)
    found = set()
    for user, shown in sides.items():
        left, right = shown[Choice.LEFT], shown[Choice.RIGHT]
        wealths = side_wealth(left, right), side_wealth(right, left), math.exp(min(against[user], 700.0))
        if sum(wealths) / len(wealths) >= 1 / RISK:
            found.add(user)
    return found


def _voice(user: Annotator) -> Annotator | int:
    """Return whom a user speaks for: their account, or themselves where none is known."""
    return user if user.account is None else user.account


def side_wealth(one: int, other: int) -> float:
    """Return the wealth of a bettor against "the rate of the one side is at most `BY_SIDE`", who started with 1.

    With b = `BY_SIDE`, n and m the counts: the likelihood ratio of rates drawn evenly above b and of b,
    (1 / (1 - b)) * integral from b to 1 of p^n (1 - p)^m dp / (b^n (1 - b)^m).
    """
    above = float(betaincc(one + 1, other + 1, BY_SIDE))
    if not above:
        return 0.0
    log_wealth = betaln(one + 1, other + 1) + math.log(above / (1 - BY_SIDE))
    log_wealth -= one * math.log(BY_SIDE) + other * math.log1p(-BY_SIDE)
    return math.exp(min(float(log_wealth), 700.0))
