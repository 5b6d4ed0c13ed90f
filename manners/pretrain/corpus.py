"""A text turned into tokens once: counted, divided, tokenised into a file that is mapped into memory.

    survey.json      what there is: documents, bytes, duplicates, what is set aside
    tokenizer/       where it was learnt from this text
    ids.bin          ids of all training documents, BOS where one begins and EOS where it ends: uint16 or uint32
    ends.bin         where each document ends in it, uint64
    progress.json    how far tokenising has come, until it is done
    measured.json    the documents set aside that a model is measured on
    corpus.json      written last: it is all there

A process that is killed goes on behind the last batch that it wrote.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.pretrain.documents import Document, Source, Told, documents
from manners.pretrain.vocabulary import LEARNT_FROM, encode, ends_of
from manners.progress import steps
from manners.workspace import atomic_write

MEASURED = 2**19
"""Bytes of what is set aside that a model is measured on at most: of more, a random part."""
BATCH = 2**20
"""Characters that are tokenised at once."""
FULL = 2.0**64


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a text holds, the rows that cannot be read left out."""

    files: int
    documents: int
    bytes: int
    duplicates: int
    """Documents that are, to the byte, one that came before."""
    training_bytes: int
    set_aside_bytes: int
    longest: int
    """Bytes of the longest document."""
    cut: int
    """Documents longer than `documents.LONGEST`, read as several."""
    left_out: dict[str, int]
    """Rows and files, by reason."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Division:
    """Which documents are trained on, set aside, or left out."""

    source: Source
    set_aside: float
    """Share of the documents that is not trained on, by a hash of their text: a duplicate goes where its twin goes."""
    seed: int
    keep_duplicates: bool

    def aside(self, digest: int) -> bool:
        """Whether a document is set aside."""
        return self.place(digest) < self.set_aside

    def place(self, digest: int) -> float:
        """Return a document's number in [0, 1), from its digest and the seed (a step of splitmix64)."""
        mixed = (digest + (self.seed + 1) * 0x9E3779B97F4A7C15) % 2**64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
        return float((mixed ^ (mixed >> 31)) / FULL)


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on, mapped into memory, and texts to measure with."""

    ids: NDArray[Any]
    ends: NDArray[Any]
    survey: Survey
    measured: tuple[Document, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the training documents, with those that begin and end them."""
        return len(self.ids)


