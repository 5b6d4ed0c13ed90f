"""The sentences on docs/troubleshooting.md are those that the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from manners.reward.steps import STEP

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)
ERRORS = ("MannersError", "UsageError", "Unavailable", "TooLong")
ANY = "…"


def said(node: ast.expr) -> str:
    """A sentence with `…` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values)
    return ANY


def sentences(source: str) -> Iterator[str]:
    """What the refusals in a file say."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
            yield said(node.args[0])


@cache
def refusals() -> frozenset[str]:
    files = (ROOT / "manners").rglob("*.py")
    return frozenset(sentence for file in files for sentence in sentences(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("sentence", QUOTED)
def test_each_sentence_quoted_is_one_that_the_code_says(sentence: str) -> None:
    assert sentence in refusals()


def test_the_page_quotes_many_and_none_twice() -> None:
    assert len(QUOTED) > 30 and len(set(QUOTED)) == len(QUOTED)


def test_the_rate_that_is_advised_where_a_gradient_is_not_finite_is_a_lower_one() -> None:
    """Lower than what the usual model, of weights of 0.02, learns at by default."""
    [advised] = re.findall(r"reward\.learning_rate=([\d.]+)", PAGE)
    assert float(advised) < STEP * 0.02 == pytest.approx(0.0002)


def test_sentences_are_found_with_what_is_filled_in() -> None:
    source = (
        'raise MannersError(f"{name} is not {what!r}:" " do" f" {this}")\nraise UsageError("no")\nraise ValueError("x")'
    )
    assert set(sentences(source)) == {"… is not …: do …", "no"}
