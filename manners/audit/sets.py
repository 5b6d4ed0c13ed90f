"""Published sets that a policy is also asked where they are there: XSTest, WinoBias, BBQ, TruthfulQA, IFEval.

None ships with the package, `fetch` takes one in. Each lies in a folder of its own name, as its authors publish it or
as JSON lines (also as `.gz`); a set that is not there is left out, and one that cannot be read is refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from manners.audit.instructions import Instructed, readable
from manners.data import Question
from manners.errors import MannersError
from manners.store.files.arrays import too_much
from manners.store.files.containers import FREELY, UNFOLDS

Item = TypeVar("Item")
OWN = "audit-sets"
"""A workspace's own folder of sets, where `audit.sets` names none."""
ANSWERS = 3
"""Of a question of BBQ."""
PRONOUNS = frozenset(("he", "she", "him", "her", "his", "hers", "himself", "herself"))


@dataclass(frozen=True)
class Known:
    """A set that can be read, and where it comes from."""

    name: str
    """The folder's name."""
    files: tuple[str, ...]
    """In it, each with or without `.gz`: as they are published, and your own."""
    columns: tuple[str, ...]
    source: str
    licence: str
    what: str
    """What is measured on it."""


KNOWN = (
    Known(
        "xstest",
        ("xstest_prompts.csv",),
        ("prompt", "label"),
        "github.com/paul-rottger/xstest",
        "CC BY 4.0",
        "prompts that only look unsafe, and contrasts that are: over_refusal_xstest, under_refusal_xstest",
    ),
    Known(
        "winobias",
        ("winobias.jsonl", "*_stereotyped_type?.txt.*"),
        ("type", "split", "n", "stereotype", "text"),
        "github.com/uclanlp/corefBias",
        "MIT",
        "sentences that go on with the pronoun of a stereotype, or the other one: stereotype_winobias",
    ),
    Known(
        "truthfulqa",
        ("TruthfulQA.csv", "*.jsonl"),
        ("question", "answers"),
        "github.com/sylinrl/TruthfulQA",
        "Apache-2.0",
        "questions with one best answer and what people say instead, or your own: truthfulness_truthfulqa",
    ),
    Known(
        "bbq",
        ("*.jsonl",),
        ("category", "question_index", "question_polarity", "context_condition", "context", "question", "label"),
        "github.com/nyu-mll/BBQ",
        "CC BY 4.0",
        "questions about two groups, with or without what would answer them: bias_bbq_*, accuracy_bbq_*",
    ),
    Known(
        "ifeval",
        ("input_data.jsonl", "*.jsonl"),
        ("prompt", "instruction_id_list", "kwargs"),
        "github.com/google-research/google-research, instruction_following_eval",
        "CC BY 4.0",
        "prompts with instructions whose keeping a rule can see: instructions_ifeval",
    ),
)


@dataclass(frozen=True)
class BiasQuestion:
    """A question of BBQ: its answers are likelier or less likely, and nothing is generated."""

    question: Question
    """The right answer first."""
    cluster: str
    """Its template: questions of one are alike."""
    ambiguous: bool
    """The right answer is that it cannot be known."""
    biased: int
    """Which answer a stereotype gives."""
    unknown: int
    """Which one says that it cannot be known."""


@dataclass(frozen=True)
class Sets:
    """What is there of them."""

    safe: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    pronouns: tuple[Question, ...] = ()
    """Of WinoBias: what both sentences begin with, and the two ends, that of the stereotype first."""
    bias: tuple[BiasQuestion, ...] = ()
    truths: tuple[Question, ...] = ()
    skipped: Mapping[str, int] | None = None
    """Rows that could not be used, by set."""
    instructed: tuple[Instructed, ...] = ()


def place_of(named: str | None, root: Path) -> Path:
    """Return the folder of sets: the one that `audit.sets` names, or a workspace's own."""
    return Path(named).expanduser() if named else root / OWN


def files_of(folder: Path, known: Known) -> list[Path]:
    """Return a set's files in a folder of sets, by all patterns; none where it is not there."""
    for name in (known.name, f"{known.name}_trimmed"):
        by_pattern = [
            sorted(path for end in ("", ".gz") for path in (folder / name).glob(pattern + end))
            for pattern in known.files
        ]
        if found := list(dict.fromkeys(chain(*by_pattern))):
            return found
    return []


def listed(folder: Path | None) -> list[dict[str, Any]]:
    """Return every set that can be read: whether it is there, where it comes from, its licence, and what it is for."""
    found = []
    for known in KNOWN:
        files = files_of(folder, known) if folder else []
        found.append(
            {
                "name": known.name,
                "there": bool(files),
                "rows": len(_all_rows(files, known)) if files else None,
                "files": [str(file) for file in files] or [f"{known.name}/{pattern}" for pattern in known.files],
                "source": known.source,
                "licence": known.licence,
                "what": known.what,
            }
        )
    return found


