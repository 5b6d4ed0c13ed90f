"""Stories of our own making: what they were made from is in them, they are unlike one another, and are soon written."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from manners.feedback.crowd import TASTES, true_score
from manners.types import FinishReason, Response, Role, Turn

FILE = Path(__file__).parents[1] / "examples" / "from-nothing" / "stories.py"
FEW, MANY = 4000, 20_000
RUN = 8
"""Words."""


def loaded() -> Any:
    """The script, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("stories", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stories"] = module
    spec.loader.exec_module(module)
    return module


stories = loaded()


@pytest.fixture(scope="module")
def told() -> list[Any]:
    return list(islice(stories.stories(5), FEW))


@pytest.fixture(scope="module")
def many() -> list[Any]:
    return list(islice(stories.stories(5), MANY))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


@pytest.mark.long
def test_no_run_of_eight_words_stands_in_more_than_one_story_in_a_thousand(many: list[Any]) -> None:
    stand_in: Counter[int] = Counter()
    for story in many:
        said = words(story.text)
        stand_in.update({hash(tuple(said[i : i + RUN])) for i in range(len(said) - RUN + 1)})
    assert max(stand_in.values()) <= MANY / 1000


@pytest.mark.long
def test_no_two_stories_are_alike_and_no_sentence_is_often_said(many: list[Any]) -> None:
    assert len({story.text for story in many}) == MANY
    common = Counter(sentence for story in many for sentence in set(sentences(story.text)))
    assert common.most_common(1)[0][1] < 5


@pytest.mark.long
def test_the_vocabulary_is_small(many: list[Any]) -> None:
    counted = Counter(word for story in many for word in words(story.text))
    assert 1500 <= len(counted) <= 2500
    assert sum(count < 20 for count in counted.values()) < 20, "nearly every word comes often enough to be learnt"


@pytest.mark.long
def test_a_story_carries_all_that_it_was_made_from(many: list[Any]) -> None:
    assert {stories.carries(story.text, asdict(story.parameters)) for story in many} == {1.0}


def test_what_a_story_was_not_made_from_it_carries_no_more_often_than_by_chance(told: list[Any]) -> None:
    """Shuffled against each other. Chance of a tone, a moral, a feature: that it is the same one, both being drawn."""
    hits: dict[str, list[float]] = {}
    for story, other in zip(told, [*told[1:], told[0]], strict=True):
        for name, value in asdict(other.parameters).items():
            if isinstance(value, str):
                hits.setdefault(name, []).append(stories.carries(story.text, {name: value}))
    share = {name: sum(found) / len(found) for name, found in hits.items()}
    with_it = {name: sum(getattr(s.parameters, name) is not None for s in told) / len(told) for name in share}
    for name, kinds in (("tone", 4), ("feature", 12), ("moral", 14), ("length", 3)):
        assert share[name] == pytest.approx(with_it[name] / kinds, abs=0.03)
    assert max(share[name] for name in ("hero", "friend", "who", "place", "thing")) < 0.05


@pytest.mark.parametrize(
    ("name", "value", "carried"),
    [
        ("hero", "Mia", True),
        ("hero", "Mi", False),
        ("friend", "Ben", True),
        ("who", "fox", True),
        ("place", "forest", False),
        ("thing", "key", True),
        ("thing", "lamp", False),
        ("feature", "song", True),
        ("tone", "happy", True),
        ("tone", "sad", False),
        ("moral", "sharing", True),
        ("moral", "song", False),
        ("length", "short", True),
        ("length", "long", False),
    ],
)
def test_what_is_carried_can_be_read_off_the_text(name: str, value: str, carried: bool) -> None:
    text = "Mia the fox sang a song to Ben. Ben smiled at the Key. They learned that sharing is good."
    assert stories.carries(text, {name: value}) == float(carried)


def test_two_tones_are_none_and_half_of_a_request_is_half() -> None:
    assert stories.carries("He smiled and wept.", {"tone": "sad"}) == 0
    assert stories.carries("Mia slept.", {"hero": "Mia", "place": "forest", "moral": None}) == 0.5
    assert stories.carries("", {}) == 1


def test_every_parameter_is_drawn_in_all_its_values(told: list[Any]) -> None:
    for name, values in (("feature", stories.FEATURES), ("tone", stories.TONES), ("moral", stories.MORALS)):
        counted = Counter(getattr(story.parameters, name) for story in told)
        assert set(counted) == {None, *values}
        assert min(counted.values()) > FEW / 100
    assert set(Counter(s.parameters.length for s in told)) == {"short", "medium", "long"}
    assert min(Counter(s.parameters.length for s in told).values()) > FEW / 6


@pytest.mark.parametrize("number", range(10))
def test_a_story_is_told_to_order(number: int) -> None:
    wanted = stories.draw_parameters(Random(number))
    wanted = replace(wanted, hero="Zoe", who="dragon", place="bakery", thing="kite", length="long", moral="honesty")
    found = stories.story(Random(number), wanted)
    assert found.parameters == wanted
    assert {"Zoe", "dragon", "bakery", "kite"} <= set(re.findall(r"\w+", found.text))
    assert "honesty" in sentences(found.text)[-1]


def test_a_request_says_what_it_names_in_many_ways(told: list[Any]) -> None:
    rng = Random(1)
    asked = [stories.request(story.parameters, rng) for story in told[:3000]]
    for request in asked:
        assert 2 <= len(request.parameters) <= 5
        for name, value in request.parameters.items():
            assert ("middle" if value == "medium" else value) in request.text, name
    frames = {re.sub(rf"\b(?:{'|'.join(request.parameters.values())})\b", "_", request.text) for request in asked}
    assert len(frames) > 1000
    assert "{" not in "".join(request.text for request in asked)


def test_the_hidden_taste_likes_what_carries_the_request_and_the_moral_and_the_kind(told: list[Any]) -> None:
    """The taste reads the prompt's words; what it finds is what the generator wrote down."""
    rng = Random(2)
    own, other, morals, kind = [], [], [], []
    for story, stranger in zip(told[:1000], told[1000:2000], strict=True):
        prompt = (Turn(Role.USER, stories.request(story.parameters, rng).text),)
        mine, theirs = (
            true_score(TASTES["stories"], prompt, Response(text, "m", FinishReason.STOP))
            for text in (story.text, stranger.text)
        )
        own.append(mine)
        other.append(theirs)
        morals.append((mine.moral == 1) == (story.parameters.moral is not None))
        kind.append((story.parameters.kind, mine.kindness))
    assert min(parts.asked for parts in own) == 1
    assert sum(parts.asked for parts in other) / len(other) < 0.25
    assert all(morals)
    assert sum(a.total > b.total for a, b in zip(own, other, strict=True)) > 950
    least_kind = sum(k for is_kind, k in kind if is_kind) / sum(is_kind for is_kind, _ in kind)
    most_plain = sum(k for is_kind, k in kind if not is_kind) / sum(not is_kind for is_kind, _ in kind)
    assert least_kind > most_plain + 0.4


def test_the_files_are_the_same_for_a_seed_and_share_no_request(tmp_path: Path) -> None:
    prompts = {"train": 40, "validate": 10, "evaluate": 20}
    for folder, seed in (("one", 3), ("again", 3), ("two", 4)):
        stories.write(tmp_path / folder, 0.2, seed, 50, prompts)
    texts = {path.name: path.read_text("utf-8") for path in (tmp_path / "one").iterdir()}
    assert texts == {path.name: path.read_text("utf-8") for path in (tmp_path / "again").iterdir()}
    assert all(texts[name] != (tmp_path / "two" / name).read_text("utf-8") for name in texts)
    rows = {name: [json.loads(line) for line in texts[name].splitlines()] for name in texts if name.endswith("l")}
    assert "".join(f"{row['text']}\n\n" for row in rows["stories.jsonl"]) == texts["stories.txt"]
    assert 200_000 <= len(texts["stories.txt"]) < 202_000
    asked = [row["prompt"] for use in prompts for row in rows[f"prompts_{use}.jsonl"]]
    pairs = rows["pairs.jsonl"]
    asked += [row["messages"][0]["content"] for row in pairs]
    assert len(asked) == len({text.lower() for text in asked}) == 120
    assert all(stories.carries(row["messages"][1]["content"], row["parameters"]) == 1 for row in pairs)


@pytest.mark.long
def test_fifty_megabytes_take_no_longer_than_a_minute_of_counting(told: list[Any]) -> None:
    """By the clock of this machine, whatever it is: splitting text into words and counting them goes at 10 MB a second
    on the slowest there is, so a story may take 12 times as long as counting its words, for 50 MB a minute."""
    text = [story.text for story in told[:2000]]
    fastest = []
    for _ in range(3):
        begin = time.process_time()
        list(islice(stories.stories(9), 2000))
        middle = time.process_time()
        for _ in range(5):
            Counter(word for one in text for word in re.findall(r"[a-z']+", one.lower()))
        fastest.append((middle - begin) / (time.process_time() - middle) * 5)
    assert min(fastest) < 12
