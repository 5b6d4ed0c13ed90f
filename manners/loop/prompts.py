"""Which prompts are answered, and in what parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.session import Session
from manners.text import TooLong
from manners.types import Dialogue, PromptUse

PART = 192
"""Most prompts that are answered between two checkpoints, each part from a seed of its own: other parts give other
answers, while `sample.batch` changes nothing."""


def answerable(session: Session, use: PromptUse) -> list[Dialogue]:
    """Return the prompts of one use that may be answered: none deleted, and none from chats that are not shared."""
    return session.store.answerable(use, chats=session.settings.serve.share_chats)


def short_enough(session: Session, prompts: Sequence[Dialogue]) -> list[Dialogue]:
    """Distinct prompts that leave room for an answer."""
    fitting = []
    for prompt in dict.fromkeys(prompts):
        try:
            session.pretrained.renderer.prompt_ids(prompt, session.settings.sample.max_new_tokens)
        except TooLong:
            continue
        fitting.append(prompt)
    return fitting


def parts(places: Sequence[int], seed: int) -> list[tuple[list[int], int]]:
    """Cut a list of prompts into what is answered between two checkpoints: even parts, each with a seed of its own."""
    count = -(-len(places) // PART)
    edges = [len(places) * number // max(1, count) for number in range(count + 1)]
    return [(list(places[start:stop]), seed + number * 104_729) for number, (start, stop) in enumerate(pairwise(edges))]


def longest_prompt(session: Session, *uses: PromptUse) -> tuple[int, Facts]:
    """Return the tokens of the longest prompt that leaves room for a response, and by use how many there are.

    `shortened` ones lose whole turns; those that `do_not_fit` are left out. Raises MannersError where none fits.
    """
    longest = 1
    counts = Facts()
    for use in uses:
        fit = shortened = too_long = 0
        for stored in session.store.prompts(use):
            try:
                ids, dropped = session.pretrained.renderer.prompt_ids(
                    stored.dialogue, session.settings.sample.max_new_tokens
                )
            except TooLong:
                too_long += 1
                continue
            longest = max(longest, len(ids))
            fit += 1
            shortened += dropped > 0
        if too_long and not fit:
            raise MannersError(
                f"none of the {too_long} prompts for `{use}` leaves room for a response: raise model.context"
                f" ({session.pretrained.renderer.context} tokens here), or lower sample.max_new_tokens"
            )
        counts[use] = {"fit": fit, "shortened": shortened, "do_not_fit": too_long}
    return longest, counts
