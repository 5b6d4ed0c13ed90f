"""The fields of a row: each function returns the value of one, or raises `BadRow` saying what is wrong with it."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from manners.store.files.messages import Said, listed, messages, said, transcript
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.records import refuse_moment, to_messages
from manners.types import AskedHow, Dialogue, Role, Sampling, Turn

E = TypeVar("E", bound=StrEnum)
LONGEST_NAME = 500
"""Characters of an annotator's or a model's name: PostgreSQL can index 2,700 bytes, and a character has up to four."""
LARGEST = 2**31 - 1
"""The largest number that an integer column of every database can hold."""
_BEYOND = 2**64
"""The first number that has more than 64 bits."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SINCE_EPOCH = re.compile(r"(?:(\d{10})|(\d{13}))(\.\d+)?", re.ASCII)
"""Seconds or milliseconds: ten digits are the years 2001 to 2286, and so are thirteen."""


def required(fields: Fields, field: str) -> Any:
    """Return the value of a field that must be there."""
    if fields.get(field) is None:
        raise BadRow(Reason.LACKS_FIELD, field, "is missing")
    return fields[field]


def parse_text(fields: Fields, field: str) -> str:
    """Return a text that must be there; it may be empty, but every database must be able to hold it."""
    return _checked_text(required(fields, field), field)


def parse_prompt(fields: Fields, *, shown: bool = False) -> Dialogue:
    """Return the dialogue in the field `prompt`: a text, messages, the JSON text of such a list, or a transcript.

    What the field `system` says comes first. An assistant's turn without a word at the end is where the answer goes.
    One that was `shown` here is taken as it was, turns without a word among it.
    """
    prompt = _dialogue(required(fields, "prompt"), "prompt", shown=shown)
    if len(prompt) > 1 and prompt[-1].role is Role.ASSISTANT and not prompt[-1].text.strip():
        prompt = prompt[:-1]
    return with_system(checked_prompt(prompt, "prompt", whole=not shown), fields)


def was_asked(fields: Fields) -> bool:
    """Return whether a row says how it was asked about here: then nothing was lost where a turn is empty.

    Programs send such turns, models end at once, and two answers may be the same. A cell that is empty was lost.
    """
    return bool(fields.get("prompt")) and fields.get("asked_how") not in (None, "", AskedHow.IMPORTED)


def with_system(prompt: Dialogue, fields: Fields) -> Dialogue:
    """Return the prompt after what the field `system` says, where it says anything."""
    if fields.get("system") is None or not parse_text(fields, "system").strip():
        return prompt
    system = Turn(Role.SYSTEM, parse_text(fields, "system"))
    if prompt[0].role is not Role.SYSTEM:
        return (system, *prompt)
    if prompt[0] != system:
        raise BadRow(Reason.VALUE, "system", "is not the system turn that the prompt begins with")
    return prompt


def _dialogue(value: Any, field: str, *, shown: bool = False) -> Dialogue:
    if (texts := listed(value)) and all(isinstance(text, str) for text in texts):
        if len(texts) > 1:
            raise BadRow(Reason.VALUE, field, f"is a list of {len(texts)} texts, and does not say who speaks")
        value = texts[0]
    if not isinstance(value, str):
        return parse_dialogue(value, field, shown=shown)
    if (found := messages(value, field)) is not None:
        return parse_dialogue(found, field, shown=shown)
    turns = transcript(_checked_text(value, field), field)
    return tuple(Turn(role, text) for role, text in turns) if turns else (Turn(Role.USER, value),)


def prompt_text(prompt: Dialogue) -> str:
    """Return what `parse_prompt` reads back: the text of a single user turn, or the JSON text of a list of messages."""
    text = prompt[0].text
    try:
        single = len(prompt) == 1 and bool(text) and prompt == _dialogue(text, "prompt")
    except BadRow:
        single = False
    return text if single else json.dumps(to_messages(prompt), ensure_ascii=False)


def checked_prompt(prompt: Dialogue, field: str, *, whole: bool = True) -> Dialogue:
    """Return the dialogue if it can be answered: it ends with a user turn and, to be whole, has no empty one."""
    if prompt[-1].role is not Role.USER:
        raise BadRow(Reason.VALUE, field, "does not end with a user turn")
    if whole and not all(turn.text.strip() for turn in prompt):
        raise BadRow(Reason.EMPTY, field, "has an empty turn")
    return prompt


def parse_dialogue(value: Any, field: str, *, shown: bool = False) -> Dialogue:
    """Return the dialogue that messages write: `{"role", "content"}`, `{"from", "value"}`, or with content in parts.

    A message without content is an empty turn, and a system message that says nothing is none, unless it was `shown`.
    """
    found = messages(value, field)
    if found is None:
        raise BadRow(Reason.WRONG_TYPE, field, "is neither a text nor a list of messages")
    written = filter(None, (said(message, field) for message in found))
    turns = [turn for turn in written if shown or not _says_nothing(turn)]
    if not turns:
        raise BadRow(Reason.EMPTY, field, "is an empty list")
    return tuple(Turn(role, "" if text is None else _checked_text(text, field)) for role, text in turns)


