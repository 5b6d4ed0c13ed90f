"""Data sets as they are published: how each is told by its fields, and the rows of ours that it comes to.

A shape turns the rows of a file into rows of `Format.ROWS`: two responses and a verdict each. Where K answers to one
prompt have scores or ranks, every two of them are compared: the better one is preferred, and equals are a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from manners.store.files.answers import (
    LISTS,
    PROMPTS,
    Answer,
    Gather,
    Numbered,
    answers_in_one_row,
    by_scores,
    each_with_each,
    first_of,
    gather_families,
    gather_rated,
    pairs,
    rated,
    score_of,
    scored_list,
)
from manners.store.files.exchanges import response_text
from manners.store.files.fields import parse_dialogue, parse_word, required
from manners.store.files.mapping import BY_SIGN
from manners.store.files.messages import an_object, listed
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.files.trees import message_families, tree_families
from manners.store.records import to_messages
from manners.types import Choice

ARENA = dict.fromkeys(("model_a", "response_a", "a"), Choice.LEFT)
ARENA |= dict.fromkeys(("model_b", "response_b", "b"), Choice.RIGHT)
ARENA |= dict.fromkeys(("tie (bothbad)", "tie (both bad)", "bothbad", "both bad"), Choice.BOTH_BAD)


@dataclass(frozen=True, slots=True)
class Shape:
    """One published way to write comparisons down."""

    name: str
    told: Callable[[Fields], bool]
    """Whether a row is written so, by its fields."""
    rows: Callable[[Fields], Iterable[Fields | BadRow]] | None = None
    """The rows of ours that a row comes to."""
    gather: Gather | None = None
    """In place of `rows`, where answers to one prompt stand in several rows: what all rows of the file come to."""
    words: Mapping[str, Choice] = field(default_factory=dict)
    """What its verdicts mean."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What it calls our fields, where one that is bad has to be named."""

    def expand(self, rows: Iterable[Numbered]) -> Iterator[Numbered]:
        """Yield the rows of ours that the rows of a file come to, each with the number of its row there."""
        if self.gather is not None:
            yield from self.gather(rows)
            return
        for number, fields in rows:
            if isinstance(fields, BadRow) or self.rows is None:
                yield number, fields
                continue
            try:
                yield from ((number, row) for row in self.rows(fields))
            except BadRow as bad:
                yield number, bad


def _row(said: Fields, prompt: Any, left: Any, right: Any, verdict: str | None, **more: Any) -> Fields:
    """Return a row of ours with the responses in the order in which the file has them."""
    kept = {name: said.get(name) for name in ("annotator", "annotator_kind", "created_at", "system", "comment")}
    kept |= {name: value for name, value in more.items() if value is not None}
    return {"prompt": prompt, "left": left, "right": right, "verdict": verdict or "", **kept}


def _strength(fields: Fields) -> Iterator[Fields]:
    prompt = required(fields, "prompt" if "prompt" in fields else "context")
    left, right = ("response_1", "response_2") if "response_1" in fields else ("response1", "response2")
    said = "preference_strength" if "preference_strength" in fields else "overall_preference"
    yield _row(fields, prompt, required(fields, left), required(fields, right), parse_word(fields, said))


def _shp(fields: Fields) -> Iterator[Fields]:
    label = parse_word(fields, "labels") or ""
    said = {"1": Choice.LEFT, "0": Choice.RIGHT}.get(label.removesuffix(".0"))
    if label and said is None:
        raise BadRow(Reason.VERDICT, "labels", f"is {label[:40]!r}, which is neither 1 (A is better) nor 0")
    verdict = by_scores(fields, "score_A", "score_B", said)
    sides = required(fields, "human_ref_A"), required(fields, "human_ref_B")
    yield _row(fields, required(fields, "history"), *sides, verdict.value)


def _safe(fields: Fields) -> Iterator[Fields]:
    models = {"left_model": fields.get("response_0_source"), "right_model": fields.get("response_1_source")}
    sides = required(fields, "response_0"), required(fields, "response_1")
    yield _row(fields, required(fields, "prompt"), *sides, parse_word(fields, "better_response_id"), **models)


def _webgpt(fields: Fields) -> Iterator[Fields]:
    question = required(fields, "question")
    asked = an_object(question)
    prompt = question if asked is None else required(asked, "full_text")
    verdict = by_scores(fields, "score_0", "score_1", None)
    yield _row(fields, prompt, required(fields, "answer_0"), required(fields, "answer_1"), verdict.value)


