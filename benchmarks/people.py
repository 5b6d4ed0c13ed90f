"""Real people's comparisons, from the folder that MANNERS_DATA names: in four sets it is on record who said what."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manners.audit.forms import marks
from manners.audit.material import preferred
from manners.reward.groups import uniform
from manners.reward.labelled import LabelledPair
from manners.store.files.transfer import read_comparisons
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict

CHOICES = {"a": Choice.LEFT, "b": Choice.RIGHT, "tie": Choice.TIE}
BUSY = 40
"""People whose verdicts are looked for first: of whom little is known, nothing can be told apart."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file, which may be packed."""
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def comparison(
    number: int, prompt: str, sides: Sequence[tuple[str, str]], votes: Iterable[tuple[object, str]], of: str
) -> Comparison:
    """Return a pair of texts, each with its author, and what people said of it."""
    verdicts = tuple(
        Verdict(CHOICES[said], Annotator(f"{of} {who}", AnnotatorKind.HUMAN)) for who, said in votes if said in CHOICES
    )
    left, right = (Response(text, author) for text, author in sides)
    return Comparison((Turn(Role.USER, prompt),), left, right, AskedHow.IMPORTED, verdicts=verdicts, id=number)


def _answers(path: Path, of: str) -> list[Comparison]:
    """Read a set of answers of models, with votes."""
    return [
        comparison(
            number,
            row["prompt"],
            [(row["response_a"], row["model_a"]), (row["response_b"], row["model_b"])],
            [(vote["annotator"], vote["label"]) for vote in row["votes"]],
            of,
        )
        for number, row in enumerate(rows(path), 1)
        if row["response_a"].strip() and row["response_b"].strip()
    ]


def _arguments(pairs: Path, arguments: Path) -> list[Comparison]:
    """Read the arguments that people found more or less convincing: the debate and the stance are the prompt."""
    written = {row["id"]: row for row in rows(arguments)}
    made = []
    for number, row in enumerate(rows(pairs), 1):
        a, b = written[row["a"]], written[row["b"]]
        prompt = f"{a['debate']}: {a['stance']}. Argue for this."
        sides = [(side["text"], "debater") for side in (a, b)]
        made.append(comparison(number, prompt, sides, [(who, said) for who, said in row["votes"]], "ukp"))
    return made


TRANSCRIPTS = "hh_rlhf_harmless"
FILES: Mapping[str, Sequence[str]] = {
    "llmfao_crowd_pairs": ("pairs.jsonl.gz",),
    "pandalm_testset": ("pairs.jsonl",),
    "open_instruct_human_eval": ("pairs.jsonl.gz",),
    "ukpconvarg1_crowd_pairs": ("pairs.jsonl.gz", "arguments.jsonl.gz"),
    TRANSCRIPTS: ("pairs.jsonl.gz",),
}
"""Of each set, the pairs first."""


def files_of(name: str, data: Path) -> list[Path]:
    """Return the files of a set, of which the first holds a pair a row."""
    return [data / name / file for file in FILES[name]]


CROWDS: Mapping[str, Callable[[Path], list[Comparison]]] = {
    "llmfao_crowd_pairs": lambda data: _answers(files_of("llmfao_crowd_pairs", data)[0], "llmfao"),
    "pandalm_testset": lambda data: _answers(files_of("pandalm_testset", data)[0], "pandalm"),
    "open_instruct_human_eval": lambda data: _answers(files_of("open_instruct_human_eval", data)[0], "tulu"),
    "ukpconvarg1_crowd_pairs": lambda data: _arguments(*files_of("ukpconvarg1_crowd_pairs", data)),
}
"""Sets with several verdicts on a pair, by people who can be told apart."""


def transcripts(data: Path) -> list[Comparison]:
    """Return Anthropic's harmless transcripts: one verdict on each."""
    found = read_comparisons(files_of(TRANSCRIPTS, data)[0], {})
    return [replace(one, id=number) for number, one in enumerate(found, 1)]


def dense(comparisons: Sequence[Comparison], count: int, seed: int = 0) -> list[Comparison]:
    """Return so many comparisons that the busiest people have judged most, drawn by the seed where it is as much.

    By who judged, never by what was said: a random part of a large set knows nearly nobody.
    """
    given = Counter(v.annotator for one in comparisons for v in one.verdicts)
    busy = {who for who, _ in given.most_common(BUSY)}
    order = sorted(
        comparisons, key=lambda c: (-sum(v.annotator in busy for v in c.verdicts), uniform("dense", seed, str(c.id)))
    )
    return sorted(order[:count], key=lambda c: c.id or 0)


def by_opening(pairs: Sequence[LabelledPair], seed: int = 0) -> list[LabelledPair]:
    """Return pairs in a drawn order in which those of one group stand together."""
    return sorted(pairs, key=lambda pair: (uniform("on people", seed, pair.group), pair.comparison_id or 0))


def looks_better(pair: LabelledPair) -> bool:
    """Return whether what people did not choose is both longer and has more marks of format: what fools by looks."""
    liked = preferred(pair)
    if liked is None:
        return False
    other = pair.right if liked == pair.left else pair.left
    return len(other.text) > len(liked.text) and marks(other.text) > marks(liked.text)
