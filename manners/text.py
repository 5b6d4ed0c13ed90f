"""Dialogue <-> token ids: BOS, end-of-turn tokens, what fits into the context, and padding.

Every stage renders through one `Renderer`, whose `template_hash` is stored with each model version, so that a reward
model is never asked about text that was laid out in another way than the text it learned from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.shorten import Check, fitting_prompt, fitting_response, longest_ending, prompt_room
from manners.spelling import Spelling, spelt_bytes
from manners.templates import Template, messages_of
from manners.turns import Finishes, ending, own_bos, template_of
from manners.types import Dialogue, FinishReason, Response, Role, Turn

PADDING = 64
"""Tokens of padding that cost less than one forward more."""
PADDING_SHARE = 0.125
SHORTEST_COMMON = 8
"""Tokens that prompts must begin with in common for these to be read once for all."""


class TooLong(MannersError):
    """A prompt whose last turn alone does not fit into the context."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a prompt and of the response after it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    dropped: int = 0
    """Tokens that were dropped so that the rest fits: whole turns, or the beginning of the only turn left, or the end
    of the response before the token that ends it."""

    @property
    def shortened(self) -> bool:
        """Whether anything was dropped."""
        return self.dropped > 0

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class Batch:
    """Sequences side by side: prompts end, and responses begin, at one column.

    Columns 0..P-1 hold the prompts, padded at the left; columns P..P+T-1 the responses, padded at the right.
    """

    ids: Int[Tensor, "B L"]
    attend: Bool[Tensor, "B L"]
    """True at real tokens of prompt and response."""
    prompt_width: int
    """P, in tokens."""
    common: int = 0
    """With so many tokens all prompts begin (a system turn, say), and none ends there."""
    keep: Bool[Tensor, "B T"] = field(init=False)
    """True at real response tokens; the end-of-turn token counts."""

    def __post_init__(self) -> None:
        """Derive `keep`."""
        object.__setattr__(self, "keep", self.attend[:, self.prompt_width :])

    @property
    def response_ids(self) -> Int[Tensor, "B T"]:
        """The response columns."""
        return self.ids[:, self.prompt_width :]

    @property
    def positions(self) -> Int[Tensor, "B L"]:
        """Position of each token in its own sequence, counted without padding."""
        return (self.attend.long().cumsum(dim=1) - 1).clamp(min=0)

    @property
    def last(self) -> Int[Tensor, " B"]:
        """Index (0..T-1) of the last kept response token of each row."""
        return self.keep.sum(dim=1) - 1

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Row and column (of L) of the last token of each response."""
        return torch.arange(len(self.ids), device=self.ids.device), self.prompt_width + self.last

    def rows(self, index: Sequence[int] | Tensor) -> Batch:
        """Return some rows, in the order given."""
        return Batch(self.ids[index], self.attend[index], self.prompt_width, self.common)

    def trim(self) -> tuple[Batch, slice]:
        """Cut off the columns that no row uses; return also which columns of L remain."""
        used = self.attend.any(dim=0).nonzero().squeeze(1)
        columns = slice(int(used[0]), int(used[-1]) + 1)
        ids, attend = self.ids[:, columns], self.attend[:, columns]
        return Batch(ids, attend, self.prompt_width - columns.start, self.common), columns

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return Batch(self.ids.to(device), self.attend.to(device), self.prompt_width, self.common)


@dataclass(frozen=True)
class Segment:
    """Neighbouring columns of a row that look at themselves, causally, and at all of what they stand behind."""

    start: int
    stop: int
    """The column after the last."""
    behind: tuple[tuple[int, int], ...] = ()
    """First columns and those after the last of what stands before it, in its order."""

    @property
    def lead(self) -> int:
        """Tokens that it stands behind."""
        return sum(stop - start for start, stop in self.behind)


@dataclass(frozen=True)
class Packed:
    """Sequences for scoring: a row holds a prompt once, and the responses to it one after another.

    A response attends to the prompt and to itself, at the positions that it would have alone.
    """

    ids: Int[Tensor, "B L"]
    attend: Bool[Tensor, "B 1 L L"] | Bool[Tensor, "B L"]
    """Whether a token (third axis) may look at another (fourth axis); where nothing is shared, True at real tokens."""
    positions: Int[Tensor, "B L"]
    spans: tuple[tuple[int, int, int], ...]
    """Of each response, in the order given: row, first column, and the column after its last."""
    common: int = 0
    """As in `Batch`."""
    segments: tuple[Segment, ...] = ()
    """Where all stand in a single row: who looks at what, which `attend` does not say then."""

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Row and column of the last token of each response."""
        rows, _, stops = torch.tensor(self.spans, device=self.ids.device).unbind(1)
        return rows, stops - 1

    def to(self, device: torch.device) -> Packed:
        """Return the batch on `device`."""
        ids, attend, positions = (tensor.to(device) for tensor in (self.ids, self.attend, self.positions))
        return Packed(ids, attend, positions, self.spans, self.common, self.segments)


