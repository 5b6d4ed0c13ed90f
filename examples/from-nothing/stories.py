"""Short stories of which everything is known: text to learn to write from, requests with answers, prompts.

    python examples/from-nothing/stories.py OUT --megabytes 20

writes into the folder OUT

    stories.jsonl                       {"text", "parameters"}, a story a line
    stories.txt                         the same texts, with an empty line between two: to pre-train on
    pairs.jsonl                         {"messages", "parameters"}: a request, and a story that carries what it names
    prompts_{train,validate,evaluate}.jsonl   {"prompt", "parameters"}: requests, for `manners prompts import`

A story is drawn from a grammar (`grammar.toml`) over lists of words (`words.toml`), and its parameters are written down
before it is told: who it is about, where, with what, how it sounds, how long it is, what it teaches. So it is known
what a request asks for, and whether a text carries it (`carries`). The same seed gives the same files. Stories need no
package: Python alone. Recording the knobs of a story is the way of SimpleStories (arXiv 2504.09184).
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TypeVar

FOLDER = Path(__file__).parent
WORDS = {kind: words.split() for kind, words in tomllib.loads((FOLDER / "words.toml").read_text("utf-8")).items()}
GRAMMAR = tomllib.loads((FOLDER / "grammar.toml").read_text("utf-8"))
FEATURES = tuple(GRAMMAR["feature"])
TONES = {
    "happy": ("laughed", "smiled", "merry", "grinned", "joy"),
    "sad": ("wept", "tears", "sighed", "sorrow", "lonely"),
    "funny": ("giggled", "silly", "joke", "funny"),
    "calm": ("quiet", "softly", "peaceful", "drowsy", "calm"),
}
"""Words that stand in stories of one tone and in no others."""
MORALS = (
    *("sharing", "helping", "waiting", "listening", "asking", "trying", "giving", "forgiving"),
    *("honesty", "courage", "patience", "practice", "teamwork", "trust"),
)
LENGTHS = {"short": (1, 85), "medium": (86, 130), "long": (131, 175)}
"""Fewest and most words."""
MORE = {"short": (0, 0), "medium": (0, 1), "long": (2, 5)}
"""Fewest and most sentences beside the plot."""
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU](?!seful|seless))")
PLOTS = ("lost", "quarrel", "make", "trip", "gift")
GIRL, BOY = ("she", "her", "her"), ("he", "him", "his")
OPTIONAL = ("feature", "tone", "moral")
CAST = {
    "foods": 3,
    "things": 2,
    "things_s": 1,
    "crowd": 1,
    "plants": 1,
    "family": 1,
    "subjects": 1,
    "who_any": 1,
    "numbers": 1,
}
"""Of these a story draws so many, and comes back to them in turn."""


@dataclass(frozen=True)
class Parameters:
    """What a story is about and how it is told; None where there is no such thing in it."""

    hero: str
    who: str
    friend: str
    place: str
    thing: str
    length: str
    feature: str | None
    tone: str | None
    moral: str | None
    kind: bool
    """Whether somebody speaks kindly; no request names it."""


@dataclass(frozen=True)
class Story:
    """A text, and what it was made from."""

    text: str
    parameters: Parameters


@dataclass(frozen=True)
class Request:
    """A wish for a story, with the parameters that it names."""

    text: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Held:
    """What a story holds, by the names of slots."""

    fixed: Mapping[str, str]
    cast: Mapping[str, Iterator[str]]


Choice = TypeVar("Choice")
Part = str | Callable[[Random, Held], str]


def stories(seed: int) -> Iterator[Story]:
    """Yield stories without end."""
    rng = Random(f"stories {seed}")
    while True:
        yield story(rng)


def story(rng: Random, parameters: Parameters | None = None) -> Story:
    """Tell a story of given parameters, or of drawn ones; what does not come out at its length is told anew."""
    while True:
        chosen = parameters or draw_parameters(rng)
        text = _tell(chosen, rng)
        low, high = LENGTHS[chosen.length]
        if low <= len(text.split()) <= high:
            return Story(text, chosen)


def draw_parameters(rng: Random) -> Parameters:
    """Draw what a story is about; short ones have at most two of feature, tone and moral."""
    length = rng.choice(list(LENGTHS))
    girl, friend_girl = rng.random() < 0.5, rng.random() < 0.5
    hero = rng.choice(WORDS["girls" if girl else "boys"])
    friend = rng.choice([name for name in WORDS["girls" if friend_girl else "boys"] if name != hero])
    there = {name for name in OPTIONAL if rng.random() < 0.7}
    if length == "short" and len(there) == len(OPTIONAL):
        there.remove(rng.choice(OPTIONAL))
    feature, tone, moral = (
        rng.choice(choices) if name in there else None
        for name, choices in zip(OPTIONAL, (FEATURES, tuple(TONES), MORALS), strict=True)
    )
    who, place, thing = _being(rng, girl), rng.choice(WORDS["places"]), rng.choice(WORDS["things"])
    return Parameters(hero, who, friend, place, thing, length, feature, tone, moral, rng.random() < 0.5)


def request(parameters: Parameters, rng: Random) -> Request:
    """Ask for a story, naming two to five of its parameters."""
    known = {name: value for name, value in vars(parameters).items() if isinstance(value, str)}
    names = rng.sample(sorted(known), min(len(known), rng.randint(2, 5)))
    named = {name: known[name] for name in known if name in names}
    length = {"medium": ""}.get(named.get("length", "medium"), named.get("length", ""))
    size = "a story of middle length" if named.get("length") == "medium" else f"a {length} story"
    kind_of_story = " ".join(size.replace("a ", f"a {named.get('tone', '')} ", 1).split())
    clauses = [name for name in named if name not in ("length", "tone")]
    if {"hero", "who"} <= named.keys():
        clauses = ["hero_who", *(name for name in clauses if name not in ("hero", "who"))]
    rules = GRAMMAR["request"]
    texts = [rng.choice(rules["opening"]), *(rng.choice(rules[name]) for name in clauses)]
    text = " ".join([texts[0], ", ".join(texts[1:])]).strip().format(kind_of_story=kind_of_story, **named)
    end = "?" if text.startswith(("Can", "Could")) else "."
    return Request(_articles(text) + end, named)


def carries(text: str, parameters: Mapping[str, str | None]) -> float:
    """Return the share of the requested parameters that a text carries; 1 where nothing is requested.

    Names, the kind of hero, place, thing, feature: the word stands there. Moral: in the last sentence. Tone: a word of
    that tone, and none of another. Length: the number of words. What is None, and `kind`, is not requested.
    """
    asked = {name: value for name, value in parameters.items() if isinstance(value, str)}
    return sum(_carries(text, name, value) for name, value in asked.items()) / len(asked) if asked else 1.0


def _carries(text: str, name: str, value: str) -> bool:
    words = re.findall(r"[A-Za-z]+", text)
    if name == "length":
        low, high = LENGTHS[value]
        return low <= len(text.split()) <= high
    if name in ("hero", "friend"):
        return value in words
    small = {word.lower() for word in words}
    if name == "tone":
        return [tone for tone, marks in TONES.items() if small.intersection(marks)] == [value]
    if name == "moral":
        return value in re.findall(r"[a-z]+", re.split(r"(?<=[.!?])\s+", text.strip().lower())[-1])
    return value in small


def _tell(parameters: Parameters, rng: Random) -> str:
    """Return a text: opening, friend, problem, turn, end, and between them what the parameters ask for."""
    girls = parameters.hero in WORDS["girls"], parameters.friend in WORDS["girls"]
    he, fhe = (GIRL if girl else BOY for girl in girls)
    fixed = {name: value for name, value in vars(parameters).items() if isinstance(value, str)}
    fixed |= dict(zip(("he", "him", "his"), he, strict=True)) | dict(zip(("fhe", "fhim", "fhis"), fhe, strict=True))
    fixed |= {f"{name}_c": fixed[name].capitalize() for name in ("he", "his", "fhis")}
    fixed["fwho"] = _being(rng, girls[1])
    held = Held(fixed, {name: cycle(_some(rng, name, number, parameters)) for name, number in CAST.items()})
    plot = rng.choice(PLOTS)
    middle = [RULES[f"{plot}_turn"]] if parameters.length != "short" else []
    said = RULES["kind" if parameters.kind else "plain"]
    extra = [RULES[f"feature_{parameters.feature}"]] if parameters.feature else []
    extra += [RULES[f"tone_{parameters.tone}"]] if parameters.tone else []
    extra += [said] if parameters.kind or parameters.length != "short" else []
    fewest, most = MORE[parameters.length]
    extra += [[sentence] for sentence in rng.sample(RULES["more"], rng.randint(fewest, most))]
    middle += rng.sample(extra, len(extra))
    rules = [RULES["opening"], RULES["meets"], RULES[f"{plot}_problem"], *middle, RULES[f"{plot}_end"]]
    sentences = [_drawn(rule, rng, held) for rule in rules]
    if parameters.moral:
        sentences.append(f"{_drawn(RULES['moral_opener'], rng, held)} {_drawn(RULES['moral_predicate'], rng, held)}")
    return _articles(" ".join(sentence[0].upper() + sentence[1:] for sentence in sentences))


def _drawn(rule: Sequence[Sequence[Part]], rng: Random, held: Held) -> str:
    """Return one alternative of a rule with its slots filled."""
    parts = _any(rng, rule)
    return "".join([part if isinstance(part, str) else part(rng, held) for part in parts])


def _slot(name: str) -> Part:
    """Return what fills a slot: a rule, a word of a list, or what the story holds."""
    if name in CAST:
        return lambda rng, held: next(held.cast[name])
    if isinstance(GRAMMAR.get(name), list):
        return lambda rng, held: _drawn(RULES[name], rng, held)
    if name in WORDS and name != "who":
        words = WORDS[name]
        return lambda rng, held: _any(rng, words)
    return lambda rng, held: held.fixed[name]


def _some(rng: Random, name: str, number: int, parameters: Parameters) -> list[str]:
    """Draw a story's cast of a kind, none of whom is what the parameters name."""
    if name == "who_any":
        return [_being(rng, rng.random() < 0.5)]
    found = list[str]()
    while len(found) < number:
        word = _any(rng, WORDS["things" if name == "things_s" else name])
        if word != parameters.thing and word not in found:
            found.append(word)
    return [_plural(word) for word in found] if name == "things_s" else found


