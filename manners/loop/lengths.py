"""How long the dialogues at hand are, in a model's tokens: from a file, or from a workspace's record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.settings import ModelSettings
from manners.store.files.rows import Reason
from manners.store.files.transfer import read_comparisons
from manners.text import Renderer
from manners.turns import template_of
from manners.types import Comparison, Dialogue, Response

MOST = 2000
"""Exchanges that are turned into tokens; of more, as many at even distances, and those of most characters."""
LONGEST = 32
ENDLESS = 1_000_000_000
"""A context into which everything fits, in tokens."""


@dataclass(frozen=True)
class AtHand:
    """What dialogues there are, in tokens."""

    source: str
    """Where they come from, in words."""
    exchanges: tuple[tuple[int, int], ...] = ()
    """Tokens of a prompt, and of the longest response to it; 0 where there is none."""
    responses: tuple[int, ...] = ()
    pairs: int = 0
    """Comparisons there are."""
    distinct: int = 0
    """Different prompts there are."""

    @property
    def prompts(self) -> list[int]:
        """Tokens of the prompts."""
        return [prompt for prompt, _ in self.exchanges]

    @staticmethod
    def quantile(numbers: Sequence[int], share: float) -> int:
        """Return the smallest of the numbers that this share of them does not exceed."""
        return sorted(numbers)[max(0, ceil(share * len(numbers)) - 1)]


def renderer_of(tokenizer: PreTrainedTokenizerBase, model: ModelSettings) -> Renderer:
    """Return what lays dialogues out as the stages will, into a context without end."""
    end = tokenizer.eos_token_id
    template = template_of(tokenizer, model.chat_template, model.template_arguments)
    return Renderer(tokenizer, frozenset(() if end is None else (int(end),)), ENDLESS, template)


def of_file(file: Path, renderer: Renderer, mapping: Mapping[str, str]) -> AtHand:
    """Measure a file of comparisons, whatever the verdicts; rows that cannot be read are counted and said."""
    skipped = Counter[Reason]()
    comparisons = list(read_comparisons(file, mapping, skipped=skipped, words=None))
    left_out = f", {sum(skipped.values()):,} rows of it left out that cannot be read" if skipped else ""
    if not comparisons:
        raise MannersError(f"{file} holds no comparison that can be read{left_out}; `--dry-run` of an import says why")
    return at_hand(comparisons, (), renderer, f"{file.name} ({len(comparisons):,} comparisons{left_out})")


def at_hand(comparisons: Sequence[Comparison], prompts: Iterable[Dialogue], renderer: Renderer, source: str) -> AtHand:
    """Measure comparisons, and prompts that nothing was compared on."""
    known: dict[Dialogue, list[Response]] = {prompt: [] for prompt in prompts}
    for one in comparisons:
        known.setdefault(one.prompt, []).extend((one.left, one.right))
    exchanges, responses = list[tuple[int, int]](), list[int]()
    for prompt, answers in _some(list(known.items())):
        try:
            lengths = [len(renderer.response_ids(response)) for response in answers]
            exchanges.append((len(renderer.prompt_ids(prompt)[0]), max(lengths, default=0)))
        except (MannersError, TemplateError, ValueError):  # what a template refuses is said where it is read to learn
            continue
        responses += lengths
    return AtHand(source, tuple(exchanges), tuple(responses), len(comparisons), len(known))


def _some(found: list[tuple[Dialogue, list[Response]]]) -> list[tuple[Dialogue, list[Response]]]:
    """Return all, or some at even distances and those of most characters."""
    if len(found) <= MOST:
        return found

    def characters(index: int) -> int:
        prompt, answers = found[index]
        return sum(len(turn.text) for turn in prompt) + max((len(r.text) for r in answers), default=0)

    even = range(0, len(found), -(-len(found) // MOST))
    longest = sorted(range(len(found)), key=lambda index: -characters(index))[:LONGEST]
    return [found[index] for index in sorted({*even, *longest})]