def _says_nothing(turn: Said) -> bool:
    role, text = turn
    return role is Role.SYSTEM and (text is None or (isinstance(text, str) and not text.strip()))


def parse_member(fields: Fields, field: str, members: type[E], reason: Reason = Reason.VALUE) -> E | None:
    """Return the member of an enumeration that the field names, None if it is empty."""
    value = parse_word(fields, field)
    if value is None:
        return None
    if value not in tuple(members):
        raise BadRow(reason, field, f"is {value[:40]!r}, which is not one of {', '.join(members)}")
    return members(value)


def parse_word(fields: Fields, field: str) -> str | None:
    """Return a short text or a number as text, None if the field is empty."""
    value = fields.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(Reason.WRONG_TYPE, field, "is neither a text nor a number")
    return _checked_text(str(value), field)


def parse_name(fields: Fields, field: str, default: str) -> str:
    """Return the name of an annotator or of a model, the default if the field is empty."""
    name = _checked_text(parse_word(fields, field) or default, field)
    if len(name) > LONGEST_NAME:
        raise BadRow(Reason.VALUE, field, f"has {len(name):,} characters, and a name has at most {LONGEST_NAME}")
    return name


def parse_number(fields: Fields, field: str, low: float, high: float) -> float | None:
    """Return a number, None if the field is empty; the bounds are inclusive."""
    value = parse_word(fields, field)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise BadRow(Reason.VALUE, field, f"is {value[:40]!r}, which is not a number from {low:g} to {high:g}")
    return number


def parse_moment(fields: Fields, field: str) -> datetime | None:
    """Return a time in UTC, which is also assumed where no zone is stated; None if the field is empty.

    It is written in ISO 8601, or as seconds (10 digits) or milliseconds (13 digits) since 1970.
    """
    value = fields.get(field)
    if value is None or value == "":
        return None
    try:
        moment = value if isinstance(value, datetime) else _moment(str(value))
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        known = "2024-05-31T12:00:00+00:00, nor seconds or milliseconds since 1970"
        raise BadRow(Reason.VALUE, field, f"is not a time such as {known}") from error
    try:
        refuse_moment(moment)
    except ValueError as error:
        raise BadRow(Reason.VALUE, field, str(error)) from error
    return moment


def _moment(text: str) -> datetime:
    """Return the time that a text states. Raises ValueError where it states none."""
    if since := _SINCE_EPOCH.fullmatch(text):
        return EPOCH + (timedelta(seconds=float(text)) if since[1] else timedelta(milliseconds=float(text)))
    if text.isdecimal() and len(text) != len("20240531"):
        # ISO 8601 would read the digits of some other notation as a year long past.
        raise ValueError(text)
    return datetime.fromisoformat(text)


def parse_flag(fields: Fields, field: str) -> bool:
    """Return whether the field says true; empty is false."""
    value = fields.get(field)
    if isinstance(value, bool):
        return value
    word = parse_word(fields, field) or "false"
    if (said := truth(word)) is None:
        raise BadRow(Reason.VALUE, field, f"is {word[:40]!r}, which is neither true nor false")
    return said


_TRUE = "true wahr vrai vero verdadero verdadeiro waar sant sann sand tosi prawda pravda igaz истина doğru"
_FALSE = "false falsch faux falso onwaar falskt usann falsk epätosi fałsz nepravda hamis ложь yanliş"
_TRUTHS = dict.fromkeys(_TRUE.split(), True) | dict.fromkeys(_FALSE.split(), False)
"""What spreadsheets make of true and false: each writes them in the language of whoever uses it."""


def truth(word: str) -> bool | None:
    """Return what a word for true or false says, in any language of spreadsheets; None for another word."""
    return _TRUTHS.get(word.strip().lower())


def parse_list(fields: Fields, field: str) -> tuple[str, ...]:
    """Return the texts of a list or of the JSON text of one, none if the field is empty."""
    texts = fields.get(field)
    if not isinstance(texts, list):
        value = parse_word(fields, field)
        try:
            texts = [] if value is None else json.loads(value)
        except (ValueError, RecursionError):
            texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRow(Reason.VALUE, field, "is not a JSON list of texts")
    return tuple(_checked_text(text, field) for text in texts)


def parse_sampling(fields: Fields, field: str) -> Sampling | None:
    """Return sampling settings from an object or the JSON text of one, None if the field is empty."""
    stated = fields.get(field)
    try:
        if not isinstance(stated, dict):
            value = parse_word(fields, field)
            if value is None:
                return None
            stated = json.loads(value)
        found = Sampling(float(stated["temperature"]), int(stated["max_new_tokens"]), int(stated["seed"]))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise BadRow(Reason.VALUE, field, "is not JSON with temperature, max_new_tokens and seed") from error
    if not math.isfinite(found.temperature) or max(abs(found.max_new_tokens), abs(found.seed)) >= _BEYOND:
        raise BadRow(Reason.VALUE, field, "holds a number that is not finite, or has more than 64 bits")
    return found


def _checked_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise BadRow(Reason.WRONG_TYPE, field, "is not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(Reason.NOT_UTF8, field, "holds half a surrogate pair, or is not UTF-8") from error
    if "\0" in value:
        raise BadRow(Reason.VALUE, field, "holds a NUL character")
    return value
