"""K answers to one prompt, with scores or ranks, as comparisons: the better of two is preferred, equals are a tie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import Any, NamedTuple

from manners.store.files.columns import words_in
from manners.store.files.containers import FREELY
from manners.store.files.exchanges import response_text
from manners.store.files.fields import parse_number, required, truth
from manners.store.files.messages import listed
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.files.trees import Family
from manners.store.records import digest
from manners.types import Choice

Numbered = tuple[int, Fields | BadRow]
Gather = Callable[[Iterable[Numbered]], Iterator[Numbered]]
AI = {"annotator": "gpt-4", "annotator_kind": "ai"}
"""Who gave the scores of Nectar and of UltraFeedback, by their authors' account."""
MOST_COUPLES = 10_000
"""Comparisons that the answers to one prompt may come to: as many as a hundred and forty do, each with each."""


class Answer(NamedTuple):
    """One of K answers to a prompt."""

    text: Any
    score: float | None
    """Higher is better."""
    model: Any = None


def every_two(prompt: Any, answers: Sequence[Answer], field_name: str, said: Fields) -> Iterator[Fields | BadRow]:
    """Yield what K answers come to, each compared with each. Raises BadRow where that is too much."""
    others = len(answers) - 1
    _refuse_many(prompt, len(answers) * others // 2, others * _length(answers), field_name)
    if others < 1:
        yield BadRow(Reason.ALONE, field_name, "is the only answer to its prompt", harmless=True)
    yield from pairs(prompt, combinations(answers, 2), field_name, said)


def each_with_each(
    prompt: Any, better: Sequence[Answer], worse: Sequence[Answer], field_name: str, said: Fields
) -> Iterator[Fields | BadRow]:
    """Yield what right and wrong answers come to, each right one with each wrong one. Raises BadRow as `every_two`."""
    text = len(worse) * _length(better) + len(better) * _length(worse)
    _refuse_many(prompt, len(better) * len(worse), text, field_name)
    yield from pairs(prompt, product(better, worse), field_name, said)


def _refuse_many(prompt: Any, count: int, length: int, field_name: str) -> None:
    """Raise BadRow where answers come to too many comparisons, or to too much text with the prompt in each of them."""
    if count > MOST_COUPLES:
        raise BadRow(Reason.TOO_LONG, field_name, f"comes to {count:,} comparisons, more than {MOST_COUPLES:,}")
    if count * len(str(prompt)) + length > FREELY:
        size = f"{count:,} comparisons of more than {FREELY >> 20} MiB"
        raise BadRow(Reason.TOO_LONG, field_name, f"comes to {size}, with the prompt in each")


def _length(answers: Iterable[Answer]) -> int:
    return sum(len(one.text) for one in answers if isinstance(one.text, str))


def pairs(
    prompt: Any, couples: Iterable[tuple[Answer, Answer]], field_name: str, said: Fields
) -> Iterator[Fields | BadRow]:
    """Yield a row for every two answers, the first of them left by their hashes with the prompt, whoever is better.

    Where an answer is there twice, what is compared with it is so once: the second time would be another person's word.
    """
    there = set[frozenset[str]]()
    for pair in couples:
        left, right = sorted(pair, key=lambda one: digest(str(prompt), str(one.text)))
        if not all(isinstance(one.text, str) and one.text.strip() for one in pair):
            yield BadRow(Reason.EMPTY, field_name, "has an answer that is empty, or no text")
        elif left.text == right.text or frozenset((left.text, right.text)) in there:
            yield BadRow(Reason.IDENTICAL, field_name, "has two answers that are the same", harmless=True)
        elif left.score is None or right.score is None:
            yield BadRow(Reason.UNSCORED, field_name, "has an answer without a score", harmless=True)
        else:
            there.add(frozenset((left.text, right.text)))
            verdict = Choice.TIE if left.score == right.score else Choice.LEFT
            verdict = Choice.RIGHT if right.score > left.score else verdict
            models = {"left_model": left.model, "right_model": right.model}
            yield {"prompt": prompt, "left": left.text, "right": right.text, "verdict": verdict.value, **models, **said}


# K answers in one row: a list of objects, or lists of texts and of numbers side by side.

LISTS = ("answers", "completions", "responses", "candidates", "generations", "outputs")
_TEXTS = ("answer", "response", "text", "content", "completion", "output", "generation")
_RANKS = ("rank", "ranking")
_SCORES = (*_RANKS, "overall_score", "score", "rating", "reward", "pm_score", "votes", "upvotes")
_BESIDE = ("ranks", "rankings", "scores", "ratings", "rewards", "all_rm_scores", "votes")
_MODELS = ("models", "generation_models", "model_names")
PROMPTS = ("prompt", "instruction", "question", "messages", "context", "history", "input")


def first_of(fields: Fields, names: Iterable[str]) -> str:
    """Return the first of these names that has a value, nothing where none has."""
    return next((name for name in names if fields.get(name) is not None), "")


def scored_list(fields: Fields) -> str:
    """Return the name of the field that holds K answers with scores, nothing where there is none."""
    for name in LISTS:
        items = listed(fields.get(name))
        objects = [item for item in items or () if isinstance(item, dict)]
        if any(first_of(item, _TEXTS) for item in objects) and _scored_by(objects):
            return name
        if any(isinstance(item, str | dict | list) for item in items or ()) and first_of(fields, _BESIDE):
            return name
    return ""


def _scored_by(items: Sequence[Fields]) -> str:
    """Return the name of the scores of answers: the first that says anything of one of them."""
    there = [name for name in _SCORES if any(name in item for item in items)]
    return next((name for name in there if any(item.get(name) is not None for item in items)), "".join(there[:1]))


def answers_in_one_row(fields: Fields) -> Iterator[Fields | BadRow]:
    """Yield what K answers in one field come to: a list of objects, or texts with numbers beside them."""
    name = scored_list(fields)
    items = listed(fields.get(name)) if name else None
    if items is None:
        where = first_of(fields, LISTS) or LISTS[0]
        raise BadRow(Reason.ALONE, where, "holds no answers with scores", harmless=fields.get(where) == [])
    objects = [item for item in items if isinstance(item, dict)]
    if not _scored_by(objects):
        beside = first_of(fields, _BESIDE)
        scores, models = listed(fields[beside]), listed(fields.get(first_of(fields, _MODELS)))
        if scores is None or len(scores) != len(items):
            raise BadRow(Reason.VALUE, beside, f"does not have a number for each of the {len(items)} answers")
        models = models if models and len(models) == len(items) else [None] * len(items)
        sign = -1 if beside.removesuffix("s") in _RANKS else 1
        found = [
            Answer(_text(item, name), score_of({beside: score}, beside, sign), model)
            for item, score, model in zip(items, scores, models, strict=True)
        ]
    elif len(objects) == len(items):
        key = _scored_by(items)
        sign = -1 if key in _RANKS else 1
        found = [Answer(_text(item, name), score_of(item, key, sign), item.get("model")) for item in items]
    else:
        raise BadRow(Reason.WRONG_TYPE, name, "holds texts and objects")
    said = _said(fields) or (AI if _by_a_model(fields, items) else {})
    yield from every_two(_asked(fields), found, name, {**said, "system": fields.get("system")})


def _text(item: Any, name: str) -> Any:
    """Return the text of one of several answers: a text, an object with one, or a list with one message."""
    if isinstance(item, dict):
        return item.get(first_of(item, _TEXTS))
    return item if isinstance(item, str | None) else response_text({name: item}, name)


def _said(fields: Fields) -> Fields:
    """Return who says how good answers are, where a row names somebody."""
    return {name: fields[name] for name in ("annotator", "annotator_kind") if fields.get(name)}


def _asked(fields: Fields) -> Any:
    """Return the prompt of K answers: an instruction together with the text that it is about, where there is one."""
    name = first_of(fields, PROMPTS) or "prompt"
    asked, about = required(fields, name), fields.get("input") if name == "instruction" else None
    return f"{asked}\n\n{about}" if isinstance(asked, str) and isinstance(about, str) and about.strip() else asked


def _by_a_model(fields: Fields, items: list[Any]) -> bool:
    """Tell Nectar and UltraFeedback, whose scores a model gave, from other files of K answers."""
    return "good_natured" in fields or any(isinstance(item, dict) and "annotations" in item for item in items)


def score_of(item: Fields, key: str, sign: int) -> float | None:
    """Return a number such that higher is better, None where there is none; what is true is better than what is not."""
    said = truth(str(item.get(key)))
    number = parse_number(item, key, -1e12, 1e12) if said is None else float(said)
    return None if number is None else sign * number


def by_scores(fields: Fields, left: str, right: str, said: Choice | None) -> Choice:
    """Return what two scores say of left and right; equal ones are a tie. Raises BadRow for a verdict they deny."""
    sign = -1 if "rank" in left.lower() else 1
    one, other = (score_of(fields, name, sign) for name in (left, right))
    if one is None or other is None:
        if said is None:
            raise BadRow(Reason.LACKS_FIELD, left if one is None else right, "is missing")
        return said
    choice = Choice.TIE if one == other else Choice.LEFT if one > other else Choice.RIGHT
    if said is not None and choice not in (said, Choice.TIE):
        raise BadRow(Reason.VALUE, left, f"says the opposite of the verdict: {sign * one:g} beside {sign * other:g}")
    return choice


# Two answers, of which one was chosen.


def chosen_or_equal(fields: Fields) -> Choice:
    """Return that the first side, what was chosen, is better, unless the two have equal scores or ranks."""
    for name in fields:
        other = _score_beside(name)
        if other and fields.get(name) is not None and fields.get(other) is not None:
            return by_scores(fields, name, other, Choice.LEFT)
    for name in _OF_BOTH:
        both = listed(fields.get(name)) or []
        if len(both) == 2 and all(isinstance(score, int | float) for score in both) and both[0] == both[1]:
            return Choice.TIE
    return Choice.LEFT


_OF_BOTH = ("rating", "ratings", "scores")
"""What the scores of both answers are called, where they are one list in whatever order."""
_SAYS = frozenset(("score", "scores", "rating", "ratings", "reward", "rewards", "rank", "ranking"))
_BY = frozenset(("avg", "average", "mean", "overall", "total", "final", "rm", "model"))


@lru_cache(1024)
def _score_beside(name: str) -> str:
    """Return what the score of what was rejected is called beside that of what was chosen, as which `name` is read.

    Nothing where it is none, or one of something else than how good the whole answer is.
    """
    words = {*words_in(name)}
    if "chosen" not in words or not words & _SAYS or words - _SAYS - _BY - {"chosen"}:
        return ""
    return name.replace("chosen", "rejected").replace("Chosen", "Rejected").replace("CHOSEN", "REJECTED")


# K answers in as many rows.

_RATED = ("score", "rating", "helpfulness", "reward", "rank", "votes", "upvotes")


def rated(fields: Fields) -> str:
    """Return the name of the field with the score of a row that holds one answer, nothing where there is none."""
    return next((name for name in _RATED if name in fields), "")


def gather_rated(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Yield what the answers to each prompt come to, wherever in the file they stand; all are held in memory.

    What one annotator says of an answer is compared with what the same says of another.
    """
    groups: defaultdict[str, list[tuple[int, Answer]]] = defaultdict(list)
    prompts: dict[str, Any] = {}
    for number, fields in rows:
        if isinstance(fields, BadRow):
            yield number, fields
            continue
        try:
            prompt, text, key = required(fields, "prompt"), response_text(fields), rated(fields)
            if not text.strip():
                raise BadRow(Reason.EMPTY, "response", "is empty")
            score = score_of(fields, key, -1 if key == "rank" else 1) if key else None
        except BadRow as bad:
            yield number, bad
            continue
        said = _said(fields)
        group = digest(str(prompt), str(fields.get("system")), str(said))
        prompts[group] = {"prompt": prompt, "said": {**said, "system": fields.get("system")}}
        groups[group].append((number, Answer(text, score, fields.get("model"))))
    for group, answers in groups.items():
        last, found = answers[-1][0], [answer for _, answer in answers]
        yield from _at(last, every_two(prompts[group]["prompt"], found, "response", prompts[group]["said"]))


def _at(number: int, rows: Iterator[Fields | BadRow]) -> Iterator[Numbered]:
    """Yield rows with the number of the row of the file that they come of; what they raise is one of them."""
    try:
        yield from ((number, row) for row in rows)
    except BadRow as bad:
        yield number, bad


def gather_families(families: Callable[[Iterable[Numbered]], Iterator[tuple[int, Family | BadRow]]]) -> Gather:
    """Return what makes comparisons of the answers to each message of a tree."""

    def gather(rows: Iterable[Numbered]) -> Iterator[Numbered]:
        for number, family in families(rows):
            if isinstance(family, BadRow):
                yield number, family
                continue
            found = [Answer(text, None if rank is None else -rank, model) for text, rank, model in family.answers]
            yield from _at(number, every_two(family.prompt, found, "rank", {}))

    return gather