def _summaries(fields: Fields) -> Iterator[Fields]:
    """Read two summaries of a text, of which a worker chose one."""
    info, two = an_object(required(fields, "info")), listed(required(fields, "summaries"))
    text = None if info is None else first_value(info, "post", "article")
    if text is None or two is None or len(two) != 2 or not all(isinstance(one, dict) for one in two):
        raise BadRow(Reason.WRONG_TYPE, "summaries", "and `info` are not two summaries of a `post` or `article`")
    said = {"left_model": two[0].get("policy"), "right_model": two[1].get("policy"), "annotator": fields.get("worker")}
    sides = required(two[0], "text"), required(two[1], "text")
    yield _row(fields, text, *sides, parse_word(fields, "choice"), **said)


ANNOTATORS = ("annotator", "judge", "judge_hash")
"""Where battles name whoever judged."""


def _arena(fields: Fields) -> Iterator[Fields]:
    """Read a battle: two conversations, or a prompt and two responses, each a text or a list with a text a turn."""
    said = {"left_model": fields.get("model_a"), "right_model": fields.get("model_b")}
    said |= {"annotator": first_value(fields, *ANNOTATORS)}
    said |= {"created_at": first_value(fields, "created_at", "tstamp", "timestamp")}
    if "conversation_a" in fields:
        one, other = (parse_dialogue(required(fields, name), name) for name in ("conversation_a", "conversation_b"))
        if one[:-1] != other[:-1]:
            where = "parts from `conversation_a` before the last answer, so that the two share no prompt"
            raise BadRow(Reason.TRANSCRIPT, "conversation_b", where)
        yield _row(fields, to_messages(one[:-1]), one[-1].text, other[-1].text, _winner(fields), **said)
        return
    three = [required(fields, name) for name in ("prompt", "response_a", "response_b")]
    lists = [texts for value in three if (texts := listed(value)) is not None]
    # Beside a prompt that is no list, an answer that is one in JSON is a text like any other.
    turns = lists if len(lists) == len(three) else [[value] for value in three]
    if {len(texts) for texts in turns} != {1}:
        raise BadRow(Reason.TRANSCRIPT, "prompt", "has several turns, answered differently: the two share no prompt")
    prompt, left, right = (texts[0] for texts in turns)
    yield _row(fields, prompt, left, right, _winner(fields), **said)


def first_value(fields: Fields, *names: str) -> Any:
    """Return the first of these fields that has a value."""
    return fields.get(first_of(fields, names))


def _winner(fields: Fields) -> str | None:
    if "winner" in fields:
        word = parse_word(fields, "winner")
        named = [side for side in ("model_a", "model_b") if word is not None and fields.get(side) == word]
        return named[0] if len(named) == 1 else word
    won = [name for name in ("model_a", "model_b", "tie") if score_of(fields, f"winner_{name}", 1) == 1]
    if len(won) != 1:
        raise BadRow(Reason.VERDICT, "winner_model_a", "and its neighbours do not name one winner")
    return won[0]


def _lists(fields: Fields) -> Iterator[Fields | BadRow]:
    """Read several right answers and several wrong ones: each right one is better than each wrong one."""
    chosen, rejected = (listed(required(fields, name)) or [] for name in ("chosen", "rejected"))
    if not chosen or not rejected:
        raise BadRow(Reason.ALONE, "rejected" if chosen else "chosen", "is empty", harmless=True)
    models = listed(fields.get("models")) or []
    if len(models) != len(chosen) + len(rejected):
        models = [None] * (len(chosen) + len(rejected))
    better = [Answer(text, 1, model) for text, model in zip(chosen, models, strict=False)]
    worse = [Answer(text, 0, model) for text, model in zip(rejected, models[len(chosen) :], strict=True)]
    yield from each_with_each(required(fields, "prompt"), better, worse, "rejected", {"system": fields.get("system")})


def _preferred(fields: Fields) -> Iterator[Fields | BadRow]:
    """Read what OpenAI's fine-tuning takes: messages, and an answer that is better than another."""
    asked = required(fields, "input")
    given = an_object(asked)
    prompt = asked if given is None else required(given, "messages")
    texts = [response_text(fields, name) for name in ("preferred_output", "non_preferred_output")]
    couple = Answer(texts[0], 1), Answer(texts[1], 0)
    yield from pairs(prompt, [couple], "non_preferred_output", {})


def _has(*names: str) -> Callable[[Fields], bool]:
    return lambda fields: fields.keys() >= set(names)