def _any(rng: Random, choices: Sequence[Choice]) -> Choice:
    """Return one of the choices: `Random.choice`, three times as fast."""
    return choices[int(rng.random() * len(choices))]


def _being(rng: Random, female: bool) -> str:
    """Draw a kind of person or animal; where a word says which sex, the right one."""
    return _any(rng, WORDS["who"]).split("_")[0 if female else -1]


def _plural(noun: str) -> str:
    if noun in ("knife", "shelf", "leaf", "scarf"):
        return re.sub("fe?$", "ves", noun)
    if noun.endswith(("sh", "ch", "ss", "x")):
        return noun + "es"
    return re.sub("(?<![aeiou])y$", "ie", noun) + "s"


def _articles(text: str) -> str:
    """Let `a` be `an` before a vowel's sound."""
    return ARTICLE.sub(r"\1n ", text)


def _compiled() -> dict[str, list[list[Part]]]:
    """Return every rule as alternatives, each a list of texts and of slots."""
    flat: dict[str, list[str]] = {}
    for name, found in GRAMMAR.items():
        flat |= {name: found} if isinstance(found, list) else {f"{name}_{key}": rule for key, rule in found.items()}
    return {
        name: [
            [_slot(part) if place % 2 else part for place, part in enumerate(re.split(r"\{(\w+)\}", text))]
            for text in texts
        ]
        for name, texts in flat.items()
        if not name.startswith("request_")
    }


