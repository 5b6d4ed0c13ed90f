"""What a tokenizer brings to a dialogue: its template, what it puts before a text, and where a turn ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.templates import Refused, Template, made
from manners.types import FinishReason, Role

FIRST = 64
"""Answers that are looked at before anybody is warned that none ends."""
_ANSWER, _NEXT = "manners1turn", "manners2turn"


def template_of(
    tokenizer: PreTrainedTokenizerBase,
    wanted: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    day: Callable[[], date] = date.today,
) -> Template:
    """Make the template of a tokenizer, as `templates.made` does, with the two settings of the model."""
    bos = bool(own_bos(tokenizer))
    tokens = tokenizer.special_tokens_map
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
    found = tokenizer.chat_template
    return made(found, tokens, bos=bos, special=special, wanted=wanted, arguments=arguments, day=day)


def own_bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the BOS that a tokenizer puts before every text, or nothing."""
    bos = tokenizer.bos_token_id
    return (int(bos),) if bos is not None and tokenizer.encode("x")[:1] == [bos] else ()


@dataclass(frozen=True)
class Ending:
    """What ends an answer."""

    end: int
    """The token that answers are rendered with."""
    ids: frozenset[int]
    """All at which an answer ends when it is drawn."""
    note: str = ""
    """What a reader should know, where the template and the model's files say different things."""
    token: bool = True
    """Whether the template closes a turn with a token, or with nothing."""


def ending(tokenizer: PreTrainedTokenizerBase, template: Template, configured: frozenset[int]) -> Ending:
    """Return how answers end, `configured` being what the tokenizer and `generation_config` name.

    Rendered and compared: the first token of its own (an added one, or one of `configured`) that the template writes
    behind an answer closes it. Raises MannersError where there is none and the tokenizer has no end of sequence.
    """
    after, between, before = _surroundings(template)
    opening = set(_own(tokenizer, before, configured))
    closing = next(_own(tokenizer, after, configured), None)
    if closing is None:  # GLM's `<|user|>` also opens a turn, and its files name it as an end
        opening -= configured
        closing = next((token for token in _own(tokenizer, between, configured) if token not in opening), None)
    if closing is not None:
        name = tokenizer.convert_ids_to_tokens(closing)
        note = "" if closing in configured else f"answers end with {name}, with which the chat template closes a turn"
        return Ending(closing, configured | {closing}, note)
    if tokenizer.eos_token_id is None:
        raise MannersError(
            "the tokenizer has no end-of-sequence token, so an answer could never end; set eos_token in it"
        )
    end = int(tokenizer.eos_token_id)
    words = after.strip()
    note = f"the chat template closes a turn with {words!r}, which is no token: answers end with {tokenizer.eos_token}"
    return Ending(end, configured | {end}, note if words else "", token=not words)


def _surroundings(template: Template) -> tuple[str, str, str]:
    """Return what the template writes behind an answer, between it and the next turn, and before the first turn."""
    turns = [(Role.USER, "x"), (Role.ASSISTANT, _ANSWER), (Role.USER, _NEXT)]
    messages = [{"role": role.value, "content": text} for role, text in turns]
    try:
        after = template.render(messages[:2], generation=False).partition(_ANSWER)[2]
        between = template.render(messages, generation=False).partition(_ANSWER)[2].partition(_NEXT)[0]
        before = template.render(messages[2:], generation=True).replace(_NEXT, "")
    except Refused:  # of an answer: nothing can be seen there
        return "", "", ""
    return after, between, before


def _own(tokenizer: PreTrainedTokenizerBase, text: str, configured: frozenset[int]) -> Iterator[int]:
    """Yield the tokens in a text that stand for nothing but themselves, and not for words or spaces."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    words = text.strip()
    ids = tokenizer.encode(text, add_special_tokens=False)
    single = tokenizer.encode(words, add_special_tokens=False)
    if len(single) == 1 and words[:1] in ("<", "[") and words[-1:] in (">", "]") and len(words) > 2:
        yield single[0]  # a token of the vocabulary that nobody has listed as one
    for token in ids:
        known = token in added and token != tokenizer.unk_token_id and not added[token].content.isspace()
        if token in configured or known:
            yield token


class Finishes:
    """Watches whether a model's answers end by themselves, from its first one on, until some have been seen."""

    def __init__(self, ends: Sequence[str], plain: bool, token: bool) -> None:
        """Take the names of what ends an answer here, and what is known of the template."""
        self._ends, self._plain, self._token = ends, plain, token
        self.seen = 0
        self.ended = 0

    def look(self, finish: Sequence[FinishReason], limit: int) -> None:
        """Count answers that were drawn up to `limit` tokens; warn on stderr where none of the first ones ended."""
        if self.seen >= FIRST:
            return
        self.seen += len(finish)
        self.ended += sum(reason is FinishReason.STOP for reason in finish)
        if self.seen >= FIRST and not self.ended:
            print(self._warning(limit), file=sys.stderr)

    def _warning(self, limit: int) -> str:
        if self._plain:
            cause = "a model without a chat template was probably never taught to end an answer"
        elif not self._token:
            cause = "the model was probably taught to end an answer with the words that its chat template writes there"
        else:
            cause = (
                "the model probably needs more tokens, or was taught to end an answer with a token that neither its"
                " chat template nor its generation_config.json names"
            )
        return (
            f"none of the first {self.seen} answers ended by itself: all were cut off, the last at {limit} tokens"
            f" (sample.max_new_tokens, or what a request asks for). Answers end with {' or '.join(self._ends)} here;"
            f" {cause}"
        )