def _any(*told: Callable[[Fields], bool]) -> Callable[[Fields], bool]:
    return lambda fields: any(one(fields) for one in told)


def _are_texts(value: Any) -> bool:
    items = listed(value)
    return bool(items) and all(isinstance(item, str) for item in items or ())


def _is_lists(fields: Fields) -> bool:
    """Tell lists of right and wrong answers; in cells, where answers may be lists in JSON, by what else is there."""
    sides = [fields.get(side) for side in ("chosen", "rejected")]
    written = any(isinstance(side, str) for side in sides)
    return all(map(_are_texts, sides)) and "prompt" in fields and (not written or bool(_COUNTED & fields.keys()))


_COUNTED = {"num_correct", "num_incorrect", "num_rejected", "total_completions", "models"}


def _is_tree(fields: Fields) -> bool:
    return "chosen" not in fields and "replies" in (an_object(fields.get("prompt")) or {})


_SIDES = (("conversation_a", "conversation_b"), ("prompt", "response_a", "response_b"))
_WON = (("winner",), ("winner_model_a", "winner_model_b"))
_BATTLE = {"left": ("conversation_a", "response_a"), "right": ("conversation_b", "response_b"), "verdict": ("winner",)}
_STRENGTH = {"prompt": ("context",), "left": ("response_1", "response1"), "right": ("response_2", "response2")}
_STRENGTH |= {"verdict": ("preference_strength", "overall_preference")}
_SHP = {"prompt": ("history",), "left": ("human_ref_A",), "right": ("human_ref_B",), "verdict": ("labels",)}
_WEBGPT = {"prompt": ("question",), "left": ("answer_0",), "right": ("answer_1",)}
SHAPES = (
    Shape("arena", _any(*(_has(*sides, *won) for sides in _SIDES for won in _WON)), _arena, words=ARENA, names=_BATTLE),
    Shape(
        "preference-strength",
        _any(
            _has("prompt", "response_1", "response_2", "preference_strength"),
            _has("context", "response1", "response2", "overall_preference"),
        ),
        _strength,
        words=BY_SIGN,
        names=_STRENGTH,
    ),
    Shape("shp", _has("history", "human_ref_A", "human_ref_B", "labels"), _shp, names=_SHP),
    Shape(
        "pku-saferlhf",
        _has("prompt", "response_0", "response_1", "better_response_id"),
        _safe,
        words={"0": Choice.LEFT, "1": Choice.RIGHT},
        names={"left": ("response_0",), "right": ("response_1",), "verdict": ("better_response_id",)},
    ),
    Shape(
        "summaries",
        _has("info", "summaries", "choice"),
        _summaries,
        words={"0": Choice.LEFT, "1": Choice.RIGHT},
        names={"prompt": ("info",), "left": ("summaries",), "right": ("summaries",), "verdict": ("choice",)},
    ),
    Shape("webgpt", _has("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt, names=_WEBGPT),
    Shape("preferred-output", _has("input", "preferred_output", "non_preferred_output"), _preferred),
    Shape("lists", _is_lists, _lists),
    Shape("trees", _is_tree, gather=gather_families(tree_families)),
    Shape(
        "tree-messages",
        _has("message_id", "parent_id", "text", "role", "rank"),
        gather=gather_families(message_families),
    ),
    Shape(
        "answers",
        lambda row: "chosen" not in row and bool(scored_list(row)),
        answers_in_one_row,
        names={"prompt": PROMPTS, "left": LISTS, "right": LISTS},
    ),
    Shape(
        "rated",
        lambda row: _has("prompt", "response")(row) and "chosen" not in row and bool(rated(row)),
        gather=gather_rated,
        names={"left": ("response",), "right": ("response",)},
    ),
)
"""In the order in which they are looked for: what is told by more fields comes first."""
FIELDS = frozenset(
    {"conversation_a", "conversation_b", "response_a", "response_b", "winner", "model_a", "model_b", "judge"}
    | {"response_1", "response_2", "preference_strength", "history", "human_ref_A", "human_ref_B", "labels"}
    | {"response_0", "better_response_id", "answers", "completions", "response", "score", "rank", "helpfulness"}
    | {"responses", "scores", "ranks"}
)
"""Fields of theirs that a column may be mapped to."""


def shape_of(fields: Fields) -> Shape | None:
    """Return the shape that a row is written in, None where it is none of them."""
    return next((shape for shape in SHAPES if shape.told(fields)), None)
