"""Names of accounts: what one may be called, and which two names a person takes for one.

Source: Unicode Technical Standard #39, "Unicode Security Mechanisms", section 4 (skeletons). We differ on purpose:
case, accents, spaces and punctuation do not tell names apart either.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from importlib.resources import files

from manners.errors import MannersError

LONGEST_NAME = 80
SEPARATOR = ":"
"""Between an account and a user of its programs: in no account's name."""
RESERVED = (
    *("owner", "admin", "administrator", "root", "system", "moderator", "support", "security", "staff"),
    *("manners", "upstream", "initial", "imported", "human", "ai", "simulated", "deleted", "local", "unknown"),
    *("anonymous", "nobody", "everybody", "everyone", "somebody"),
)
"""Names of the machine's owner, of kinds and versions, and those that claim a right."""
NUMBERED = ("policy", "reward", "sft", "pretrain", "imported", "annotator", "user", "forgotten")
"""What is numbered here: versions, and annotators without a name, or who have none any more."""
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What shows nothing, and yet counts as printable."""
_STACKED = 3
"""Marks on one letter: more are a drawing."""


def spelt(name: str) -> str:
    """Return a name in the form in which names are kept (NFC): the same letters may be written in several ways."""
    return unicodedata.normalize("NFC", name)


def fit_name(name: str) -> str:
    """Return an account's name in the one form in which it is kept. Raises MannersError on an unfit one."""
    name = spelt(name)
    if not 1 <= len(name) <= LONGEST_NAME or name != " ".join(name.split()) or not _is_visible(name):
        raise MannersError(f"an account's name takes 1 to {LONGEST_NAME} visible characters, without blanks around it")
    if not any(char.isalnum() for char in name):
        raise MannersError("an account's name takes a letter or a digit: choose another name")
    plain = name + unicodedata.normalize("NFKD", name)
    if any(SEPARATOR in _prototypes(char) for char in plain if not unicodedata.category(char).startswith("M")):
        raise MannersError(f"an account's name takes no {SEPARATOR}, nor what looks like it: choose another name")
    if any(_reserved().fullmatch(key) for key in skeletons(name)):
        raise MannersError(f"the name {name} is reserved, or looks like one that is: choose another name")
    return name


def look_alike(name: str, names: Iterable[str]) -> str | None:
    """Return the first of some names that is taken for this one, or None."""
    keys = skeletons(name)
    return next((one for one in names if not keys.isdisjoint(skeletons(one))), None)


def skeletons(name: str) -> frozenset[str]:
    """Return what two names share one of that look alike.

    Two, for a capital I looks like l, and is the same letter as i: letters are made small before they are mapped, and
    after.
    """
    plain = _without_marks(unicodedata.normalize("NFKD", name))
    small_first = _prototypes(_without_marks(unicodedata.normalize("NFKD", plain.casefold())))
    small_last = _without_marks(unicodedata.normalize("NFKD", _prototypes(plain).casefold()))
    return frozenset(_letters(_prototypes(found.casefold())) for found in (small_first, small_last))


def _is_visible(name: str) -> bool:
    if not name.isprintable() or _INVISIBLE.search(name):
        return False
    marks = 0
    for place, char in enumerate(unicodedata.normalize("NFD", name)):
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks > _STACKED or (marks and not place):
            return False
    return True


def _without_marks(text: str) -> str:
    """Leave out accents, and what shows nothing."""
    return "".join(c for c in text if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")


def _letters(text: str) -> str:
    """Leave out spaces and punctuation, where anything else is there."""
    return "".join(c for c in text if c.isalnum() or unicodedata.category(c)[0] == "M").replace("vv", "w") or text


def _prototypes(text: str) -> str:
    table = _table()
    return "".join(table.get(char, char) for char in text)


@functools.cache
def _table() -> dict[str, str]:
    lines = files("manners.data").joinpath("confusables.txt").read_text(encoding="utf-8").split("\n")
    pairs = (line.split("\t") for line in lines if line and not line.startswith("# "))
    return {char: prototype for prototype, chars in pairs for char in chars}


@functools.cache
def _reserved() -> re.Pattern[str]:
    """Return the pattern of the skeletons of names that nobody may have; 1 is l there, and 0 is o."""

    def keys(names: Iterable[str]) -> str:
        return "|".join({key for name in names for key in skeletons(name) | skeletons(name.capitalize())})

    alone, numbered = keys(RESERVED), keys(NUMBERED)
    return re.compile(rf"(?:{alone})|(?:{numbered})[lo2-9]+")
