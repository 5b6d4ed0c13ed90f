"""Conversations as people write them down: lists of messages in several notations, transcripts, JSON in a cell."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from manners.store.files.rows import BadRow, Reason
from manners.types import Role

Said = tuple[Role, Any]
"""Who speaks, and the text; None where a message has no content."""

_ROLE_KEYS = ("role", "from", "author", "speaker")
_CONTENT_KEYS = ("content", "value", "text", "parts")
_ROLES = {role.value: role for role in Role}
_ROLES |= dict.fromkeys(("human", "prompter"), Role.USER) | {"developer": Role.SYSTEM}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "model", "bot", "ai"), Role.ASSISTANT)
_LIKE_MESSAGES = re.compile(
    r"""\s*(?:\[\s*\{\s*['"](?:content|value|role|from)|\{\s*['"](?:role|from))['"]\s*:\s*['"]"""
)

_LIKE_TEXTS = re.compile(r"""\s*\[\s*['"]""")
_LIKE_OBJECTS = re.compile(r"""\s*+(?:\[\s*+)?\{\s*['"][\w .-]+['"]\s*:""")
MOST_PYTHON = 2**18
"""Characters of Python text that are taken apart, which takes far more memory than JSON does."""
_STARTS = ("[", "{", '"[', '"{', "array([")
"""How the JSON or Python text of a list or an object begins."""
_PRINTED = re.compile(r"\s*array\((\[.*\])(?:,\s*dtype=object)?\)\s*", re.DOTALL)
"""A list as numpy prints it within another."""

_SPEAKERS = "System|Human|User|Assistant|AI|Bot"
_NAMED = rf"(?:#{{2,3}} )?({_SPEAKERS}):(?: |\n(?!\n|#|(?:{_SPEAKERS}):))?"
ANSWERS_NEXT = re.compile(r"\n(?:#{2,3} )?(?:Assistant|AI|Bot):\Z", re.IGNORECASE)
"""How a transcript ends whose answer is to follow, without the space that comes before it."""
_OPENING = re.compile(rf"\s*{_NAMED}", re.IGNORECASE)
_BLOCK = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
_TAG = re.compile(r"<\|(system|user|prompter|assistant)\|>\n?")
_ENDS = ("</s>", "<|endoftext|>", "<|end|>")
CLOSES = ("<|im_end|>", *_ENDS)
"""What closes a turn in text that was rendered with a template."""
_EXTRA = re.compile(r"\n?<extra_id_1>(User|Assistant)\n?")
_RENDERED: tuple[str, ...] = (
    "<s>[INST]",
    "<s> [INST]",
    "[INST]",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|header_start|>",
)
_RENDERED += ("<start_of_turn>", "<bos>", "<|START_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|start_of_role|>", "<|start|>")
_RENDERED += ("<|user_start|>", "[gMASK]", "<\N{FULLWIDTH VERTICAL LINE}")
"""How text begins that was rendered with a template whose marks are not read as turns."""


def listed(value: Any) -> list[Any] | None:
    """Return the list that a value is or, in the cell of a sheet, writes; None where it is none.

    A dictionary of lists of one length is how some tables keep a list of dictionaries.
    """
    if isinstance(value, str):
        value = _written(value) if value.lstrip().startswith(_STARTS) else None
    if isinstance(value, dict) and {isinstance(part, list) for part in value.values()} == {True}:
        if len({len(part) for part in value.values()}) > 1:
            return None
        return [dict(zip(value, one, strict=True)) for one in zip(*(value[name] for name in value), strict=True)]
    return value if isinstance(value, list) else None


def an_object(value: Any) -> dict[str, Any] | None:
    """Return the object that a value is or, in the cell of a sheet, writes; None where it is none."""
    if isinstance(value, str):
        value = _written(value) if value.lstrip().startswith(_STARTS) else None
    return value if isinstance(value, dict) else None


def messages(value: Any, field: str) -> list[Any] | None:
    """Return the messages that a value is or writes; None for a text that writes none.

    Raises BadRow for a text that begins as messages do and is none, of which nobody could say what it means.
    """
    if not isinstance(value, str):
        return [value] if isinstance(value, dict) and _is_message(value) else listed(value)
    if not value.lstrip().startswith(_STARTS):
        return None
    found = _written(value)
    found = [found] if _is_message(found) else listed(found)
    if found and all(_is_message(one) for one in found):
        return found
    if _LIKE_MESSAGES.match(value):
        raise BadRow(Reason.VALUE, field, "begins like a list of messages, and is not JSON")
    return None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not {*_CONTENT_KEYS} & value.keys():
        return False
    return any(isinstance(value.get(key), str) for key in _ROLE_KEYS)


def _written(text: str) -> Any:
    """Return what JSON text or, as a table printed to a sheet has it, Python text writes; None where it is neither."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, str):  # what was JSON already has been written as JSON once more
        return _written(found) if found.lstrip().startswith(("[", "{")) else None
    if found is not None or len(text) > MOST_PYTHON:
        return found
    if printed := _PRINTED.fullmatch(text):
        text = printed[1]
    if not _LIKE_OBJECTS.match(text) and not _LIKE_TEXTS.match(text):
        return None
    try:
        # An array of dictionaries is printed without commas, and a line break in it is never part of a text.
        return ast.literal_eval(re.sub(r"\}[ \t]*\n\s*\{", "}, {", text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def said(message: Any, field: str) -> Said | None:
    """Return what a message says: who, and the text, or None for no content; None for a message that is none at all."""
    if message is None:
        return None
    if not isinstance(message, dict):
        raise BadRow(Reason.WRONG_TYPE, field, "is neither a text nor a list of messages")
    who = next((message[key] for key in _ROLE_KEYS if message.get(key) is not None), None)
    contents = [message[key] for key in _CONTENT_KEYS if key in message]
    if who is None or not contents:
        raise BadRow(Reason.LACKS_FIELD, field, "has a message without `role` or `content`")
    role = _ROLES.get(who.lower()) if isinstance(who, str) else None
    if role is None:
        raise BadRow(Reason.ROLE, field, f"has the role {who!r}, which is not one of {', '.join(Role)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise BadRow(Reason.ROLE, field, "has a message that calls a tool")
    return role, _content(next((one for one in contents if one is not None), None), field)


def _content(content: Any, field: str) -> Any:
    """Return a message's text: that of its parts joined, where it has parts."""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text", part.get("content")) if isinstance(part, dict) else part
        if text is None and kind in ("text", "input_text", "output_text", None):
            continue
        if not isinstance(text, str) or kind not in ("text", "input_text", "output_text", None):
            raise BadRow(Reason.WRONG_TYPE, field, f"has a part of the type {str(kind)!r}, which is no text")
        texts.append(text)
    return "".join(texts)


def transcript(text: str, field: str) -> list[Said] | None:
    """Return the turns of a transcript, None for a text that is none.

    A transcript begins with `Human:` or `User:` (after `System:`, where it has one) and has an `Assistant:`, `AI:` or
    `Bot:` at the beginning of a line, or the reverse; or it is written with the marks of ChatML, Zephyr or Nemotron.
    The last turn may be an assistant's without a word. Raises BadRow where the text was rendered with the marks of
    another template.
    """
    if text.startswith("<|im_start|>"):
        return _marked(_BLOCK.findall(text))
    if _TAG.match(text):
        _, *rest = _TAG.split(text)
        return _marked([(name, _ended(part)) for name, part in zip(rest[::2], rest[1::2], strict=True)])
    if _EXTRA.search(text):
        first, *rest = _EXTRA.split(text.removeprefix("<extra_id_0>"))
        return _marked(([("user", first)] if first.strip() else []) + list(zip(rest[::2], rest[1::2], strict=True)))
    if text.lstrip().startswith(_RENDERED):
        raise BadRow(Reason.TRANSCRIPT, field, "was rendered with a model's template; give its messages instead")
    opening = _OPENING.match(text)
    return _spoken(text, opening) if opening else None


def _ended(text: str) -> str:
    text = text.rstrip()
    return next((text.removesuffix(end) for end in _ENDS if text.endswith(end)), text)


def _marked(turns: list[tuple[str, str]]) -> list[Said] | None:
    roles = [_ROLES.get(name.lower()) for name, _ in turns]
    return [(role, text) for role, (_, text) in zip(roles, turns, strict=True) if role] if all(roles) else None


def _spoken(text: str, opening: re.Match[str]) -> list[Said] | None:
    marks = re.finditer(rf"(\n\n?){_NAMED}", text[opening.end() :], re.IGNORECASE)
    other = next((mark for mark in marks if mark[2].lower() != opening[1].lower()), None)
    alone = text.startswith("\n\nHuman: ")
    if other is None and not alone:
        return None
    # Where a blank line comes before the other's mark, one within a paragraph is a quotation.
    ends = "\n" if other and other[1] == "\n" else "\n\n"
    parts = re.split(rf"(?:\A\s*|{ends}){_NAMED}", text, flags=re.IGNORECASE)
    names = [name.lower() for name in parts[1::2]]
    if parts[0] or len({*names} & {"human", "user"}) != 1 or "system" in names[1:]:
        return None
    answered = not {"assistant", "ai", "bot"}.isdisjoint(names)
    return _marked(list(zip(names, parts[2::2], strict=True))) if alone or answered else None
