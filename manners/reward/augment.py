"""Pairs that nobody has judged, made of answers at hand: what is worse whoever judges, and what is no better or worse.

A model that has only seen answers to the prompt they stand under need not read the prompt, and one that has never seen
an answer break off need not mind. Four kinds, as many of each:

    other    the answer that people chose, over an answer to another prompt
    short    the answer that people chose, over its beginning, its first word, or a sign
    foreign  two answers to another prompt: neither is better
    form     an answer and the same words in another form: neither is better

Half a verdict for either side says that neither is better. It is least where both scores are the same, and says nothing
of how often people tie, which a tie would. Sources: Liu et al. 2024, "RRM: Robust reward model training mitigates
reward hacking" (other, foreign); Zhao et al. 2025, "One token to fool LLM-as-a-judge" (short); Wu et al. 2025,
"reWordBench" (form: there a loss of its own pulls both scores together, here it is the one that is there).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from manners.reward.assisted import Assisted
from manners.reward.labelled import Counts, LabelledPair
from manners.reward.pairs import render_compared
from manners.text import Renderer
from manners.types import Response, opening

SHORT = ("cut", "one_character", "thought_process")
"""What of `Texts.worse` is an answer that is hardly there; its first word is beside them."""


@dataclass(frozen=True)
class Texts:
    """What makes other texts of an answer: the rooms that know it (`audit.probes`, `audit.forms`) stand above this."""

    worse: Callable[[str, str, str | None], Mapping[str, str]]
    """From a prompt, an answer to it, and one to another prompt: what is worse, by name."""
    forms: Mapping[str, Callable[[str], str]]
    """From an answer the same words in another form, by name; it may be the form that it has."""


class Kind(StrEnum):
    """How a pair is made."""

    OTHER = "other"
    SHORT = "short"
    FOREIGN = "foreign"
    FORM = "form"


def augmented(
    renderer: Renderer, pairs: Sequence[LabelledPair], share: float, seed: int, texts: Texts | None
) -> Assisted:
    """Return the pairs that are made of those that are trained on, with what the model reads of all on their prompts.

    They are about `share` of all pairs and of all weight, and measure nothing. See `made_of`.
    """
    made = made_of(pairs, share, seed, texts)
    prompts = {pair.prompt for pair in made}
    beside = [pair for pair in (*pairs, *made) if pair.prompt in prompts]
    rendered = render_compared(renderer, ((p.prompt, side) for p in beside for side in (p.left, p.right)))
    kept = tuple(
        pair
        for pair in made
        if rendered[pair.prompt, pair.left].response_ids != rendered[pair.prompt, pair.right].response_ids
    )
    if not kept:
        return Assisted()
    own, others = (sum(sum(pair.weights) for pair in some) for some in (kept, pairs))
    return Assisted(kept, own / (own + others), rendered)


def made_of(pairs: Sequence[LabelledPair], share: float, seed: int, texts: Texts | None) -> tuple[LabelledPair, ...]:
    """Return share / (1 - share) as many pairs as these, or what can be made: one of each pair, drawn by the seed.

    Each weighs what the pair does that it is made of, for what a user, an account or a judge may weigh holds of both
    together, and stays in its group. Raises ValueError where a share is asked for, and nobody has said how texts are
    made.
    """
    if not share or not pairs:
        return ()
    if texts is None:
        raise ValueError("reward.augment takes what makes texts of answers (`Texts`)")
    rng = random.Random(f"augment {seed}")
    found: list[LabelledPair] = []
    for place, pair in enumerate(rng.sample(list(pairs), len(pairs))):
        if len(found) == round(len(pairs) * share / (1 - share)):
            break
        kind = list(Kind)[place % len(Kind)]
        sides = _sides(kind, pair, pairs, rng, texts)
        if sides is not None:
            decided, weight = kind in (Kind.OTHER, Kind.SHORT), sum(pair.weights)
            weights = Counts(weight, 0.0, 0.0) if decided else Counts(weight / 2, weight / 2, 0.0)
            made = replace(pair, comparison_id=None, left=sides[0], right=sides[1], made=True)
            found.append(made.unmeasured(weights))
    return tuple(found)


def _sides(
    kind: Kind, pair: LabelledPair, pairs: Sequence[LabelledPair], rng: random.Random, texts: Texts
) -> tuple[Response, Response] | None:
    """Return the sides of a pair of a kind, the better one first; None where it cannot be made of this one."""
    if kind is Kind.FORM:
        answer = rng.choice((pair.left, pair.right))
        anew = _in_another_form(answer.text, rng, texts)
        return None if anew is None else (answer, replace(answer, text=anew))
    if kind is Kind.SHORT:
        liked = _liked(pair)
        short = None if liked is None else _short(pair.prompt[-1].text, liked.text, rng, texts)
        return None if liked is None or short is None else (liked, replace(liked, text=short))
    other = _of_another(pair, pairs, rng)
    own = (pair.left.text.strip(), pair.right.text.strip())
    if other is None or any(side.text.strip() in own for side in (other.left, other.right)):
        return None
    if kind is Kind.FOREIGN:
        return other.left, other.right
    liked = _liked(pair)
    return None if liked is None else (liked, rng.choice((other.left, other.right)))


def _liked(pair: LabelledPair) -> Response | None:
    """Return the answer that more weight prefers; None where neither is."""
    left, right, _ = pair.weights
    return None if left == right else pair.left if left > right else pair.right


def _in_another_form(text: str, rng: random.Random, texts: Texts) -> str | None:
    """Return the answer in a form that it does not have, drawn among all of them."""
    forms = rng.sample(list(texts.forms.values()), len(texts.forms))
    return next((anew for form in forms if (anew := form(text)) != text and anew.strip()), None)


def _short(prompt: str, answer: str, rng: random.Random, texts: Texts) -> str | None:
    """Return what is hardly an answer, drawn among what this one can be made into."""
    worse = texts.worse(prompt, answer, None)
    first = answer.split()[0]
    found = [worse[name] for name in SHORT if name in worse] + [first] * (first != answer.strip())
    return rng.choice(found) if found else None


def _of_another(pair: LabelledPair, pairs: Sequence[LabelledPair], rng: random.Random) -> LabelledPair | None:
    """Return a pair with another opening: the first behind a drawn place."""
    start, own = rng.randrange(len(pairs)), opening(pair.prompt)
    behind = (pairs[(start + step) % len(pairs)] for step in range(len(pairs)))
    return next((one for one in behind if opening(one.prompt) != own), None)
