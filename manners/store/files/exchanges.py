"""Prompts and answers that nobody compared: the prompt of a row, and the answer to it."""

from __future__ import annotations

import json

from manners.store.files.columns import suggested
from manners.store.files.fields import checked_prompt, parse_dialogue, parse_member, parse_prompt, parse_text, required
from manners.store.files.rows import BadRow, Fields, Reason
from manners.types import Dialogue, FinishReason, Response, Role

PROMPT_FIELDS = ("prompt", "messages")
EXCHANGE_FIELDS = (*PROMPT_FIELDS, "response", "finish_reason")


def parse_exchange(fields: Fields, author: str) -> tuple[Dialogue, Response]:
    """Return prompt and response of a row: `prompt` and `response`, or `messages` that end with the response.

    Raises BadRow.
    """
    finish = parse_member(fields, "finish_reason", FinishReason) or FinishReason.UNKNOWN
    try:
        if fields.get("response") is None and fields.get("messages") is not None:
            dialogue = parse_messages(fields)
            if dialogue[-1].role is not Role.ASSISTANT:
                raise BadRow(Reason.VALUE, "messages", "does not end with an assistant's turn to be scored")
            return _asked(dialogue[:-1]), Response(dialogue[-1].text, author, finish)
        return parse_prompt(fields), Response(_response_text(fields), author, finish)
    except BadRow as bad:
        raise with_columns(bad, fields, ("prompt", "response")) from bad


def parse_asked(fields: Fields) -> Dialogue:
    """Return the prompt of a row: `prompt`, or `messages` up to the last user turn. Raises BadRow."""
    try:
        if fields.get("prompt") is not None or fields.get("messages") is None:
            return parse_prompt(fields)
        dialogue = parse_messages(fields)
        while dialogue and dialogue[-1].role is not Role.USER:
            dialogue = dialogue[:-1]
        return _asked(dialogue)
    except BadRow as bad:
        raise with_columns(bad, fields, ("prompt",)) from bad


def parse_messages(fields: Fields) -> Dialogue:
    """Return the dialogue in the field `messages`, a list of messages or the JSON text of one. Raises BadRow."""
    value = required(fields, "messages")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(Reason.WRONG_TYPE, "messages", "is neither a list of messages nor the JSON of one") from error
    return parse_dialogue(value, "messages")


def with_columns(bad: BadRow, fields: Fields, wanted: tuple[str, ...]) -> BadRow:
    """Return what is wrong with a row, and where a field is missing, the options that name the row's own columns."""
    missing = tuple(field for field in wanted if field not in fields)
    if bad.reason is not Reason.LACKS_FIELD or bad.field not in missing:
        return bad
    options = suggested((name for name in fields if name not in EXCHANGE_FIELDS), missing)
    said = f"{bad.remark} among the columns {', '.join(fields)}: if one of them holds it, say so with {options}"
    return BadRow(bad.reason, bad.field, said) if options else bad


def _asked(dialogue: Dialogue) -> Dialogue:
    if not dialogue:
        raise BadRow(Reason.VALUE, "messages", "has no user turn")
    return checked_prompt(dialogue, "messages")


def _response_text(fields: Fields) -> str:
    if not isinstance(fields.get("response"), list):
        return parse_text(fields, "response")
    dialogue = parse_dialogue(fields["response"], "response")
    if [turn.role for turn in dialogue] != [Role.ASSISTANT]:
        raise BadRow(Reason.VALUE, "response", "is not one assistant message")
    return dialogue[0].text
