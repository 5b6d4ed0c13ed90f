"""What annotators disagree about stays one comparison: in files, in the store, in workspaces of before, in figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from manners.feedback.agreement import pairwise
from manners.loop.reporting import what_was_said
from manners.loop.session import Session
from manners.reward.ceiling import ceiling
from manners.reward.labelled import Counts
from manners.reward.verdicts import label, pooled
from manners.settings import Settings
from manners.store import Store
from manners.store.files.formats import Format
from manners.store.files.transfer import export_comparisons, import_comparisons, read_comparisons
from manners.store.records import digest, to_messages
from manners.types import AnnotatorKind, AskedHow, Comparison, Response, Role, Turn
from manners.web.findings import findings
from tests.conftest import some

PAIRS = 400
SURE = 0.7
"""Chance that an annotator prefers the better text: two agree with 0.7^2 + 0.3^2 = 58 %, and nobody can be right
more often than 70 %."""
TRUTH, CEILING = 0.58, 0.70


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.create(tmp_path / "store.db")) as store:
        yield store


def rows(fmt: Format) -> list[dict[str, Any]]:
    """Three annotators on each of `PAIRS` pairs."""
    rng = np.random.default_rng(5)
    found: list[dict[str, Any]] = []
    for number in range(PAIRS):
        start = f"\n\nHuman: Question {number}?\n\nAssistant: " if fmt is Format.HH else ""
        texts = [f"{start}Better {number}.", f"{start}Worse {number}."]
        for person in range(3):
            chosen, rejected = texts if rng.random() < SURE else texts[::-1]
            row = {"chosen": chosen, "rejected": rejected, "annotator": f"person {person}"}
            found.append(row if fmt is Format.HH else row | {"prompt": f"Question {number}?"})
    return found


def write(path: Path, fmt: Format) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(fmt)), encoding="utf-8")
    return path


def as_before(parsed: Comparison) -> Comparison:
    """The comparison of a row as an import left it up to November 2026: the side depended on which text won."""
    texts = sorted((parsed.left.text, parsed.right.text))
    first = int(digest(to_messages(parsed.prompt), *texts), 16) % 2 == 0
    return parsed if (parsed.verdicts[0].choice == "left") is first else parsed.turned()


def check(store: Store) -> None:
    """Every figure sees the disagreement that was planted."""
    comparisons = store.comparisons()
    labelled = label(comparisons)
    assert len(labelled.pairs) == PAIRS and sum(sum(pair.counts) for pair in labelled.pairs) == 3 * PAIRS
    best = ceiling(labelled.pairs, seed=0)
    # All pairs are alike, so that the upper bound is the truth; a beta distribution comes out a few points low.
    assert best is not None and best.high == pytest.approx(CEILING, abs=0.03)
    found = pairwise(pooled(comparisons), AnnotatorKind.HUMAN, 0)
    assert found is not None and found.low < TRUTH < found.high
    said = what_was_said(cast(Session, SimpleNamespace(store=store, settings=Settings())))
    assert said is not None and said.agreement is not None and said.total == PAIRS
    assert said.agreement.estimate == pytest.approx(found.estimate) == pytest.approx(TRUTH, abs=0.03)
    shown = findings(store, Settings())
    assert shown["agreement"]["human"]["pairwise"]["estimate"] == pytest.approx(found.estimate)
    assert shown["funnel"]["human"] == {"asked": PAIRS, "can be learnt from": PAIRS}


@pytest.mark.parametrize("fmt", some([Format.PAIRS, Format.HH], 1))
def test_an_import_hides_no_disagreement(store: Store, tmp_path: Path, fmt: Format) -> None:
    result = import_comparisons(store, write(tmp_path / "in.jsonl", fmt), {}, skip_bad=False)
    assert (result.comparisons, result.verdicts, result.duplicates) == (PAIRS, 3 * PAIRS, 0)
    check(store)


@pytest.mark.long
def test_a_workspace_of_before_hides_none_either(store: Store, tmp_path: Path) -> None:
    parsed = read_comparisons(write(tmp_path / "in.jsonl", Format.PAIRS), {})
    store.merge_comparisons(map(as_before, parsed))
    assert len(store.comparisons()) > 1.5 * PAIRS, "disagreement is in two comparisons of one pair"
    check(store)
    result = import_comparisons(store, tmp_path / "in.jsonl", {}, skip_bad=False)
    check(store)
    assert result.comparisons == 0


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("fmt", some(Format, 1))
def test_every_verdict_keeps_its_side_on_the_way_out_and_back(
    store: Store, tmp_path: Path, fmt: Format, old: bool
) -> None:
    parsed = list(read_comparisons(write(tmp_path / "in.jsonl", Format.PAIRS), {}))
    store.merge_comparisons(map(as_before, parsed) if old else parsed)
    export_comparisons(store, tmp_path / "out.jsonl", fmt)
    with closing(Store.create(tmp_path / "second.db")) as second:
        import_comparisons(second, tmp_path / "out.jsonl", {}, skip_bad=False)
        assert preferred(second) == preferred(store)
        assert sum(len(said) for said in preferred(store).values()) == 3 * PAIRS


def preferred(store: Store) -> dict[str, dict[str, str]]:
    """Return which text each person prefers, by prompt."""
    return {
        one.prompt[-1].text: {
            v.annotator.name: (one.left if v.choice == "left" else one.right).text for v in one.verdicts
        }
        for one in pooled(store.comparisons())
    }


def test_two_of_three_are_counted_as_such(store: Store, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "Hi", "chosen": a, "rejected": b}) for a, b in ("xy", "yx", "xy")]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    import_comparisons(store, tmp_path / "in.jsonl", {}, skip_bad=False)
    [pair] = label(store.comparisons()).pairs
    assert sorted(pair.counts) == [0, 1, 2] and pair.counts == Counts(*pair.weights)


def test_a_report_quotes_comparisons_of_different_prompts(store: Store) -> None:
    prompts = [(Turn(Role.USER, text),) for text in ("first", "second", "third")]
    answers = [Response(text, "initial") for text in ("a", "b", "c", "d")]
    store.add_comparisons(
        Comparison(prompt, one, two, AskedHow.RANDOM) for prompt in prompts for one, two in combinations(answers, 2)
    )
    said = what_was_said(cast(Session, SimpleNamespace(store=store, settings=Settings())))
    assert said is not None and said.examples is not None
    assert [one.prompt for one in said.examples] == ["first", "second", "third"]
