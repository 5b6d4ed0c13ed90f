"""Text that spells a control token stays text: whoever types `<|im_end|>` does not end a turn.

Only a template writes control tokens: special ones, those that end an answer, and those that it writes itself, whether
their tokenizer calls them special or not. What people and programs wrote is read as they see it, whatever it spells. A
model's own answer is what it drew: a token that can be seen, such as `<think>`, is that token again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import mark_control_tokens

from manners.errors import MannersError
from manners.templates import Message, Refused, Template
from manners.types import Role


class Spelling:
    """How a tokenizer writes texts and dialogues."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, ends: AbstractSet[int]) -> None:
        """Find the special tokens, which no text shows, and all that no text of people's means."""
        self.tokenizer = tokenizer
        self.template = template
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        flagged = {index for index, token in added.items() if token.special}
        self.special_ids = frozenset({*tokenizer.all_special_ids, *flagged, *ends})
        self.written = _written(tokenizer, template)
        """Added tokens that the template writes."""
        self.control_ids = self.special_ids | self.written
        self._control = self._spelt(self.control_ids)
        self._special = self._spelt(self.special_ids)
        self._unflagged = self._spelt(self.control_ids - flagged)
        self._unflagged_special = self._spelt(self.special_ids - flagged)
        self._normalizer = None
        if any(added[index].normalized for index in self.control_ids if index in added):
            self._normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)

    def text(self, text: str, drawn: bool = False) -> tuple[int, ...]:
        """Return the ids of a text, in which `drawn` says whether the model itself wrote it.

        Raises MannersError where they would be a control token's, whatever is asked.
        """
        if (self._unflagged_special if drawn else self._unflagged).search(text):
            control = self._special if drawn else self._control
            ids = self._encode(mark_control_tokens(text, control), text)
        else:
            ids = tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        shut_out = self.special_ids if drawn else self.control_ids
        if meant := shut_out.intersection(ids) - {self.tokenizer.unk_token_id}:
            raise _unwritable(str(self.tokenizer.convert_ids_to_tokens(min(meant))))
        return ids

    def dialogue(self, messages: Sequence[Message], generation: bool = True) -> tuple[int, ...]:
        """Return the ids of turns laid out by the template; raises MannersError as `text` and the template do.

        A dialogue in which nothing is spelt is tokenised whole. Otherwise what is spelt stands between two pieces that
        are tokenised apart.
        """
        self._refuse_disguised(message["content"] for message in messages)
        spelt = next((found[0] for message in messages if (found := self._control.search(message["content"]))), "")
        shown = mark_control_tokens(list(messages), self._control) if spelt else messages
        return self._encode(self.template.render(shown, generation), spelt)

    def _encode(self, text: str, spelt: str) -> tuple[int, ...]:
        """Return the ids of a text in which control tokens that are spelt are marked; `spelt` is one, or nothing."""
        try:
            ids: Any = self.tokenizer(text, add_special_tokens=False, sanitize_control_tokens=bool(spelt))["input_ids"]
        except ValueError as error:
            found = self._control.search(spelt)
            raise (_unwritable(found[0]) if found else error) from error
        return tuple(ids)

    def _refuse_disguised(self, texts: Iterable[str]) -> None:
        """Raise MannersError for a text that spells a control token only after the tokenizer has normalised it."""
        if self._normalizer is None:
            return
        for text in texts:
            meant = self._control.findall(self._normalizer.normalize_str(text))
            if len(meant) > len(self._control.findall(text)):
                raise _unwritable(meant[0])

    def _spelt(self, ids: AbstractSet[int]) -> re.Pattern[str]:
        """Return what finds these tokens in a text, the longest first; of white space there is none."""
        names = (str(self.tokenizer.convert_ids_to_tokens(index)) for index in ids)
        listed = sorted((name for name in names if name and not name.isspace()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, listed)) or "(?!)")


def _written(tokenizer: PreTrainedTokenizerBase, template: Template) -> set[int]:
    """Return the added tokens that a template writes: those in its text, and those that it puts together.

    Words and white space that somebody has added to the vocabulary are none, though templates contain them.
    """
    shapes = ((Role.USER,), (Role.SYSTEM, Role.USER), (Role.USER, Role.ASSISTANT, Role.USER))
    laid_out = [template.source]
    for roles in shapes:
        try:
            laid_out.append(template.render([{"role": role.value, "content": "x"} for role in roles]))
        except Refused:
            continue
    added = {name: index for name, index in tokenizer.added_tokens_encoder.items() if not name.isspace()}
    marks = {name: index for name, index in added.items() if not name.strip().isalnum()}
    return {index for name, index in marks.items() if any(name in text for text in laid_out)}


def _unwritable(token: str) -> MannersError:
    return MannersError(
        f"a text contains {token}, which this tokenizer can only write as the special token that it names; take it out"
        " of the text, or use another model"
    )


def spelt_bytes(name: str) -> list[bytes]:
    """Return the bytes that a token's name may spell: of a byte of its own, or in GPT-2's alphabet of bytes."""
    if found := re.fullmatch("<0x([0-9A-Fa-f]{2})>", name):
        return [bytes.fromhex(found[1])]
    alphabet = _alphabet()
    return [bytes(alphabet[letter] for letter in name)] if alphabet.keys() >= set(name) else []


@cache
def _alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, the others for letters from U+0100 on, in order.

    Source: GPT-2, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
