"""Answers that are worse than the one they are made of, whoever judges: does the reward model see it?"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping

from manners.audit.forms import sentences

PROBES = (
    "other_prompt",
    "negated",
    "last_sentence",
    "cut",
    "shuffled",
    "repeated",
    "empty",
    "one_character",
    "thought_process",
    "echo",
)
AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|will|would|should|must|may|might|does|did|has|have|had)(n?['\u2019]t\b| not\b|\b)",
    re.IGNORECASE,
)
"""The first of these is negated, or its negation taken away: English only."""


def probes(prompt: str, answer: str, other: str | None) -> Mapping[str, str]:
    """Return each probe of an answer by name; one that would be the answer itself, or cannot be made, is left out.

    `prompt` is the text that it answers, `other` an answer to something else.
    """
    made = {
        "other_prompt": other,
        "negated": negated(answer),
        "last_sentence": last_sentence_dropped(answer),
        "cut": answer[: max(1, len(answer) // 10)],
        "shuffled": shuffled(answer),
        "repeated": f"{answer} {answer} {answer}",
        "empty": "",
        "one_character": ":",
        "thought_process": "Thought process:",
        "echo": prompt,
    }
    return {name: text for name, text in made.items() if text is not None and text.strip() != answer.strip()}


def negated(answer: str) -> str | None:
    """Say the opposite: the first auxiliary verb gets a `not`, or loses the one it has; None where there is none."""
    found = AUXILIARY.search(answer)
    if found is None:
        return None
    verb = found[1] if found[2] else f"{found[1]} not"
    return answer[: found.start()] + verb + answer[found.end() :]


def last_sentence_dropped(answer: str) -> str | None:
    """Leave the last of several sentences out; None where there is one only."""
    parts = sentences(answer)
    return answer[: answer.rstrip().rindex(parts[-1])].rstrip() if len(parts) > 1 else None


def shuffled(answer: str) -> str | None:
    """Put the words in an order that is drawn from the text itself; None for fewer than four words."""
    words = answer.split()
    if len(words) < 4:
        return None
    random.Random(zlib.crc32(answer.encode("utf-8", "surrogatepass"))).shuffle(words)
    return " ".join(words)
