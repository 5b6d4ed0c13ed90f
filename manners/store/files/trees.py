"""Trees of messages, as OpenAssistant published them: the replies to one message are answers that people ranked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from manners.store.files.arrays import DEEPEST
from manners.store.files.containers import FREELY
from manners.store.files.fields import parse_number, parse_text, parse_word
from manners.store.files.messages import an_object
from manners.store.files.rows import BadRow, Fields, Reason


class Family(NamedTuple):
    """A dialogue and what it was answered with: text, rank (0 is best) and model."""

    prompt: list[dict[str, str]]
    answers: list[tuple[str, float | None, str | None]]


def tree_families(rows: Iterable[tuple[int, Fields | BadRow]]) -> Iterator[tuple[int, Family | BadRow]]:
    """Yield the answers to every message of nested trees, one tree a row."""
    for number, fields in rows:
        if isinstance(fields, BadRow):
            yield number, fields
            continue
        try:
            yield from ((number, family) for family in _below(an_object(fields.get("prompt")), _replies))
        except BadRow as bad:
            yield number, bad


def message_families(rows: Iterable[tuple[int, Fields | BadRow]]) -> Iterator[tuple[int, Family | BadRow]]:
    """Yield the answers to every message of a table with one message a row, wherever its rows stand; all are held."""
    replies: defaultdict[str | None, list[Fields]] = defaultdict(list)
    known: dict[str | None, int] = {}
    for number, fields in rows:
        if isinstance(fields, BadRow):
            yield number, fields
            continue
        try:
            name, parent = _name(fields, "message_id"), _name(fields, "parent_id")
            if name is None or name in known:
                raise BadRow(Reason.VALUE, "message_id", "is missing, or another message has it too")
        except BadRow as bad:
            yield number, bad
            continue
        known[name] = number
        replies[parent].append(fields)
    for parent, children in replies.items():
        if parent is not None and parent not in known:
            for child in children:
                number = known[_name(child, "message_id")]
                yield number, BadRow(Reason.ALONE, "parent_id", "names a message that the file lacks", harmless=True)
    for root in replies[None]:
        number = known[_name(root, "message_id")]
        try:
            below = _below(root, lambda one: replies.get(_name(one, "message_id"), []))
            yield from ((number, family) for family in below)
        except BadRow as bad:
            yield number, bad


def _name(fields: Fields, field: str) -> str | None:
    """Return what a message is called; tables write whole numbers as `1.0` in a column that has none in some row."""
    word = parse_word(fields, field)
    return word.removesuffix(".0") if word and word[:-2].isdecimal() else word


def _replies(message: Fields) -> list[Any]:
    return message.get("replies") or []


def _below(root: Any, replies: Callable[[Fields], Iterable[Any]]) -> Iterator[Family]:
    """Yield the family of each message of people's at and below this one that has answers.

    Raises BadRow where they are too deep, or too much: each begins with all that was said before it.
    """
    waiting: list[tuple[Any, list[dict[str, str]], int]] = [(root, [], 0)]
    told = 0
    while waiting:
        node, so_far, length = waiting.pop()
        if not isinstance(node, dict):
            raise BadRow(Reason.WRONG_TYPE, "replies", "holds what is no message")
        if _is_deleted(node):
            continue
        role = {"prompter": "user", "user": "user"}.get(parse_word(node, "role") or "", "assistant")
        dialogue = [*so_far, {"role": role, "content": parse_text(node, "text")}]
        length += len(dialogue[-1]["content"])
        children = [child for child in replies(node) if isinstance(child, dict) and not _is_deleted(child)]
        if len(dialogue) > DEEPEST:
            raise BadRow(Reason.TOO_LONG, "text", f"ends a conversation of more than {DEEPEST} messages")
        if role == "user" and children:
            if (told := told + length) > FREELY:
                more = f"more than {FREELY >> 20} MiB, each with all that was said before it"
                raise BadRow(Reason.TOO_LONG, "text", f"belongs to prompts of {more}")
            yield Family(dialogue, [_answer(child) for child in children])
        waiting += [(child, dialogue, length) for child in children]


def _answer(message: Fields) -> tuple[str, float | None, str | None]:
    return parse_text(message, "text"), parse_number(message, "rank", 0, 1e9), parse_word(message, "model_name")


def _is_deleted(message: Fields) -> bool:
    return str(message.get("deleted")).lower() == "true"
