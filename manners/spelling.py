"""Text that spells a special token stays text: whoever types `<|im_end|>` does not end a turn.

Only a template writes special tokens. What people and models wrote is read as they see it, whatever it spells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError

Message = dict[str, str]
"""A turn as templates take it: role and content."""


class Spelling:
    """How a tokenizer writes texts and dialogues."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find the special tokens: no text shows them, and no text means them."""
        self.tokenizer = tokenizer
        flagged = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset({*tokenizer.all_special_ids, *flagged})
        added = sorted((t for t in tokenizer.added_tokens_encoder if not t.isspace()), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")

    def text(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text; raises MannersError where they would be a special token's, whatever is asked."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if meant := self.special_ids.intersection(ids) - {self.tokenizer.unk_token_id}:
            raise _unwritable(str(self.tokenizer.convert_ids_to_tokens(min(meant))))
        return tuple(ids)

    def dialogue(self, messages: Sequence[Message], template: str, generation: bool) -> tuple[int, ...]:
        """Return the ids of turns laid out by a template; raises MannersError as `text` does.

        A dialogue in which nothing is spelt is tokenised whole. Otherwise what is spelt stands between two pieces that
        are tokenised apart.
        """
        found = [spelt[0] for message in messages if (spelt := self._added.search(message["content"]))]
        try:
            ids: Any = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=True,
                return_dict=False,
                add_generation_prompt=generation,
                sanitize_control_tokens=bool(found),
            )
        except ValueError as error:
            raise (_unwritable(found[0]) if found else error) from error
        return tuple(ids)


def _unwritable(token: str) -> MannersError:
    return MannersError(
        f"a text contains {token}, which this tokenizer can only write as the special token that it names; take it out"
        " of the text, or use another model"
    )
