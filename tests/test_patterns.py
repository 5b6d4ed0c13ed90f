"""No pattern of the package takes the square of a text's length: each is timed against itself on twice as much.

All are read from the source. One that is made of other texts while the program runs has a word in their place.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import manners
from manners.audit import forms
from manners.audit.instructions import CHECKS
from manners.feedback import crowd
from manners.store.files import containers, messages, reading
from manners.store.files.fields import prompt_text
from manners.types import Role, Turn
from manners.web import letters
from tests.audit.test_instructions import CASES
from tests.growth import growth

ROOT = Path(manners.__file__).parent
KINDS = {"search": "search", "match": "match", "fullmatch": "fullmatch"}
KINDS |= dict.fromkeys(("split", "findall", "finditer", "sub", "subn"), "findall")
"""How a pattern is used, and how it is timed."""
SIZE = 6000
UNITS = (*" \n\t#[{(<*-_`'\".!|\\/aA1é", "\r\n", "a ", "1 ", "[a", "<a", "# ", "- ", "\n ", " \n", ".'", "\\a")
UNITS += ("<<", "**")
AROUND = (("", ""), ("", "\0"), ("[", "x"))
TEXTS = [(before, unit, after) for unit in UNITS for before, after in AROUND]


class Found(NamedTuple):
    """A pattern of the package, and how it is used."""

    place: str
    pattern: re.Pattern[Any]
    methods: frozenset[str]


def text_of(node: ast.expr, module: str) -> str | bytes | None:
    """Return the text that an expression writes, a word in the place of what is not known; None for no text."""
    if isinstance(node, ast.IfExp):
        return text_of(node.orelse, module)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(text_of(part, module)) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        known = text_of(node.value, module)
        return "word" if known is None else known
    try:
        value = eval(ast.unparse(node), dict(vars(importlib.import_module(module))))
    except NameError:
        return None
    return value if isinstance(value, str | bytes) else None


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield the calls of `re` that take a pattern, each with its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if ast.unparse(node.func.value) == "re" and (name in KINDS or name == "compile"):
                yield node, name


def patterns() -> Iterator[Found]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    used: dict[str, set[str]] = defaultdict(set)
    for node in itertools.chain.from_iterable(map(ast.walk, trees.values())):
        if isinstance(node, ast.Attribute) and node.attr in KINDS:
            used[ast.unparse(node.value).rpartition(".")[2]].add(KINDS[node.attr])
    for path, tree in trees.items():
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        names = {id(node.value): ast.unparse(node.targets[0]).rpartition(".")[2] for node in assigned}
        for call, how in calls(tree):
            if (text := text_of(call.args[0], module)) is None:
                continue
            said = [ast.unparse(node) for node in (*call.args[1:], *(one.value for one in call.keywords))]
            flags = [eval(one, {"re": re}) for one in said if re.fullmatch(r"(re\.[A-Z]+( \| )?)+", one)]
            compiled = re.compile(text, flags[0] if flags else 0)
            methods = used[names.get(id(call), "")] or {"findall"} if how == "compile" else {KINDS[how]}
            yield Found(f"{module}:{call.lineno}", compiled, frozenset(methods))


PATTERNS = list(patterns())


def made_of(pattern: re.Pattern[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield texts that repeat a word of a pattern."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\.", " ", source))
    yield from (("", f"{word}{after}", "\0") for word in words[:12] for after in ("", " "))


@pytest.mark.parametrize("found", PATTERNS, ids=[found.place for found in PATTERNS])
def test_a_pattern_takes_no_square_of_its_text(found: Found) -> None:
    for method in sorted(found.methods):
        look: Callable[[Any], object] = getattr(found.pattern, method)
        for before, unit, after in [*TEXTS, *made_of(found.pattern)]:

            def work(size: int, parts: tuple[str, str, str] = (before, unit, after)) -> object:
                text = parts[0] + parts[1] * (size // len(parts[1])) + parts[2]
                return look(text if isinstance(found.pattern.pattern, str) else text.encode())  # noqa: B023

            assert growth(work, SIZE) < 3, f"{found.place} {method} on {before!r} + n * {unit!r} + {after!r}"


def test_all_are_found() -> None:
    """As many as the source names, but for the few that are only known while the program runs."""
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    named = len(re.findall(r"\bre\.(?:compile|[a-z]*match|search|split|find\w+|subn?)\(", source))
    assert 100 < named - 10 <= len(PATTERNS) <= named


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_no_instruction_takes_the_square_of_an_answer(case: tuple[str, Any, str, str]) -> None:
    kind, given, kept, _ = case
    for before, unit, after in [*TEXTS, ("", f"{kept} ", "\0")]:

        def work(size: int, parts: tuple[str, str, str] = (before, unit, after)) -> object:
            return CHECKS[kind](parts[0] + parts[1] * (size // len(parts[1])) + parts[2], given)

        assert growth(work, SIZE) < 3, f"{kind} on {before!r} + n * {unit!r} + {after!r}"


@pytest.mark.parametrize("unit", [" ", "\n", "[", "{ ", "#"])
def test_a_prompt_of_anybody_is_listed_in_the_time_of_its_length(unit: str) -> None:
    """An owner who lists or exports comparisons looks whether a prompt could be taken for messages."""
    for after in ('"[x', "array([", "{'a"):
        assert growth(lambda size, end=after: prompt_text((Turn(Role.USER, unit * size + end),)), SIZE) < 3  # type: ignore[misc]


# What was written anew finds what was found before


def found(pattern: str, flags: int = 0) -> Callable[[str], object]:
    """Return what counts the places of a pattern as it was written."""
    return lambda text: len(re.findall(pattern, text, flags))


def sentences(text: str) -> object:
    check = CHECKS["length_constraints:number_sentences"]
    return max(n for n in range(9) if check(text, {"num_sentences": n, "relation": "at least"}))


def bullets(text: str) -> object:
    return next(n for n in range(9) if CHECKS["detectable_format:number_bullet_lists"](text, {"num_bullets": n}))


def placeholders(text: str) -> object:
    check = CHECKS["detectable_content:number_placeholders"]
    return max(n for n in range(9) if check(text, {"num_placeholders": n}))


def ends(text: str) -> bool:
    return crowd._ENDED.match(text[::-1]) is not None


def postscript(text: str) -> bool:
    return any(CHECKS["detectable_content:postscript"](text, {"postscript_marker": mark}) for mark in ("P.P.S", "P.S."))


ENDS = r"""[.!?\u2026]["'\u201d\u2019)\]*_\s]*[^\w\s.,:;(\[{<>/\\|#-]*$"""
LEARNED = r"\b(?:learn(?:ed|t)|lesson|moral|knew|known|forgot|understood)\b.*?(?:\bthat\b|:)"
MARKS = r"^(\s*)(?:#{1,6}|[-*+])[ \t]+|\*\*|__|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)|`+"
LIKE_OBJECTS = r"""\s*\[?\s*\{\s*['"][\w .-]+['"]\s*:"""
TAIL = r"(?:#+ *)?\b(?:assistant|response|bot|gpt|model|ai) *:\s*\Z"
AS_BEFORE: dict[str, tuple[tuple[str, ...], Callable[[str], object], Callable[[str], object]]] = {
    "how a sentence ends": (
        (*".!'a )*", "&"),
        lambda text: re.search(ENDS, text.strip()) is not None,
        lambda text: ends(text.strip()),
    ),
    "what was learned": (
        ("knew", " ", "that", ":", "\n", "x"),
        lambda text: re.search(LEARNED, text) is not None,
        lambda text: any(map(crowd._says_what, text.split("\n"))),
    ),
    "lists": (
        (*"- \n1.a", "\t"),
        found(r"^\s*(?:[-*\u2022]|\d+[.)])\s", re.MULTILINE),
        lambda text: len(crowd._PENALTIES[0][0].findall(text)),
    ),
    "brackets": (
        tuple("[]<>A{\n"),
        found(r"\[[^\]\n]*\]|\{[^}\n]*\}|<[A-Z][^>\n]*>"),
        lambda text: len(crowd._PENALTIES[2][0].findall(text)),
    ),
    "marks": (
        tuple("# -*\na_"),
        lambda text: re.sub(MARKS, lambda mark: mark[1] or "", text, flags=re.MULTILINE),
        forms.markdown_off,
    ),
    "sentences": (
        tuple(".!a \n?"),
        found(r"[.!?]+(?=\s|$)"),
        sentences,
    ),
    "bullets": (
        tuple("*- \na\r"),
        lambda text: found(r"^\s*\*[^\*].*$", re.M)(text) + found(r"^\s*-.*$", re.M)(text),  # type: ignore[operator]
        bullets,
    ),
    "title": (
        tuple("<> a\n"),
        lambda text: any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text)),
        lambda text: CHECKS["detectable_format:title"](text, {}),
    ),
    "placeholders": (tuple("[]a\n ."), found(r"\[.*?\]"), placeholders),
    "postscript": (
        ("p.", "P.", " ", "s", "S.", "\n"),
        lambda text: re.search(r"\s*p\.\s?p\.\s?s.*$|\s*p\.\s?s\..*$", text.lower(), re.MULTILINE) is not None,
        postscript,
    ),
    "tags of ours": (
        ("<li>", '<li value="12">', '<li class="x" value="3">', "</li>", "a&lt;", "<p>", "\n"),
        lambda text: re.sub(r"<[^>]*>", "", re.sub(r'<li\b[^>]*? value="(\d+)"[^>]*>', r"\1", text)),
        letters.without_tags,
    ),
    "objects": (
        tuple(" [{'a:"),
        lambda text: re.match(LIKE_OBJECTS, text) is not None,
        lambda text: messages._LIKE_OBJECTS.match(text) is not None,
    ),
    "the tail of a template": (
        ("#", " ", "Bot", ":", "\n", "x"),
        lambda text: [mark[0] for mark in re.finditer(TAIL, text, re.IGNORECASE)],
        lambda text: [mark[0] for mark in reading._ANSWERS.finditer(text)],
    ),
    "shards": (
        ("1", "-", "_", "of", "a"),
        lambda text: re.sub(r"[\d_-]*\d[\d_-]*(of[\d_-]+)?", "*", text),
        containers._family,
    ),
}


@pytest.mark.parametrize("case", AS_BEFORE)
def test_what_was_written_anew_finds_in_every_short_text_what_was_found_before(case: str) -> None:
    letters_of, before, after = AS_BEFORE[case]
    for length in range(6):
        for parts in itertools.product(letters_of, repeat=length):
            text = "".join(parts)
            assert after(text) == before(text), repr(text)
