"""What somebody's file means by its own names: which column is which field of ours, and which word which verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from manners.errors import UsageError
from manners.store.files.rows import BadRow, Reason
from manners.types import Choice

BY_SIGN = {"-1": Choice.LEFT, "0": Choice.TIE, "1": Choice.RIGHT}
"""A number on a line from the first response to the second: below zero the first is better, above it the second."""


def column_and_field(text: str) -> tuple[str, str]:
    """Return the two sides of `COLUMN=FIELD`, as `--map` takes it."""
    column, equals, field = text.partition("=")
    if not (column and equals and field):
        raise UsageError(f"--map {text}: write it as COLUMN=FIELD, for example --map question=prompt.")
    return column, field


def mapping_of(options: Iterable[str]) -> dict[str, str]:
    """Return what the options `--map` say; several columns may be `prompt`, which they are then together."""
    found: dict[str, str] = {}
    for column, field_name in map(column_and_field, options):
        if found.get(column, field_name) != field_name:
            raise UsageError(f"--map: the column `{column}` cannot be both `{found[column]}` and `{field_name}`.")
        others = [name for name, ours in found.items() if ours == field_name != "prompt" and name != column]
        if others:
            raise UsageError(
                f"--map: `{others[0]}` and `{column}` cannot both be `{field_name}`; only prompts are joined."
            )
        found[column] = field_name
    return found


def words_of(options: Iterable[str]) -> dict[str, Choice]:
    """Return what the options `--verdict` say."""
    found: dict[str, Choice] = {}
    for word, choice in map(word_and_verdict, options):
        if found.setdefault(word, choice) is not choice:
            raise UsageError(f"--verdict: {word!r} cannot mean both {found[word]} and {choice}.")
    return found


def word_and_verdict(text: str) -> tuple[str, Choice]:
    """Return the two sides of `WORD=VERDICT`, as `--verdict` takes it."""
    word, equals, verdict = text.rpartition("=")
    if not (word and equals and verdict in tuple(Choice)):
        known = ", ".join(Choice)
        raise UsageError(f"--verdict {text}: write it as WORD=VERDICT, for example model_a=left; verdicts are {known}.")
    return word, Choice(verdict)


@dataclass(frozen=True, slots=True)
class Words:
    """Which word of a file is which verdict; our own words need not be among them."""

    meant: Mapping[str, Choice] = field(default_factory=dict)

    def read(self, word: str) -> tuple[Choice, int | None]:
        """Return the verdict that a word means, and its strength where a number says it. Raises BadRow for no verdict.

        A number that is not among the words goes by its sign where both signs are: then 1, 2 and 3, of either sign, are
        the strengths that ours are, and 0 is a tie.
        """
        meant = {_plain(known): choice for known, choice in self.meant.items()}
        plain = _plain(word)
        value, numbers = _number(plain), {_number(known) for known in meant} - {None}
        by_sign = min(numbers, default=0) < 0 < max(numbers, default=0)  # type: ignore[type-var, operator]
        strength = abs(int(value)) if by_sign and value in (-3, -2, -1, 1, 2, 3) else None
        if plain in meant:
            return meant[plain], strength
        if plain in tuple(Choice):
            return Choice(plain), None
        if value is not None:
            same = [choice for known, choice in meant.items() if _number(known) == value]
            signed = [choice for known, choice in meant.items() if by_sign and (_number(known) or 0) * value > 0]
            if found := same or signed or ([Choice.TIE] if by_sign and value == 0 else []):
                return found[0], strength
        known_words = f"{', '.join([*Choice, *self.meant])}; --verdict WORD=VERDICT says what another means"
        raise BadRow(Reason.VERDICT, "verdict", f"is {word[:40]!r}, which is not one of {known_words}")


def _plain(word: str) -> str:
    return " ".join(word.split()).casefold()


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