def read(folder: Path | None) -> Sets:
    """Return what a folder holds of the sets; raises MannersError where one of them cannot be read."""
    if folder is None:
        return Sets()
    if not folder.is_dir():
        raise MannersError(f"audit.sets is {folder}, which is no folder: name one that holds xstest, winobias or bbq.")
    return _made({known.name: _all_rows(files, known) for known in KNOWN if (files := files_of(folder, known))})


def usable(known: Known, contents: Mapping[str, bytes]) -> Sets:
    """Return what the files of one set come to, by name; raises MannersError where they are not that set."""
    made = _made({known.name: [row for name, raw in contents.items() for row in _rows_in(name, raw, known, name)]})
    if made == Sets(skipped=made.skipped):
        raise MannersError(f"{', '.join(contents)}: nothing in it can be used as {known.name}, see {known.source}.")
    return made


def _made(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sets:
    """Return what the rows of the sets come to."""
    labels = {str(row["prompt"]): str(row["label"]).strip().lower() for row in rows.get("xstest", [])}
    safe, unsafe = (tuple(text for text, said in labels.items() if said == label) for label in ("safe", "unsafe"))
    pronouns = list(dict.fromkeys(_pronouns(rows.get("winobias", []))))
    bias = list(dict.fromkeys(_usable(_bias, rows.get("bbq", []))))
    truths = list(dict.fromkeys(_truths(rows.get("truthfulqa", []))))
    instructed = list({one.prompt: one for one in _usable(_instructed, rows.get("ifeval", []))}.values())
    skipped = {
        "xstest": len(rows.get("xstest", [])) - len(safe) - len(unsafe),
        "winobias": len(rows.get("winobias", [])) - 2 * len(pronouns),
        "bbq": len(rows.get("bbq", [])) - len(bias),
        "truthfulqa": len(rows.get("truthfulqa", [])) - len(truths),
        "ifeval": len(rows.get("ifeval", [])) - len(instructed),
    }
    return Sets(
        safe=safe,
        unsafe=unsafe,
        pronouns=tuple(pronouns),
        bias=tuple(bias),
        truths=tuple(truths),
        skipped={name: count for name, count in skipped.items() if count},
        instructed=tuple(instructed),
    )


def _all_rows(files: Sequence[Path], known: Known) -> list[dict[str, Any]]:
    return [row for file in files for row in _rows(file, known)]


def _rows(file: Path, known: Known) -> list[dict[str, Any]]:
    """Read a file of rows; raises MannersError where it is damaged or lacks a column."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise MannersError(f"{file} cannot be read ({error}): take {known.name} anew from {known.source}.") from error
    return _rows_in(file.name, raw, known, str(file))


def _rows_in(name: str, raw: bytes, known: Known, called: str) -> list[dict[str, Any]]:
    """Return the rows of a file; raises MannersError, in which it is `called` so, where it is damaged."""
    try:
        text = (_unpacked(raw) if name.endswith(".gz") else raw).decode("utf-8-sig")
        rows = list(_parsed(name.removesuffix(".gz"), text))
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, RecursionError) as error:
        raise MannersError(f"{called} cannot be read ({error}): take {known.name} anew from {known.source}.") from error
    lacking = [
        name for name in known.columns if any(not isinstance(row, dict) or row.get(name) is None for row in rows)
    ]
    if not rows or lacking:
        what = f"lacks {', '.join(lacking)}" if rows else "holds nothing"
        raise MannersError(f"{called} {what}: take {known.name} anew from {known.source}.")
    return rows


def _unpacked(raw: bytes) -> bytes:
    """Return what was packed by gzip. Raises ValueError where it is more than any text packs to."""
    most = max(FREELY, UNFOLDS * len(raw))
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        unfolded = file.read(most + 1)
    if len(unfolded) > most:
        raise ValueError(f"it unfolds to more than {most:,} bytes from {len(raw):,}")
    return unfolded


def _json(line: str) -> Any:
    """Return what a line of JSON writes. Raises ValueError where that would take far more memory than it is long."""
    if refused := too_much(line):
        raise ValueError(f"a line {refused.remark}")
    return json.loads(line)


def _parsed(name: str, text: str) -> Iterator[Any]:
    """Yield the rows of a file: CSV, JSON lines, or WinoBias's numbered sentences with the two mentions in brackets."""
    if name == "TruthfulQA.csv":
        for row in csv.DictReader(io.StringIO(text)):
            wrong = [answer.strip() for answer in (row.get("Incorrect Answers") or "").split(";")]
            yield {"question": row.get("Question"), "answers": [row.get("Best Answer") or "", *filter(None, wrong)]}
    elif name.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text))
    elif name.endswith(".jsonl"):
        yield from (_json(line) for line in text.split("\n") if line.strip())
    else:
        stereotype, _, which = name.partition("_stereotyped_type")
        kind, _, split = which.partition(".txt.")
        for line in filter(str.strip, text.splitlines()):
            number, _, sentence = line.strip().partition(" ")
            plain = sentence.replace("[", "").replace("]", "")
            yield {"type": kind, "split": split, "n": number, "stereotype": stereotype, "text": " ".join(plain.split())}


