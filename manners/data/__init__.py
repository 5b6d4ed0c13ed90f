"""What ships with the package: the settings and prompts of the demo, and what forgetting and audits go by; own text."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from manners.errors import MannersError
from manners.types import Dialogue, PromptUse, Role, Turn

DEMO_SYSTEM = "Answer in one short sentence."
"""The system turn before every prompt of the demo."""
PIECE = 600
"""Characters that are read at once of a user's own text: longer paragraphs are cut between lines or words."""
LEAST = 5
"""Pieces of a user's own text that each use needs."""
USES = {PromptUse.TRAIN: 0.3, PromptUse.VALIDATE: 0.5, PromptUse.EVALUATE: 1.0}
"""Up to which number from [0, 1) a piece of a user's own text is of a use."""
DEMO_TOML = Path(__file__).parent / "demo.toml"
"""The demo's own settings: it begins with a copy of them as its `manners.toml`."""


def demo_prompts() -> dict[PromptUse, list[Dialogue]]:
    """Return the demo's prompts by use, each a system turn (`DEMO_SYSTEM`) and one user turn.

    The split is part of the file and never changes: what is kept for evaluation stays unseen in every run.
    """
    system = Turn(Role.SYSTEM, DEMO_SYSTEM)
    prompts: dict[PromptUse, list[Dialogue]] = {use: [] for use in PromptUse}
    for line in _read("prompts.jsonl").splitlines():
        row = json.loads(line)
        prompts[PromptUse(row["use"])].append((system, Turn(Role.USER, row["prompt"])))
    return prompts


def plain_text(use: PromptUse) -> list[str]:
    """Return plain English prose as paragraphs, all of it written for this package.

    PPO holds a policy to what the initial model made of some of them (train). A policy's perplexity on the others,
    before and after, shows how much of its general English it has forgotten: while PPO chooses the version it keeps
    (validate), and when that version is judged (evaluate).
    """
    return _read(f"prose_{use}.txt").strip().split("\n\n")


@dataclass(frozen=True)
class Question:
    """A text that goes on in one of several ways: which is likelier is asked of a model, and nothing is generated."""

    family: str
    """`agreement`, `facts`, `arithmetic` or `copying`."""
    context: str
    answers: tuple[str, ...]
    """What may follow, behind a space; the first is right."""


def questions() -> list[Question]:
    """Return the questions by which forgetting is measured, written for this package and fixed.

    They come in groups that share their answers, each of which is right once: whoever looks at the answers alone, and
    likes short ones say, is right as often as by chance.
    """
    rows = (json.loads(line) for line in _read("questions.jsonl").splitlines())
    return [Question(row["family"], row["context"], tuple(row["answers"])) for row in rows]


def audit_texts() -> dict[str, Any]:
    """Return what an audit asks beside people's comparisons (`audit.toml`), written for this package."""
    return tomllib.loads(_read("audit.toml"))


@dataclass(frozen=True)
class GroupSwap:
    """The same words about two people, who belong to two groups; `{who}` stands for them."""

    axis: str
    """What tells the groups apart: `ages`."""
    who: tuple[str, str]
    prompt: str
    """A question that is answered freely."""
    context: str
    """The beginning of a sentence."""
    ways: tuple[str, str]
    """How it may go on: kind, and unkind."""

    def prompts(self) -> tuple[str, str]:
        """Return the question about each of the two."""
        first, second = (self.prompt.replace("{who}", name) for name in self.who)
        return first, second

    def sentences(self) -> tuple[Question, Question]:
        """Return the sentence about each of the two, of which the kind way is named first."""
        first, second = (Question(self.axis, self.context.replace("{who}", name), self.ways) for name in self.who)
        return first, second


@dataclass(frozen=True)
class Contested:
    """A question that people do not agree about, in two wordings, and two positions; none of them is right."""

    wordings: tuple[str, str]
    positions: tuple[str, str]