RULES: dict[str, list[list[Part]]] = {}
RULES |= _compiled()


def write(folder: Path, megabytes: float, seed: int, pairs: int, prompts: Mapping[str, int]) -> dict[str, int]:
    """Write all files of the example; no request stands in two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = count = 0
    with (folder / "stories.jsonl").open("w", encoding="utf-8") as rows, (folder / "stories.txt").open("w") as plain:
        for told in stories(seed):
            if size >= megabytes * 1e6:
                break
            plain.write(told.text + "\n\n")
            rows.write(json.dumps({"text": told.text, "parameters": asdict(told.parameters)}) + "\n")
            size += len(told.text) + 2
            count += 1
    rng = Random(f"requests {seed}")
    asked = _requests(rng)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as rows:
        for wish, told in islice(asked, pairs):
            turns = [{"role": "user", "content": wish.text}, {"role": "assistant", "content": told.text}]
            rows.write(json.dumps({"messages": turns, "parameters": wish.parameters}) + "\n")
    for use, number in prompts.items():
        with (folder / f"prompts_{use}.jsonl").open("w", encoding="utf-8") as rows:
            for wish, _ in islice(asked, number):
                rows.write(json.dumps({"prompt": wish.text, "parameters": wish.parameters}) + "\n")
    return {"stories": count, "bytes": size, "pairs": pairs, **{f"prompts_{use}": n for use, n in prompts.items()}}


def _requests(rng: Random) -> Iterator[tuple[Request, Story]]:
    """Yield requests, each another one, with stories that carry what they name."""
    seen = set[str]()
    while True:
        told = story(rng)
        wish = request(told.parameters, rng)
        if wish.text.lower() not in seen:
            seen.add(wish.text.lower())
            yield wish, told


def main() -> None:
    """Write the files that the options ask for, and say how much there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--megabytes", type=float, default=20.0, help="of text to pre-train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=4000, help="requests with answers")
    for use, number in (("train", 512), ("validate", 64), ("evaluate", 128)):
        parser.add_argument(f"--{use}", type=int, default=number, help=f"prompts to {use}")
    options = parser.parse_args()
    prompts = {use: getattr(options, use) for use in ("train", "validate", "evaluate")}
    print(json.dumps(write(options.out, options.megabytes, options.seed, options.pairs, prompts)))


if __name__ == "__main__":
    main()