def survey(division: Division, folder: Path) -> Survey:
    """Read a text once and say what it holds; what was found stays in the folder."""
    file = folder / "survey.json"
    if file.is_file():
        return Survey(**json.loads(file.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    told, sizes, longest = Told(), Counter[bool](), 0
    digests = array("Q")
    with steps("reading the text (characters)", None) as advance:
        for document in documents(division.source, told):
            size = len(document.text.encode())
            digests.append(document.digest)
            sizes[division.aside(digests[-1])] += size
            longest = max(longest, size)
            advance(len(document.text))
    twice, duplicates = repeated(np.frombuffer(digests, np.uint64))
    np.save(folder / "twice.npy", twice)
    found = Survey(
        files=told.files,
        documents=len(digests),
        bytes=sum(sizes.values()),
        duplicates=duplicates,
        training_bytes=sizes[False],
        set_aside_bytes=sizes[True],
        longest=longest,
        cut=told.cut,
        left_out=dict(told.left_out),
        notes=tuple(told.notes),
    )
    atomic_write(file, json.dumps(asdict(found)))
    return found


def repeated(digests: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int]:
    """Sort digests in place; return those that come more than once, and how many come again."""
    digests.sort()
    again = digests[1:] == digests[:-1]
    first = again.copy()
    first[1:] &= ~again[:-1]
    return digests[:-1][first], int(again.sum())


def ids_of(tokenizer: PreTrainedTokenizerBase, some: Sequence[Document]) -> list[list[int]]:
    """Return the ids of documents: BOS where one begins, its text, EOS where it ends."""
    bos, eos = ends_of(tokenizer)
    encoded = encode(tokenizer, [document.text for document in some])
    return [[bos] * one.begins + ids + [eos] * one.ends for ids, one in zip(encoded, some, strict=True)]


def sample(division: Division, found: Survey, folder: Path, most: int = LEARNT_FROM) -> Iterator[str]:
    """Yield the training documents, or of more than `most` bytes a random part, by a hash of their text.

    `folder` is where the text was surveyed.
    """
    share = min(1.0, most / max(1, found.training_bytes))
    other = replace(division, seed=division.seed + 1)
    choose = _Choice(division, found, np.load(folder / "twice.npy", allow_pickle=False))
    for document in documents(division.source):
        if choose(document) and other.place(document.digest) < share:
            yield document.text


def tokenised(division: Division, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Corpus:
    """Return the corpus of a text, tokenised in the folder; what is there already is not done again.

    Raises MannersError where nothing is left to train on or to measure with.
    """
    found = survey(division, folder)
    kind = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    if not (folder / "corpus.json").is_file():
        _tokenise(division, found, tokenizer, folder, kind)
    measured = tuple(Document(*one) for one in json.loads((folder / "measured.json").read_text("utf-8")))
    ids, ends = folder / "ids.bin", folder / "ends.bin"
    if not ids.stat().st_size:
        raise MannersError(f"{division.source.path} holds nothing to train on; set a lower pretrain.set_aside")
    return Corpus(np.memmap(ids, kind, "r"), np.memmap(ends, np.uint64, "r"), found, measured)


@dataclass
class _Progress:
    """How far tokenising has come: what is in the files up to there is whole."""

    documents: int = 0
    """Read, whether kept or not."""
    ids: int = 0
    """Bytes of ids.bin."""
    ends: int = 0
    """Bytes of ends.bin."""


def _tokenise(
    division: Division, found: Survey, tokenizer: PreTrainedTokenizerBase, folder: Path, kind: np.dtype[Any]
) -> None:
    needed, free = found.training_bytes // 2 * kind.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise MannersError(f"{folder} needs about {needed:,} bytes for tokens, and {free:,} are free: make room there")
    file = folder / "progress.json"
    at = _Progress(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else _Progress()
    choose = _Choice(division, found, np.load(folder / "twice.npy", allow_pickle=False))
    with (folder / "ids.bin").open("ab") as ids, (folder / "ends.bin").open("ab") as ends:
        for written, size in ((ids, at.ids), (ends, at.ends)):
            written.truncate(size)
            written.seek(size)
        with steps("turning the text into tokens (documents)", found.documents) as advance:
            advance(at.documents)
            for read, batch in _batches(division.source, at.documents, choose):
                rows = ids_of(tokenizer, batch)
                lengths = np.array([len(row) for row in rows], np.uint64)
                np.array([index for row in rows for index in row], kind).tofile(ids)
                (lengths.cumsum() + np.uint64(at.ids // kind.itemsize)).astype(np.uint64).tofile(ends)
                at.ids, at.ends = ids.tell(), ends.tell()
                at.documents += read
                for written in (ids, ends):
                    os.fsync(written.fileno())
                atomic_write(file, json.dumps(asdict(at)))
                advance(read)
    atomic_write(folder / "measured.json", json.dumps(choose.measured))
    atomic_write(folder / "corpus.json", json.dumps({"tokens": at.ids // kind.itemsize}))
    file.unlink(missing_ok=True)


class _Choice:
    """Says of each document whether it is trained on, and keeps those to measure with."""

    def __init__(self, division: Division, found: Survey, twice: NDArray[Any]) -> None:
        self.division = division
        self.twice = twice
        self.seen = np.zeros(len(twice), bool)
        self.measured: list[tuple[str, bool, bool]] = []
        self.measured_share = division.set_aside * min(1.0, MEASURED / max(1, found.set_aside_bytes))

    def __call__(self, document: Document) -> bool:
        digest = document.digest
        if not self.division.keep_duplicates and self._again(digest):
            return False
        place = self.division.place(digest)
        if place < self.measured_share:
            self.measured.append((document.text, document.ends, document.begins))
        return place >= self.division.set_aside

    def _again(self, digest: int) -> bool:
        where = int(np.searchsorted(self.twice, np.uint64(digest)))
        if where == len(self.twice) or int(self.twice[where]) != digest:
            return False
        known = bool(self.seen[where])
        self.seen[where] = True
        return known


def _batches(source: Source, skip: int, choose: _Choice) -> Iterator[tuple[int, list[Document]]]:
    """Yield documents to train on, a batch at a time, each with the number that was read for it.

    The first `skip` were yielded before: of those it is only seen again which were chosen.
    """
    batch: list[Document] = []
    read = size = 0
    for number, document in enumerate(documents(source)):
        chosen = choose(document)
        if number < skip:
            continue
        read += 1
        if chosen:
            batch.append(document)
            size += len(document.text)
        if size >= BATCH:
            yield read, batch
            batch, read, size = [], 0, 0
    yield read, batch