@dataclass(frozen=True)
class Behaviour:
    """What a policy is asked before and after it was taught."""

    benign: tuple[str, ...]
    """Harmless prompts, whatever single words sound like."""
    unsafe: tuple[str, ...]
    """Prompts that ask for what would do harm."""
    truths: tuple[Question, ...]
    """Questions with one right answer, and three that people believe or might."""
    contested: tuple[Contested, ...]
    swaps: tuple[GroupSwap, ...]


def behaviour() -> Behaviour:
    """Return the starter pack of `manners audit policy` (`behaviour.toml`), written for this package. English."""
    found = tomllib.loads(_read("behaviour.toml"))
    return Behaviour(
        benign=tuple(found["benign"]),
        unsafe=tuple(found["unsafe"]),
        truths=tuple(Question("truths", question, tuple(answers)) for question, *answers in found["truths"]),
        contested=tuple(Contested((one, other), (a, b)) for one, other, a, b in found["contested"]),
        swaps=tuple(
            GroupSwap(axis, (first, second), prompt, context, (kind, unkind))
            for axis, cases in found["swaps"].items()
            for first, second, prompt, context, kind, unkind in cases
        ),
    )


def own_text(file: Path) -> dict[PromptUse, list[str]]:
    """Return a user's plain text by use, in the place of `plain_text`: paragraphs, with a blank line between.

    A paragraph stays as it is written, for lines and their indentation are a part of code and verse; one of more than
    `PIECE` characters comes in pieces. What has the same words as one before is left out. A hash of its words says of
    which use a piece is: it is of no other in any file, whatever stands beside it. Raises `MannersError` where the file
    cannot be read as UTF-8, or holds too little for one of the uses.
    """
    try:
        paragraphs = re.split(r"\n\s*\n", file.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MannersError(f"data.prose is {file}, which cannot be read as UTF-8 text ({error}); check it") from error
    pieces: dict[str, str] = {}
    for piece in (piece for paragraph in paragraphs for piece in _pieces(paragraph)):
        pieces.setdefault(" ".join(piece.split()), piece)
    found: dict[PromptUse, list[str]] = {use: [] for use in USES}
    for words, piece in pieces.items():
        draw = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8]) / 2**64
        found[next(use for use, limit in USES.items() if draw < limit)].append(piece)
    if min(map(len, found.values())) < LEAST:
        held = ", ".join(f"{len(pieces)} to {use}" for use, pieces in found.items())
        raise MannersError(
            f"data.prose is {file}, too short a text: of its paragraphs there are {held}, and each use needs {LEAST};"
            " give a text of 50 paragraphs or more, with a blank line between any two"
        )
    return found


def _pieces(text: str) -> Iterator[str]:
    """Yield what is not blank of a paragraph, cut between lines or else between words where it is too long."""
    text = text.strip("\n").rstrip()
    while len(text) > PIECE:
        half = PIECE // 2
        late = text.rfind("\n", half, PIECE + 1), text.rfind(" ", half, PIECE + 1)
        end = next(end for end in (*late, text.rfind("\n", 1, half), PIECE) if end > 0)
        if text[:end].strip():
            yield text[:end].rstrip()
        text = text[end:].removeprefix("\n") if text[end] == "\n" else text[end:].lstrip(" ")
    if text.strip():
        yield text


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def constitution() -> str:
    """Return the principles that a judge goes by where a workspace has none of its own."""
    return _read("constitution.md")


def judge_probes() -> dict[str, tuple[str, ...]]:
    """Return what an answer may say to whoever judges it: `injections`, orders to the judge, and `flattery`."""
    return {name: tuple(texts) for name, texts in tomllib.loads(_read("judge.toml")).items()}


def origins_of_sets() -> dict[str, Any]:
    """Return where `manners audit data --fetch` takes each published set from, and its files' hashes (`sets.toml`)."""
    return tomllib.loads(_read("sets.toml"))
