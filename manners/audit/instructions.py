"""Instructions whose keeping can be seen by a rule: those of IFEval, as far as they need no language model or library.

Source: Zhou et al. 2023, "Instruction-following evaluation for large language models", table 1; the strict reading of
their published checks, to which they are held (`tests/audit/ifeval.json`). Left out: the language of an answer, which
takes a library to tell. Where they count sentences by a trained tokenizer, a sentence here ends with `.`, `!` or `?`
before white space or the end. What they look for as patterns are words here: a file of prompts runs no pattern of its
own on answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Asked = Mapping[str, Any]
"""What an instruction says beside its kind: numbers, words."""
WORDS = "length_constraints:number_words"
YES_NO = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@dataclass(frozen=True)
class Instructed:
    """A prompt with what it tells one to keep to."""

    prompt: str
    kinds: tuple[str, ...]
    asked: tuple[Asked, ...]

    def kept(self, answer: str) -> float:
        """Return the share of its instructions that an answer keeps; an empty answer keeps none."""
        if not answer.strip():
            return 0.0
        held = [CHECKS[kind](answer, given) for kind, given in zip(self.kinds, self.asked, strict=True)]
        return sum(held) / len(held)

    @property
    def words(self) -> int:
        """Words that an answer must have at least."""
        asked = (a for kind, a in zip(self.kinds, self.asked, strict=True) if kind == WORDS)
        return max((int(a["num_words"]) for a in asked if a["relation"] == "at least"), default=0)


def readable(kind: str, given: Asked) -> bool:
    """Return whether an instruction can be checked: a known kind, with what it needs."""
    if kind not in CHECKS:
        return False
    try:
        CHECKS[kind]("An answer.", given)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return True


def _text(given: Asked, name: str) -> str:
    if not isinstance(value := given[name], str):
        raise TypeError(name)
    return value


def _texts(given: Asked, name: str) -> list[str]:
    """Return a list of texts; of one that is not, letters would be looked for, or what is looked for only sometimes."""
    if not isinstance(value := given[name], list) or not all(isinstance(word, str) for word in value):
        raise TypeError(name)
    return value


def _related(count: int, given: Asked, number: str, relation: str = "relation") -> bool:
    """Return whether a count stands in the relation that is asked for: `at least`, or `less than`."""
    wanted, how = int(given[number]), given[relation]
    if how not in ("at least", "less than"):
        raise ValueError(how)
    return count >= wanted if how == "at least" else count < wanted


def _words(answer: str, given: Asked) -> bool:
    return _related(len(re.findall(r"\w+", answer)), given, "num_words")


def _sentences(answer: str, given: Asked) -> bool:
    return _related(len(re.findall(r"(?<![.!?])[.!?]++(?=\s|$)", answer)), given, "num_sentences")


def _paragraphs(answer: str, given: Asked) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inside = [part for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return all(part.strip() for part in inside) and len(inside) == int(given["num_paragraphs"])


def _first_word(answer: str, given: Asked) -> bool:
    parts = [part.strip() for part in answer.split("\n\n")]  # empty ones have their number, and are not counted
    nth, wanted = int(given["nth_paragraph"]), _text(given, "first_word").lower()
    there = sum(map(bool, parts))
    if there != int(given["num_paragraphs"]) or not 1 <= nth <= there or not parts[nth - 1]:
        return False
    first = parts[nth - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", first)[0].lower() == wanted


def _bullets(answer: str, given: Asked) -> bool:
    stars = re.findall(r"^[^\S\n]*+\*[^\*].*$", answer, re.MULTILINE)
    return len(stars) + len(re.findall(r"^[^\S\n]*+-.*$", answer, re.MULTILINE)) == int(given["num_bullets"])


def _highlighted(answer: str, given: Asked) -> bool:
    single, double = re.findall(r"\*[^\n\*]*\*", answer), re.findall(r"\*\*[^\n\*]*\*\*", answer)
    return sum(bool(one.strip("*").strip()) for one in (*single, *double)) >= int(given["num_highlights"])


def _sections(answer: str, given: Asked) -> bool:
    parts = re.split(rf"\s?{re.escape(_text(given, 'section_spliter'))}\s?\d+\s?", answer)
    return len(parts) - 1 >= int(given["num_sections"])


def _json(answer: str, given: Asked) -> bool:
    text = re.sub(r"^```(?:json)?|```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str, given: Asked) -> bool:
    lines = (line for line in answer.split("\n") if "<<" in line and ">>" in line)
    return any(line[line.find("<<") : line.rfind(">>")].strip("<> ") for line in lines)


def _chosen(answer: str, given: Asked) -> bool:
    return any(one in answer for one in YES_NO)


def _placeholders(answer: str, given: Asked) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*+\]", answer)) >= int(given["num_placeholders"])


def _postscript(answer: str, given: Asked) -> bool:
    marker = _text(given, "postscript_marker").strip()
    wanted = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(wanted.get(marker, re.escape(marker.lower())), answer.lower()))


def _keywords(answer: str, given: Asked) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in _texts(given, "keywords"))


def _forbidden(answer: str, given: Asked) -> bool:
    words = _texts(given, "forbidden_words")
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in words)


def _frequency(answer: str, given: Asked) -> bool:
    return _related(len(re.findall(re.escape(_text(given, "keyword")), answer, re.IGNORECASE)), given, "frequency")


def _letters(answer: str, given: Asked) -> bool:
    return _related(answer.lower().count(_text(given, "letter").lower()), given, "let_frequency", "let_relation")


def _capital_words(answer: str, given: Asked) -> bool:
    found = sum(word.isupper() for word in re.findall(r"[\w'-]+", answer))
    return _related(found, given, "capital_frequency", "capital_relation")


def _ends(answer: str, given: Asked) -> bool:
    return answer.strip().strip('"').lower().endswith(_text(given, "end_phrase").strip().lower())


def _quoted(answer: str, given: Asked) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _two(answer: str, given: Asked) -> bool:
    parts = answer.split("******")
    inside = [part.strip() for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return len(inside) == 2 and all(inside) and inside[0] != inside[1]


def _repeats(answer: str, given: Asked) -> bool:
    return answer.strip().lower().startswith(_text(given, "prompt_to_repeat").strip().lower())


CHECKS: Mapping[str, Callable[[str, Asked], bool]] = {
    "punctuation:no_comma": lambda answer, given: "," not in answer,
    WORDS: _words,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlighted,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "detectable_format:constrained_response": _chosen,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "change_case:english_capital": lambda answer, given: answer.isupper(),
    "change_case:english_lowercase": lambda answer, given: answer.islower(),
    "change_case:capital_word_frequency": _capital_words,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeats,
}
"""By IFEval's name, whether an answer keeps an instruction."""
