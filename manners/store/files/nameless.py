"""Verdicts of which a file does not say whose they are: on two texts, each is another person's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from manners.store.files.formats import IMPORTED
from manners.store.records import digest, to_messages
from manners.types import Annotator, Choice, Comparison, Dialogue, Turn

Opinions = Mapping[tuple[str, Annotator], set[str]]
"""What is known to be said of two texts by whom, as `_opinion` writes it."""


def pair_digest(comparison: Comparison) -> str:
    """Return what two comparisons share that are about the same prompt and texts, in whatever order."""
    return digest(to_messages(comparison.prompt), *sorted((comparison.left.text, comparison.right.text)))


def opinions(stored: Iterable[Comparison]) -> Opinions:
    """Return what people without a name have said on comparisons that are stored."""
    found: defaultdict[tuple[str, Annotator], set[str]] = defaultdict(set)
    for comparison in stored:
        for verdict in comparison.verdicts:
            if verdict.annotator.name.startswith(IMPORTED.name):
                found[pair_digest(comparison), verdict.annotator].add(_opinion(comparison, verdict.choice))
    return found


def _opinion(comparison: Comparison, choice: Choice) -> str:
    """Return a choice such that it does not matter in which order the two texts stand."""
    sides = {Choice.LEFT: comparison.left, Choice.RIGHT: comparison.right}
    return f"prefers {sides[choice].text}" if choice in sides else choice.value


class Nameless:
    """Names for those whose verdicts a file gives without one: `imported`, `imported-2`, `imported-3` and so on.

    A verdict that the store has already from somebody without a name, and that no earlier row of the file has been, is
    theirs; else it is somebody's whom the store does not know. So a file that comes in again adds nothing, and people
    who disagree stay apart, also where their verdicts come in several files.
    """

    def __init__(self, known: Opinions | None = None) -> None:
        """Take what the store has."""
        self._known = known or {}
        self._used: defaultdict[str, set[Annotator]] = defaultdict(set)
        self._next: defaultdict[tuple[str, Annotator, str], int] = defaultdict(lambda: 1)

    def numbered(self, comparison: Comparison) -> Comparison:
        """Name the annotator of a comparison's verdict, if it has one."""
        if not comparison.verdicts:
            return comparison
        [verdict] = comparison.verdicts
        pair = pair_digest(comparison)
        opinion = _opinion(comparison, verdict.choice)
        place = pair, verdict.annotator, opinion
        # Who cannot be meant now never can be later: the search goes on where it ended.
        while not self._may_be(who := _number(verdict.annotator, self._next[place]), pair, opinion):
            self._next[place] += 1
        self._used[pair].add(who)
        return replace(comparison, verdicts=(replace(verdict, annotator=who),))

    def _may_be(self, who: Annotator, pair: str, opinion: str) -> bool:
        said = self._known.get((pair, who))
        return who not in self._used[pair] and (said is None or opinion in said)


def _number(annotator: Annotator, number: int) -> Annotator:
    return annotator if number == 1 else replace(annotator, name=f"{annotator.name}-{number}")


class Endings:
    """Texts that differ only in how their lines end are one text: spreadsheets write `\\r\\n` where `\\n` was.

    The store's text stands, the very same where it has that, and of those that it does not have the first of the file.
    """

    def __init__(self, stored: Iterable[Comparison]) -> None:
        """Take what the store has."""
        self._texts: dict[str, str] = {}
        self._prompts: dict[Dialogue, Dialogue] = {}
        for comparison in stored:
            self.known(comparison)
            self._prompts[comparison.prompt] = comparison.prompt
            self._texts |= {side.text: side.text for side in (comparison.left, comparison.right)}

    def known(self, comparison: Comparison) -> Comparison:
        """Return a comparison with the texts that are known already in place of its own."""
        prompt = self._prompt(comparison.prompt)
        sides = (comparison.left, comparison.right)
        left, right = (replace(side, text=self._text(side.text)) for side in sides)
        if (prompt, left, right) == (comparison.prompt, *sides) or left.text == right.text:
            return comparison
        return replace(comparison, prompt=prompt, left=left, right=right)

    def _prompt(self, said: Dialogue) -> Dialogue:
        if said in self._prompts:
            return self._prompts[said]
        return self._prompts.setdefault(tuple(Turn(turn.role, _plain(turn.text)) for turn in said), said)

    def _text(self, said: str) -> str:
        return self._texts[said] if said in self._texts else self._texts.setdefault(_plain(said), said)


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