def common_start(prompts: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens that all prompts begin with and none ends with; 0 where reading them once would save little."""
    first = prompts[0]
    limit = min(map(len, prompts)) - 1
    differing = (at for at in range(limit) if any(prompt[at] != first[at] for prompt in prompts))
    count = next(differing, limit)
    return count if count >= SHORTEST_COMMON else 0


def collate(rendered: Sequence[Rendered], pad_id: int) -> Batch:
    """Lay sequences side by side; the pad id is masked everywhere and so has no effect."""
    prompt_width = max(len(r.prompt_ids) for r in rendered)
    response_width = max(len(r.response_ids) for r in rendered)
    ids = torch.full((len(rendered), prompt_width + response_width), pad_id, dtype=torch.long)
    attend = torch.zeros_like(ids, dtype=torch.bool)
    for row, r in enumerate(rendered):
        start, stop = prompt_width - len(r.prompt_ids), prompt_width + len(r.response_ids)
        ids[row, start:stop] = torch.tensor(r.prompt_ids + r.response_ids)
        attend[row, start:stop] = True
    return Batch(ids, attend, prompt_width, common_start([r.prompt_ids for r in rendered]))


def length_buckets(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Split indices into groups of similar length, longest first (what will not fit fails early).

    A group takes at most `limit` tokens with its padding, of which there are at most `PADDING` tokens or
    `PADDING_SHARE` of all; what is longer by itself stands alone.
    """
    buckets: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[index]
        tokens = longest * (len(buckets[-1]) + 1) if buckets else 0
        if not buckets or tokens > limit or padding > max(PADDING, PADDING_SHARE * tokens):
            buckets.append([])
            longest = lengths[index]
            padding = 0
        buckets[-1].append(index)
    return buckets


def flat_buckets(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Split indices, in their order, into groups of at most `limit` tokens; what is longer stands alone."""
    buckets = list[list[int]]()
    tokens = 0
    for index, length in enumerate(lengths):
        tokens += length
        if not buckets or tokens > limit:
            buckets.append([])
            tokens = length
        buckets[-1].append(index)
    return buckets


class Renderer:
    """Renders dialogues for one tokenizer; made once per model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        context: int,
        template: Template | None = None,
    ) -> None:
        """Take a tokenizer, the ids that the model's files end a turn with, and the context in tokens.

        Without `template` it is the tokenizer's own.
        """
        self.tokenizer = tokenizer
        self.context = context
        self.template = template or template_of(tokenizer)
        self.plain = self.template.plain
        """Whether the plain fallback stands in for a chat template; recorded with every version."""
        self.bos = own_bos(tokenizer)
        """What the tokenizer itself puts before a text, for the model was trained with it: a BOS, or nothing."""
        ends = ending(tokenizer, self.template, end_ids)
        self.end_ids, self.end_id = ends.ids, ends.end
        self.notes = tuple(note for note in (self.template.note, ends.note) if note)
        """What a reader should know of how this model's dialogues are laid out."""
        names = [str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(self.end_ids)]
        self.finishes = Finishes(names, self.plain, ends.token)
        """Hears of answers that are drawn, and warns where none ends."""
        self._spelling = Spelling(tokenizer, self.template, self.end_ids)
        self.special_ids = self._spelling.special_ids
        """Tokens that no text shows, and that no text means."""
        self.pad_id = self._distinct_pad()
        described = f"{self.template.identity}|{self.end_id}|{not self.template.folds}"
        self.template_hash = hashlib.sha256(described.encode()).hexdigest()[:16]
        self._check_one_bos()

    def prompt_ids(
        self, prompt: Dialogue, reserve: int = 0, check: Check = lambda: None
    ) -> tuple[tuple[int, ...], int]:
        """Return the ids of a prompt, up to where the assistant begins, and how many turns were dropped.

        Turns are dropped whole from the left, a system turn never, until prompt + `reserve` tokens fit into the
        context. Raises `TooLong` when the last turn alone does not fit, `Refused` as `Template.check` does, and what
        `check` raises, which is called on the way.
        """
        self.template.check(prompt)
        ending = longest_ending(self._ids, self._size, prompt, self.context - reserve, check)
        if len(ending.ids) + reserve <= self.context:
            return ending.ids, ending.dropped
        shorter = "shorten the prompt, " if reserve < self.context else ""
        raise TooLong(
            f"a prompt's last turn takes {len(ending.ids)} tokens and {reserve} are reserved for the response, but"
            f" model.context is {self.context}; {shorter}ask for fewer tokens (`max_tokens` of a request, or"
            " sample.max_new_tokens or serve.max_new_tokens) or raise model.context"
        )

    def response_ids(self, response: Response) -> tuple[int, ...]:
        """Return the ids of a response; the end-of-turn token is there unless the length limit cut it off."""
        return self._said(response.text, response.finish_reason, drawn=response.sampling is not None)

    def reads_back(self, ids: tuple[int, ...], finish: FinishReason) -> bool:
        """Return whether the text of a drawn response is read in these tokens, and not in others or in none."""
        try:
            return self._said(self.decode(ids), finish, drawn=True) == ids
        except MannersError:  # it spells what this tokenizer cannot write as text
            return False

    def whole(self, prompt: Dialogue, response: Response) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of a prompt and a response, however long they are; raises as `prompt_ids` and `text_ids`."""
        self.template.check(prompt)
        return self._ids(prompt), self.response_ids(response)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text as it reads; raises MannersError where it spells what cannot be written."""
        return self._spelling.text(text)

    def render(self, prompt: Dialogue, response: Response) -> Rendered:
        """Render a prompt and a response, shortened so that they fit; for reading and scoring, never for answering."""
        return self.render_beside(prompt, [response])[0]

    def render_beside(self, prompt: Dialogue, responses: Sequence[Response]) -> list[Rendered]:
        """Render a prompt once and the responses that are compared on it; they all see the same of it.

        The prompt leaves room for the longest of them, up to half the context (`shorten.fitting_prompt`); a response is
        cut at the right where the prompt leaves less than it takes, and keeps the token that ends it.
        """
        self.template.check(prompt)
        whole = [self.response_ids(response) for response in responses]
        ids = self._ids(prompt)
        room = prompt_room(len(ids), max(map(len, whole)), self.context)
        kept = ids
        if len(ids) > room:
            kept = fitting_prompt(self._ids, self._size, prompt, room, self.tokenizer.bos_token_id)
        cut = [fitting_response(response_ids, self.context - len(kept), self.end_id) for response_ids in whole]
        lost = len(ids) - len(kept)
        return [Rendered(kept, short, lost + len(long) - len(short)) for short, long in zip(cut, whole, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of response ids without special tokens, otherwise exactly as the model wrote it.

        But for the character NUL, which PostgreSQL cannot hold: like bytes that are no text, it becomes U+FFFD.
        """
        said = [token for token in ids if token not in self.special_ids]
        text = str(self.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return text.replace("\0", "\ufffd")

    def token_text(self, token: int) -> str:
        """Return what one token writes in the middle of a text, or a special token's name."""
        if token in self.special_ids:
            return str(self.tokenizer.convert_ids_to_tokens(token))
        before = self.tokenizer.encode("a", add_special_tokens=False)  # some tokenizers drop a text's first space
        return self.decode([*before, token])[len(self.decode(before)) :]

    def token_bytes(self, token: int) -> bytes:
        """Return what one token writes, which may be a part of a character; of a special token, its name.

        A part of a character is spelt in the vocabulary, byte by byte: `<0xE2>`, or by GPT-2's alphabet of bytes. A
        spelling counts where it is read as what the token writes.
        """
        text = self.token_text(token)
        if "\ufffd" in text:
            name = str(self.tokenizer.convert_ids_to_tokens(token))
            for raw in spelt_bytes(name):
                if raw.decode(errors="replace").replace("\0", "\ufffd") == text:
                    return raw
        return text.encode()

    def _said(self, text: str, finish: FinishReason, drawn: bool) -> tuple[int, ...]:
        ids = self._spelling.text(text, drawn)
        if finish is FinishReason.LENGTH:
            return ids or (self.end_id,)
        return (*ids, self.end_id)

    def _ids(self, dialogue: Dialogue) -> tuple[int, ...]:
        return self._spelling.dialogue(messages_of(dialogue))

    def _size(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _distinct_pad(self) -> int:
        """Choose a pad id that ends nothing and begins nothing (exports find the last real token by it)."""
        tokenizer = self.tokenizer
        candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(self.special_ids)]
        used = {*self.end_ids, self.end_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        used |= self._spelling.written
        for candidate in candidates:
            if candidate is not None and candidate not in used:
                return int(candidate)
        # No spare special token: any ordinary token will do inside, where masks decide; 0 is always there.
        return next(index for index in range(len(tokenizer)) if index not in used)

    def _check_one_bos(self) -> None:
        ids = self._ids((Turn(Role.USER, "x"),))
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == (bos, bos):
            raise MannersError(
                "the chat template begins with two BOS tokens, which no model was trained on; remove one"
            )
