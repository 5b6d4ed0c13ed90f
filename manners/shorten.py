"""What is kept of a prompt and of the responses to it where they do not fit into the context.

Everything here is about reading and scoring; nobody is answered on half a question (`Renderer.prompt_ids`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from manners.types import Dialogue, Role

CHARACTERS = 6
"""To a token, at most, where a prompt is laid out whole before its turns are counted: text of people takes about 4."""
SHORT = 5
"""Endings of so many more turns than the last show what a template puts around a turn."""
Ids = tuple[int, ...]
"""Token ids."""
Lay = Callable[[Dialogue], Ids]
"""Lays a dialogue out as token ids, up to where the assistant begins."""
Size = Callable[[str], int]
"""Counts the tokens of a text by itself."""
Check = Callable[[], None]
"""Raises where nobody waits for the result any more."""


def endings(prompt: Dialogue) -> Iterator[tuple[Dialogue, int]]:
    """Yield a prompt with ever fewer turns, and how many were dropped: from the left, whole, a system turn never.

    None begins with an answer, and the last is the last turn alone.
    """
    system, turns = (prompt[:1], prompt[1:]) if prompt[0].role is Role.SYSTEM else ((), prompt)
    for dropped, first in enumerate(turns):
        if dropped == 0 or first.role is not Role.ASSISTANT:
            yield system + turns[dropped:], dropped


@dataclass(frozen=True)
class Ending:
    """What is kept of a prompt, laid out."""

    turns: Dialogue
    ids: Ids
    dropped: int


def longest_ending(lay: Lay, size: Size, prompt: Dialogue, room: int, check: Check = lambda: None) -> Ending:
    """Return the ending of a prompt with the most turns that fits into `room` tokens, or its last turn if none does.

    Laying every ending out would cost the square of the turns. So turns are counted once by themselves, from the last
    one on and as many as may fit, what a turn takes beside its text is seen from two short endings, and only those are
    laid out between which the border should be. Of the one returned and of the next longer one it is known, not
    guessed, that one fits and the other does not.
    """
    low = 0
    if sum(len(turn.text) for turn in prompt) <= CHARACTERS * room:  # it probably fits
        if len(ids := lay(prompt)) <= room:
            return Ending(prompt, ids, 0)
        low = 1
    kept = list(endings(prompt)) or [(prompt, 0)]
    high = len(kept) - 1
    best = lay(kept[high][0])
    if len(best) > room:
        return Ending(kept[high][0], best, kept[high][1])
    at = min(_expected(lay, size, kept, best, room, check), high - 1)
    step = 1
    while low < high:
        check()
        at = at if low <= at < high else (low + high) // 2
        if len(ids := lay(kept[at][0])) <= room:
            best, high, at = ids, at, at - step
        else:
            low, at = at + 1, at + step
        step *= 2
    return Ending(kept[high][0], best, kept[high][1])


def _expected(lay: Lay, size: Size, kept: Sequence[tuple[Dialogue, int]], last: Ids, room: int, check: Check) -> int:
    """Return which ending should be the first that fits, by the sizes of the turns and what a template puts around."""
    whole, few = kept[0][0], max(0, len(kept) - SHORT)
    turns = len(whole) - (whole[0].role is Role.SYSTEM)
    tails = [0]

    def text(dropped: int) -> int:
        """Count the texts of an ending's turns, of each turn once, from the last one on."""
        while len(tails) <= turns - dropped:
            check()
            tails.append(tails[-1] + size(whole[-len(tails)].text))
        return tails[turns - dropped]

    end = kept[-1][1]
    around = (len(lay(kept[few][0])) - len(last) - text(kept[few][1]) + text(end)) / max(1, end - kept[few][1])
    for index in reversed(range(len(kept))):
        dropped = kept[index][1]
        if len(last) + text(dropped) - text(end) + around * (end - dropped) > room:
            return min(index + 1, len(kept) - 1)
    return 0


def prompt_room(prompt: int, longest: int, context: int) -> int:
    """Return how many tokens of the context a prompt may take, of its length and that of the longest response to it.

    Responses come first, up to half the context; beyond that they take what the prompt leaves.
    """
    return context - min(longest, max(context // 2, context - prompt))


def fitting_prompt(lay: Lay, size: Size, prompt: Dialogue, room: int, bos: int | None) -> Ids:
    """Return the ids of a prompt that fit into `room` tokens, 1 or more.

    Whole turns go from the left; then the beginning of the last turn's text, which leaves what the template puts around
    it as it is; then a system turn beside which nothing of the last turn would fit. Where the template alone takes more
    than there is room for, its last tokens are left, behind the BOS.
    """
    ending = longest_ending(lay, size, prompt, room)
    if len(ids := ending.ids) <= room:
        return ids
    *system, last = ending.turns
    for before in (tuple(system), ()):

        def beginning_cut(text: str, before: Dialogue = before) -> Ids:
            return lay((*before, replace(last, text=text)))

        if kept := longest_end(last.text, lambda text: len(beginning_cut(text)) <= room):
            return beginning_cut(kept)
    start = ids[:1] if ids[0] == bos and room > 1 else ()
    return start + ids[len(start) - room :]


def longest_end(text: str, fits: Callable[[str], bool]) -> str:
    """Return the longest end of a text that fits, in characters and by bisection; empty where not even one does.

    A text of more characters may be one of fewer tokens now and then: what is returned fits, and may be short of the
    longest by as many.
    """
    if fits(text):  # without the system turn beside which it did not
        return text
    low, high = 1, len(text)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(text[middle:]) else (middle + 1, high)
    return text[high:]


def fitting_response(ids: Ids, room: int, end_id: int) -> Ids:
    """Return the ids of a response cut at the right to `room` tokens; the token that ends it, if one does, stays."""
    if len(ids) <= room:
        return ids
    return (*ids[: room - 1], end_id) if ids[-1] == end_id else ids[:room]
