"""A text as tokens: divided by hash, duplicates counted, the same however often it was stopped, in flat memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.pretrain import corpus as module
from manners.pretrain.corpus import Corpus, Division, sample, survey, tokenised
from manners.pretrain.documents import Document, Source, documents
from manners.pretrain.vocabulary import BOS, EOS, encode
from tests.pretrain.worlds import STORIES, tokenizer


def written(path: Path, texts: list[str]) -> Source:
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
    return Source(path)


def divided(source: Source, keep: bool = True, share: float = 0.2, seed: int = 0) -> Division:
    return Division(source, share, seed, keep)


def said(found: Corpus) -> list[str]:
    ends = found.ends.astype(np.int64)
    parts = np.split(found.ids.astype(np.int64), ends[:-1])
    texts = [str(tokenizer().decode(part.tolist(), clean_up_tokenization_spaces=False)) for part in parts]
    assert all(text.startswith(BOS) for text in texts), "no document of these tests is cut"
    return [text.removeprefix(BOS) for text in texts]


def test_what_is_trained_on_and_what_is_set_aside_are_the_text(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", STORIES)
    found = tokenised(divided(source), tokenizer(), tmp_path / "tokens")
    trained, aside = said(found), [document.text for document in found.measured]
    assert all(text.endswith(EOS) for text in trained)
    assert sorted([text.removesuffix(EOS) for text in trained] + aside) == sorted(STORIES)
    assert 0.1 < len(aside) / len(STORIES) < 0.3
    assert found.survey.training_bytes == sum(len(text.encode()) - len(EOS) for text in trained)
    assert found.survey.set_aside_bytes == sum(map(len, aside))
    assert found.ids.dtype == np.uint16


def test_the_side_of_a_text_follows_from_its_words_and_the_seed_alone(tmp_path: Path) -> None:
    ways = {}
    for name, texts in {"a": STORIES, "b": STORIES[::-1], "c": STORIES[:50]}.items():
        source = written(tmp_path / f"{name}.jsonl", texts)
        ways[name] = {d.text for d in tokenised(divided(source), tokenizer(), tmp_path / name).measured}
    assert ways["a"] == ways["b"] and ways["c"] == ways["a"] & set(STORIES[:50])
    other = divided(written(tmp_path / "d.jsonl", STORIES), seed=1)
    assert {d.text for d in tokenised(other, tokenizer(), tmp_path / "d").measured} != ways["a"]


@pytest.mark.parametrize("keep", [True, False])
def test_exact_duplicates_are_counted_and_left_out_where_that_is_asked(tmp_path: Path, keep: bool) -> None:
    source = written(tmp_path / "a.jsonl", [*STORIES, *STORIES[:40], STORIES[3]])
    found = tokenised(divided(source, keep), tokenizer(), tmp_path / "tokens")
    assert found.survey.duplicates == 41 and found.survey.documents == len(STORIES) + 41
    everything = len(said(found)) + len(found.measured)
    assert everything == len(STORIES) + (41 if keep else 0)
    trained = {text.removesuffix(EOS) for text in said(found)}
    assert not trained & {document.text for document in found.measured}, "twins are on one side"


def test_what_is_left_out_teaches_no_tokenizer_and_no_n_gram(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [*STORIES, *STORIES])
    for keep, times in ((True, 2), (False, 1)):
        folder = tmp_path / f"tokens {keep}"
        found = survey(divided(source, keep), folder)
        some = list(sample(divided(source, keep), found, folder))
        assert len(some) == times * len(set(some)) > 0


@given(st.lists(st.integers(0, 9)))
def test_what_comes_again_is_found(numbers: list[int]) -> None:
    counts = Counter(numbers)
    twice, again = module.repeated(np.array(numbers, np.uint64))
    assert twice.tolist() == sorted(n for n, count in counts.items() if count > 1)
    assert again == len(numbers) - len(counts)


def test_the_rest_of_a_long_text_begins_nothing(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", ["word " * 10_000, *STORIES])
    found = tokenised(divided(source, share=0.01), tokenizer(), tmp_path / "tokens")
    starts = [0, *found.ends[:-1].astype(np.int64).tolist()]
    begun = [int(found.ids[start]) == tokenizer().bos_token_id for start in starts]
    assert begun.count(False) + sum(not one.begins for one in found.measured) == 3


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_a_killed_process_goes_on_and_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    source = written(tmp_path / "a.jsonl", [*STORIES, *STORIES[:30]])
    monkeypatch.setattr(module, "BATCH", 700)
    whole = tokenised(divided(source, keep=False), tokenizer(), tmp_path / "whole")
    real, calls = encode, 0

    def dying(*given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encode", dying)
    with pytest.raises(Killed):
        tokenised(divided(source, keep=False), tokenizer(), tmp_path / "part")
    with (tmp_path / "part" / "ids.bin").open("ab") as file:
        file.write(b"half a batch")  # what was written, and not yet said to be whole
    part = tokenised(divided(source, keep=False), tokenizer(), tmp_path / "part")
    assert calls > at
    for name in ("ids.bin", "ends.bin", "measured.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert part.measured == whole.measured


def test_what_is_there_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "a.jsonl", STORIES)
    tokenised(divided(source), tokenizer(), tmp_path / "tokens")
    monkeypatch.setattr(module, "documents", None)
    tokenised(divided(source), tokenizer(), tmp_path / "tokens")


def test_a_sample_of_a_large_text_is_spread_over_it(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [f"{number} {'x' * 90}" for number in range(4000)])
    found = survey(divided(source), tmp_path / "tokens")
    some = list(sample(divided(source), found, tmp_path / "tokens", found.training_bytes // 4))
    numbers = [int(text.split()[0]) for text in some]
    assert 0.2 < len(some) / 3200 < 0.3 and 1800 < np.mean(numbers) < 2200
    everything = list(sample(divided(source), found, tmp_path / "tokens"))
    aside = [d.text for d in documents(source) if divided(source).aside(d.digest)]
    assert len(everything) + len(aside) == 4000 and not set(everything) & set(aside)


def test_the_place_of_a_text_is_spread_evenly() -> None:
    division = divided(Source(Path("none")))
    places = np.sort([division.place(Document(f"text {number}").digest) for number in range(4000)])
    assert np.abs(places - np.linspace(0, 1, 4000)).max() < 0.03  # Kolmogorov, p < 0.001 at 0.031


MEASURE = """
import resource, sys
from pathlib import Path
from manners.pretrain.corpus import Division, tokenised
from manners.pretrain.documents import Source
from tests.pretrain.worlds import tokenizer
known = tokenizer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenised(Division(Source(Path(sys.argv[1])), 0.05, 0, True), known, Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    # 8 and 32 MB, in documents of 200 bytes and one without end: the growth that is left is 8 bytes a document.
    grown = {}
    for size in (8, 32):
        path = tmp_path / f"{size}.txt"
        with path.open("w", encoding="utf-8") as file:
            for number in range(size * 2500):
                file.write(f"{number} {STORIES[number % len(STORIES)] * 4}"[:196] + "\n<|endoftext|>\n")
            file.write("without end " * (size * 2**20 // 24))
        argv = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / str(size))]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
        grown[size] = int(done.stdout) * 1024
    more_documents = (32 - 8) * 2500
    assert grown[32] - grown[8] < 24e6 + 100 * more_documents, grown
