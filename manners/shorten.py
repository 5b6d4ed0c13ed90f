"""What is kept of a prompt and of the responses to it where they do not fit into the context.

Everything here is about reading and scoring; nobody is answered on half a question (`Renderer.prompt_ids`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from manners.types import Dialogue, Role

Ids = tuple[int, ...]
"""Token ids."""
Lay = Callable[[Dialogue], Ids]
"""Lays a dialogue out as token ids, up to where the assistant begins."""


def endings(prompt: Dialogue) -> Iterator[tuple[Dialogue, int]]:
    """Yield a prompt with ever fewer turns, and how many were dropped: from the left, whole, a system turn never.

    None begins with an answer, and the last is the last turn alone.
    """
    system, turns = (prompt[:1], prompt[1:]) if prompt[0].role is Role.SYSTEM else ((), prompt)
    for dropped, first in enumerate(turns):
        if dropped == 0 or first.role is not Role.ASSISTANT:
            yield system + turns[dropped:], dropped


def prompt_room(prompt: int, longest: int, context: int) -> int:
    """Return how many tokens of the context a prompt may take, of its length and that of the longest response to it.

    Responses come first, up to half the context; beyond that they take what the prompt leaves.
    """
    return context - min(longest, max(context // 2, context - prompt))


def fitting_prompt(lay: Lay, prompt: Dialogue, room: int, bos: int | None) -> Ids:
    """Return the ids of a prompt that fit into `room` tokens, 1 or more.

    Whole turns go from the left; then the beginning of the last turn's text, which leaves what the template puts around
    it as it is; then a system turn beside which nothing of the last turn would fit. Where the template alone takes more
    than there is room for, its last tokens are left, behind the BOS.
    """
    for ending, _ in endings(prompt):
        if len(ids := lay(ending)) <= room:
            return ids
    *system, last = ending
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