def _usable(make: Callable[[Mapping[str, Any]], Item | None], rows: Sequence[Mapping[str, Any]]) -> Iterator[Item]:
    """Yield what is made of each row; one that holds something else than it should is none, and counted by its lack."""
    for row in rows:
        made = None
        with suppress(TypeError, ValueError, AttributeError, KeyError, IndexError):
            made = make(row)
        if made is not None:
            yield made


def _truths(rows: Sequence[Mapping[str, Any]]) -> Iterator[Question]:
    """Yield questions with a right answer and one wrong one at least, all of them different."""
    for row in rows:
        answers = [str(answer).strip() for answer in row["answers"]] if isinstance(row["answers"], list) else []
        if len(answers) > 1 and all(answers) and len(set(answers)) == len(answers):
            yield Question("truthfulqa", str(row["question"]).strip(), tuple(answers))


def _instructed(row: Mapping[str, Any]) -> Instructed | None:
    """Return a prompt with those of its instructions that can be checked; None where there are none."""
    kinds, given = row["instruction_id_list"], row["kwargs"]
    if not isinstance(kinds, list) or not isinstance(given, list) or len(kinds) != len(given):
        return None
    both = [(str(kind), one) for kind, one in zip(kinds, given, strict=True) if isinstance(one, dict)]
    found = [(kind, one) for kind, one in both if readable(kind, one)]
    return Instructed(str(row["prompt"]), *map(tuple, zip(*found, strict=True))) if found else None


def _groups(row: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Return what each answer of BBQ names, and the groups that the stereotype is about."""
    info, more = row.get("answer_info"), row.get("additional_metadata")
    if isinstance(info, dict) and isinstance(more, dict):  # as it is published
        named = [(info.get(f"ans{i}") or [""])[-1] for i in range(ANSWERS)]
        return [str(group) for group in named], {str(name).lower() for name in more.get("stereotyped_groups") or ()}
    groups, stereotyped = row.get("answer_groups") or (), row.get("stereotyped_groups") or ()
    return [str(group) for group in groups], {str(name).lower() for name in stereotyped}


def _pronouns(rows: Sequence[Mapping[str, Any]]) -> Iterator[Question]:
    """Yield each two sentences that differ in a pronoun alone: up to it, and from it on."""
    pairs: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        where = str(row["type"]), str(row["split"]), str(row["n"])
        pairs.setdefault(where, {})[str(row["stereotype"])] = str(row["text"])
    for pair in pairs.values():
        if set(pair) != {"pro", "anti"}:
            continue
        pro, anti = (pair[side].split() for side in ("pro", "anti"))
        same = next((i for i, (a, b) in enumerate(zip(pro, anti, strict=False)) if a != b), 0)
        if len(pro) == len(anti) and {word.strip(".,").lower() for word in (pro[same], anti[same])} <= PRONOUNS:
            yield Question("winobias", " ".join(pro[:same]), (" ".join(pro[same:]), " ".join(anti[same:])))


def _bias(row: Mapping[str, Any]) -> BiasQuestion | None:
    """Return a question whose answers can be told apart: one that says unknown, and one about the stereotyped group.

    To a question with a negative sense the stereotype's answer is that group, to one with a positive sense the other.
    """
    answers = [str(row.get(f"ans{i}", "")) for i in range(ANSWERS)]
    groups, names = _groups(row)
    unknown = [i for i, group in enumerate(groups) if group == "unknown"]
    about = [i for i, group in enumerate(groups) if group.lower() in names] or [
        i for i, answer in enumerate(answers) if any(name in answer.lower() for name in names)
    ]
    ambiguous, label = row["context_condition"] == "ambig", int(row["label"])
    known = row["context_condition"] in ("ambig", "disambig") and row["question_polarity"] in ("neg", "nonneg")
    if not known or label not in range(ANSWERS) or ambiguous != (unknown == [label]):
        return None  # what cannot be known is the answer exactly where the text does not say
    if len(groups) != ANSWERS or len(unknown) != 1 or len(about) != 1 or about == unknown or not all(answers):
        return None
    other = ({0, 1, 2} - {*unknown, *about}).pop()
    biased = about[0] if row["question_polarity"] == "neg" else other
    order = [label, *(i for i in range(ANSWERS) if i != label)]
    return BiasQuestion(
        Question("bbq", f"{row['context']} {row['question']}", tuple(answers[i] for i in order)),
        f"{row['category']} {row['question_index']}",
        ambiguous,
        order.index(biased),
        order.index(unknown[0]),
    )
