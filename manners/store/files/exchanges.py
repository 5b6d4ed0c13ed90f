"""Prompts and answers that nobody compared: the prompt of a row, and the answer to it."""

from __future__ import annotations

from manners.store.files.columns import suggested
from manners.store.files.fields import (
    checked_prompt,
    parse_dialogue,
    parse_member,
    parse_prompt,
    parse_text,
    required,
    with_system,
)
from manners.store.files.messages import ANSWERS_NEXT, CLOSES, messages, transcript
from manners.store.files.rows import BadRow, Fields, Reason
from manners.types import Dialogue, FinishReason, Response, Role

MESSAGE_FIELDS = ("messages", "conversations", "conversation")
"""What a list of messages is called, the prompt among them."""
PROMPT_FIELDS = ("prompt", *MESSAGE_FIELDS)
EXCHANGE_FIELDS = (*PROMPT_FIELDS, "response", "finish_reason")


def parse_exchange(fields: Fields, author: str) -> tuple[Dialogue, Response]:
    """Return prompt and response of a row: `prompt` and `response`, or messages that end with the response.

    Raises BadRow.
    """
    finish = parse_member(fields, "finish_reason", FinishReason) or FinishReason.UNKNOWN
    try:
        if fields.get("response") is None and (name := messages_in(fields)):
            dialogue = parse_messages(fields, name)
            if dialogue[-1].role is not Role.ASSISTANT:
                raise BadRow(Reason.VALUE, name, "does not end with an assistant's turn to be scored")
            prompt = with_system(_asked(dialogue[:-1], name), fields)
            return prompt, Response(dialogue[-1].text, author, finish)
        prompt = parse_prompt(fields)
        return prompt, Response(answer_to(fields["prompt"], response_text(fields)), author, finish)
    except BadRow as bad:
        raise with_columns(bad, fields, ("prompt", "response")) from bad


def parse_asked(fields: Fields) -> Dialogue:
    """Return the prompt of a row: `prompt`, or messages up to the last user turn. Raises BadRow."""
    try:
        if fields.get("prompt") is not None or not (name := messages_in(fields)):
            return parse_prompt(fields)
        dialogue = parse_messages(fields, name)
        while dialogue and dialogue[-1].role is not Role.USER:
            dialogue = dialogue[:-1]
        return with_system(_asked(dialogue, name), fields)
    except BadRow as bad:
        raise with_columns(bad, fields, ("prompt",)) from bad


def messages_in(fields: Fields) -> str:
    """Return the name of the field that holds a list of messages, nothing where none does."""
    return next((name for name in MESSAGE_FIELDS if fields.get(name) is not None), "")


def parse_messages(fields: Fields, name: str) -> Dialogue:
    """Return the dialogue in a field that holds messages, in any of their notations. Raises BadRow."""
    value = required(fields, name)
    found = messages(value, name) if isinstance(value, str) else value
    if found is None:
        raise BadRow(Reason.WRONG_TYPE, name, "is neither a list of messages nor the JSON of one")
    return parse_dialogue(found, name)


def with_columns(bad: BadRow, fields: Fields, wanted: tuple[str, ...]) -> BadRow:
    """Return what is wrong with a row, and where a field is missing, the options that name the row's own columns."""
    missing = tuple(field for field in wanted if field not in fields)
    if bad.reason is not Reason.LACKS_FIELD or bad.field not in missing:
        return bad
    options = suggested((name for name in fields if name not in EXCHANGE_FIELDS), missing)
    said = f"{bad.remark} among the columns {', '.join(fields)}: if one of them holds it, say so with {options}"
    return BadRow(bad.reason, bad.field, said) if options else bad


def _asked(dialogue: Dialogue, name: str) -> Dialogue:
    if not dialogue:
        raise BadRow(Reason.VALUE, name, "has no user turn")
    return checked_prompt(dialogue, name)


def response_text(fields: Fields, name: str = "response") -> str:
    """Return the answer in a field: a text, or one assistant message. Raises BadRow."""
    value = required(fields, name)
    found = messages(value, name)
    if found is None:
        return parse_text(fields, name)
    dialogue = parse_dialogue(found, name)
    if [turn.role for turn in dialogue] != [Role.ASSISTANT]:
        raise BadRow(Reason.VALUE, name, "is not one assistant message")
    return dialogue[0].text


def answer_to(asked: object, text: str) -> str:
    """Return the answer to a prompt that was written as a transcript without what belongs to its turns' marks.

    After a prompt that ends with the assistant's mark the answer may begin with the mark's space, and what closes the
    turns of the prompt closes the answer to it too.
    """
    if not isinstance(asked, str) or messages(asked, "prompt") is not None or transcript(asked, "prompt") is None:
        return text
    if ANSWERS_NEXT.search(asked):
        text = text.removeprefix(" ")
    closed = next((mark for mark in CLOSES if mark in asked and text.rstrip().endswith(mark)), "")
    return text.rstrip().removesuffix(closed) if closed else text
