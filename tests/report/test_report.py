"""The report: what it shows comes from the facts, it loads nothing, and a failed write leaves the old one."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manners import report
from manners.errors import MannersError
from manners.report import Standing, number, standing, to_json
from manners.types import Interval
from tests.report.made_up import build, checks, panels, render, rivals

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)> {{ 7 * 7 }}"


def around(estimate: float, half: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def reason(check: str, value: float, low: float, high: float, margin: float, verdict: str = "yes") -> dict[str, Any]:
    return {"check": check, "value": value, "low": low, "high": high, "margin": margin, "verdict": verdict}


def made_up_facts() -> dict[str, Any]:
    """Facts of a plausible run, every key present."""
    updates = list(range(1, 41))
    climb = [1 - math.exp(-update / 14) for update in updates]
    wobble = [0.05 * math.sin(1.7 * update) + 0.03 * math.cos(4.1 * update) for update in updates]
    answers = [
        ("My neighbour plays loud music at night. What should I say to her?",
         "Music is a form of art that has been enjoyed for centuries. There are many kinds of music:\n\n1. Classical\n"
         "2. Rock\n3. Jazz\n4. Music that is played at night, which may be",
         "You could knock on a quiet afternoon and say: “I sleep early on weekdays. Could you turn it down after ten?” "
         "Most people are glad to be asked kindly.", -0.61, 1.48),
        ("How long do I boil an egg?", "Boiling an egg is a process in which the egg is boiled.",
         "About 7 minutes for a soft yolk, and 10 for a firm one.\nCool it in cold water afterwards.", -0.2, 1.1),
        ("Write a wish for my aunt.", "Birthday wishes are wishes.", "Happy birthday, dear aunt! 🎂", -0.4, 0.9),
    ]  # fmt: skip
    return {
        "model": {
            "name": "smollm2-135m", "parameters": 134_515_008, "trainable_layers": 4,
            "note": "4-bit weights, dequantised", "template_hash": "9f31c0a7",
        },
        "seed": 1, "manners_version": "0.1.0", "machine": {"cpu": "a laptop processor", "cores": 2, "torch": "2.13.0"},
        "comparisons": {
            "total": 2400, "trained_on": 1920, "set_aside": 480, "source": "simulated", "prompts": 320,
            "verdicts": {"left": 2913, "right": 2841, "tie": 842, "both_bad": 401, "skip": 203}, "annotators": 16,
            "left_rate": around(0.506, 0.013), "left_out": {"skipped": 203, "identical responses": 17},
            "agreement": around(0.741, 0.018),
            "examples": [
                {"prompt": prompt, "left": left, "right": right, "verdict": verdict, "annotator": "Ada"}
                for (prompt, left, right, *_), verdict in zip(answers, ("right", "tie"), strict=False)
            ],
        },
        "reward": {
            "accuracy": 0.7134, "interval": [0.682, 0.741], "verdicts": 1204, "effective_n": 873.6,
            "chance": 0.5, "length_only": 0.58,
            "baselines": {
                "longer_wins": around(0.421, 0.03), "shorter_wins": around(0.579, 0.03),
                "length_and_finish": around(0.641, 0.028), "always_left": around(0.506, 0.03),
            },
            "gains": {
                "longer_wins": around(0.292, 0.04), "shorter_wins": around(0.134, 0.04),
                "length_and_finish": around(0.072, 0.035), "always_left": around(0.207, 0.04),
            },
            "ceiling": {
                "low": 0.741, "high": 0.847, "fit": 0.803, "low_interval": [0.723, 0.759],
                "high_interval": [0.834, 0.86], "fit_interval": [0.783, 0.823], "pairs": 612, "moments": 1,
            },
            "by_agreement": [{"level": "2 of 3 agree", "n": 171, **around(0.602, 0.07)},
                             {"level": "all agree", "n": 309, **around(0.771, 0.045)}],
            "ece": 0.031, "ece_before": 0.094, "temperature": 1.62, "tie_parameter": 0.41,
            "reliability": [
                {"predicted": p, "observed": p + shift, "low": p + shift - 0.08, "high": p + shift + 0.08, "n": 90}
                for p, shift in ((0.1, 0.03), (0.3, -0.02), (0.5, 0.01), (0.7, 0.02), (0.9, -0.03))
            ],
            "length_correlation": around(-0.31, 0.05),
            "curve": [
                {"share": 0.25, "verdicts": 1390, **around(0.643, 0.03)},
                {"share": 0.5, "verdicts": 2780, **around(0.684, 0.03)},
                {"share": 1.0, "verdicts": 5560, **around(0.7134, 0.029)},
            ],
            "doubling": "Twice as many verdicts would add about 2.9 points of accuracy (0.4 to 5.5).",
            "members": 3, "both_bad_rule": "A tie for the comparison; it also lowers neither score.",
            "strength_rule": "Weights a verdict by 0.75, 1 or 1.25.",
            "sentence": "The reward model agrees with 71.3 % of verdicts it never saw, clear of every simple rule.",
        },
        "ppo": {
            "episodes": 5120, "kl": 8.42, "optimizer_steps": 640, "episodes_per_second": 21.4, "seconds": 239.5,
            "stopped": None, "best_update": 33, "warnings": ["The ensemble's spread rose by half after update 30."],
            "curves": {
                "update": updates,
                "objective/scores": [1.3 * c + w for c, w in zip(climb, wobble, strict=True)],
                "objective/kl": [8.4 * c + 4 * w for c, w in zip(climb, wobble, strict=True)],
                "response/length": [51 - 14 * c + 20 * w for c, w in zip(climb, wobble, strict=True)],
                "response/finished": [0.52 + 0.4 * c + w / 2 for c, w in zip(climb, wobble, strict=True)],
                "val/explained_variance": [-0.2 + 0.85 * c + w for c, w in zip(climb, wobble, strict=True)],
                "policy/clipfrac_avg": [0.08 + w / 2 for w in wobble],
                "response/distinct_2": [0.91 - 0.04 * c + w / 9 for c, w in zip(climb, wobble, strict=True)],
                "reward/ensemble_std": [0.3 + 0.2 * c + w / 3 for c, w in zip(climb, wobble, strict=True)],
                "validate/update": updates[::8],
                "validate/score": [1.2 * c for c in climb[::8]],
            },
        },
        "evaluation": {
            "win_rate": 0.684, "interval": [0.641, 0.727], "prompts": 96, "samples": 384, "source": "simulated",
            "matched": {**around(0.612, 0.061), "pairs": 141, "prompts": 71},
            "regressed": {**around(0.605, 0.048), "slope": 0.31, "shorter": 60, "longer": 88},
            "best_of_n": {"n": 4, "win_rate": around(0.655, 0.042),
                          "sentence": "Best of 4 with the same reward model wins 65.5 %: PPO is not clearly ahead."},
            "against": "initial", "start": "initial", "raters": 1, "noisy": around(0.621, 0.05),
            "reasons": [
                reason("win_rate", 0.684, 0.641, 0.727, 0.5), reason("matched_length", 0.612, 0.551, 0.673, 0.5),
                reason("perplexity", 0.019, 0.012, 0.026, 0.05), reason("collapse", 0.01, 0.008, 0.03, 0.5),
                reason("variety", 0.97, 0.95, 0.99, 0.1),
            ],
            "taste_before": 0.412, "taste_after": 0.598, "content_before": 0.371, "content_after": 0.436,
            "taste_change": around(0.186, 0.021),
            "taste_parts": {
                name: {"before": before, "after": after}
                for name, before, after in (("answers_the_question", 0.34, 0.41), ("short", 0.45, 0.62),
                                            ("finished", 0.52, 0.93), ("kind", 0.48, 0.46))
            },
            "perplexity_before": 24.31, "perplexity_after": 24.77, "perplexity_change": around(0.019, 0.007),
            "kl": 8.11, "length_before": 51.2, "length_after": 37.9, "finished_before": 0.52, "finished_after": 0.93,
            "distinct_2_before": 0.912, "distinct_2_after": 0.884, "promoted": True,
            "verdict": "Judged by simulated annotators on 96 unused prompts, the new version is better than the "
                       "initial model: it wins 68.4 % (95 % interval 64.1 to 72.7). At matched length it wins 61.2 % "
                       "(95 % interval 55.1 to 67.3) of 141 pairs on 71 prompts. Promoted.",
            "examples": [
                {"prompt": p, "before": b, "after": a, "score_before": s, "score_after": t} for p, b, a, s, t in answers
            ],
        },
        "seconds": {"sample": 131.2, "reward": 262.0, "ppo": 239.5, "evaluate": 84.8, "report": 2.1},
        "peak_memory_bytes": 2_913_000_000, "trusted_notes": ["Prompts were written by the authors of manners."],
    }  # fmt: skip


def visible(page: str) -> str:
    """Return the page's text as a reader sees it."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text)))


class Tags(HTMLParser):
    """Collects every element, and complains of ids that occur twice or tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_up_facts())


def test_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", page)
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "image")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")


def test_page_is_well_formed_with_unique_ids_and_labelled_figures(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {str(attributes["href"])[1:] for _, attributes in tags.found if "href" in attributes}
    assert used | set(re.findall(r"url\(#(\w+)\)", page)) <= set(ids)
    drawings = [attributes for tag, attributes in tags.found if tag == "svg"]
    assert len(drawings) == 8 + 9
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


def test_figures_shown_come_from_the_facts(page: str) -> None:
    text = visible(page).replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        "68.4 % (64.1 to 72.7 %)", "71.3 % (68.2 to 74.1 %)", "64.1 % (61.3 to 66.9 %)", "74.1 % (72.3 to 75.9 %)",
        "84.7 % (83.4 to 86.0 %)", "which is an assumption, it would be 80.3 %", "1,204, worth 874",
        "61.2 % (55.1 to 67.3 %)", "+1.9 % (+1.2 to +2.6 %)", "24.3", "134,515,008", "5,120", "8.42", "2,400", "2.9 GB",
        "12 min 00 s", "50.6 %", "+0.186 (+0.165 to +0.207)", "93.0 %", "all agree (n = 309)",
        "it wins 68.4 % (95 % interval 64.1 to 72.7)", "\N{MINUS SIGN}0.310", "5,560",
        "The ensemble's spread rose by half", "4-bit weights, dequantised", "96 prompts never trained on",
    ):  # fmt: skip
        assert expected in text, expected
    changed = made_up_facts()
    changed["evaluation"] |= {"win_rate": 0.523, "interval": [0.471, 0.575]}
    assert "52.3 % (47.1 to 57.5 %)" in visible(render(changed)).replace("\N{NO-BREAK SPACE}", " ")


def test_a_prompt_is_not_said_to_have_two_answers(page: str) -> None:
    """Sampling makes three, the demo four, and a file brings what it has."""
    assert "320 prompts were answered more than once, and 16 simulated annotators said" in visible(page)
    assert "answers every prompt more than once" in visible(render({}))
    for one in (page, render({})):
        assert "answered twice" not in one and "two responses to every prompt" not in one


def test_text_in_figures_stays_text_and_colours_follow_the_page(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert ">Reward model</text>" in drawings
    assert not re.search(r"#[0-9a-f]{6}[;\"]", drawings)


@pytest.mark.parametrize(
    ("against", "start", "named"),
    [
        ("initial", "initial", "the initial model"),
        ("policy-1", "initial", "policy-1"),
        ("sft-1", "sft-1", "the start version, sft-1"),
    ],
)
def test_the_parts_of_the_taste_are_of_the_versions_that_were_compared(against: str, start: str, named: str) -> None:
    facts = made_up_facts()
    facts["evaluation"] |= {"version": "policy-2", "against": against, "start": start}
    figure = re.search(r'aria-label="(Parts of the hidden taste[^"]*)".*?</svg>', render(facts), flags=re.DOTALL)
    assert figure is not None
    assert f">hollow: {named}; filled arrow head: policy-2</text>" in figure[0]
    assert figure[1].startswith(f"Parts of the hidden taste, {named} and policy-2: ")


@pytest.mark.parametrize(
    ("interval", "word"), [([0.51, 0.6], "Better"), ([0.49, 0.6], "Cannot tell"), ([0.3, 0.49], "Worse")]
)
def test_banner_follows_the_interval_alone(interval: list[float], word: str) -> None:
    facts = made_up_facts()
    facts["evaluation"] |= {"win_rate": sum(interval) / 2, "interval": interval}
    page = render(facts)
    assert f"<title>{word} " in page
    assert re.search(rf'class="word">.*</span> {word} ', page)


@pytest.mark.parametrize(
    ("promoted", "current", "said"),
    [
        (True, "policy-2", "promoted policy-2. When this page was written, it was the one that answered."),
        (True, "policy-1", "That has changed since then: when this page was written, policy-1 answered."),
        (True, "initial", "That has changed since then: when this page was written, the initial model answered."),
        (False, "policy-1", "did not promote policy-2. When this page was written, policy-1 still answered."),
        (False, "policy-2", "did not promote policy-2. It was promoted all the same since then: when this page"),
        (False, "policy-3", "did not promote policy-2. When this page was written, policy-3 answered."),
        (None, "policy-1", "When this page was written, policy-1 answered."),
        (True, None, "The evaluation promoted policy-2."),
    ],
)  # fmt: skip
def test_what_answers_is_told_by_what_stood_when_the_page_was_written(
    promoted: bool | None, current: str | None, said: str
) -> None:
    """An evaluation does not know of a roll-back, an override or a later round."""
    evaluation = {"version": "policy-2", "against": "policy-1", "promoted": promoted, "win_rate": 0.6}
    text = visible(render({"evaluation": evaluation} | ({"current": current} if current else {})))
    assert said in text
    assert "answers from now on" not in text and "stays in place" not in text


def test_each_section_names_its_version_and_a_note_says_where_they_differ() -> None:
    facts: dict[str, Any] = {
        "reward": {"version": "reward-2", "accuracy": 0.7},
        "ppo": {"version": "policy-2", "reward": "reward-1", "episodes": 8},
        "evaluation": {"version": "policy-1", "win_rate": 0.6},
    }
    text = visible(render(facts))
    for heading in (
        "Before you ship policy-1", "may fool it reward-2", "How training went policy-2", "Side by side policy-1",
    ):  # fmt: skip
        assert heading in text
    assert "What PPO trained is policy-2, and what was evaluated is policy-1" in text
    assert "Policy-2 was trained against reward-1, and the reward model shown is reward-2." in text
    facts["ppo"] |= {"version": "policy-1", "reward": "reward-2"}
    one = visible(render(facts))
    assert "what was evaluated is" not in one and "the reward model shown is" not in one


def test_standing_by_hand() -> None:
    assert standing(Interval(0.6, 0.51, 0.7), 0.5) is Standing.YES
    assert standing(Interval(0.6, 0.5, 0.7), 0.5) is Standing.UNCLEAR
    assert standing(Interval(0.4, 0.3, 0.49), 0.5) is Standing.NO
    assert standing(None, 0.5) is Standing.UNCLEAR


def test_checks_by_hand() -> None:
    whole = made_up_facts()["evaluation"]
    assert [check.standing for check in checks(whole)] == ["yes"] * 5 + ["cannot tell", "yes"]
    evaluation = {name: value for name, value in whole.items() if name != "reasons"}
    assert [check.standing for check in checks(evaluation)] == ["cannot tell", "yes"]
    assert checks(evaluation | {"content_after": 0.2})[1].standing is Standing.NO
    assert checks(evaluation | {"content_change": around(0.065, 0.07)})[1].standing is Standing.UNCLEAR
    ahead = evaluation | {"best_of_n": evaluation["best_of_n"] | {"head_to_head": around(0.55, 0.04)}}
    assert checks(ahead)[0].standing is Standing.YES
    beaten = evaluation | {"best_of_n": {"n": 8, "win_rate": around(0.8, 0.02)}}
    assert checks(beaten)[0].standing is Standing.NO
    assert checks({}) == []


def test_each_reason_of_the_rule_is_a_question_with_its_figure() -> None:
    blocked = [
        reason("win_rate", 0.6, 0.55, 0.65, 0.5),
        reason("start", 0.4, 0.3, 0.48, 0.45, "no"),
        reason("matched_length", 0.5, 0.0, 1.0, 0.5, "cannot_tell"),
        reason("perplexity", 0.07, 0.06, 0.08, 0.05, "no"),
        {"check": "judge", "verdict": "no"},
    ]
    rows = checks({"against": "policy-1", "start": "initial", "reasons": blocked})
    assert [(row.question, str(row.standing)) for row in rows] == [
        ("Better than policy-1?", "yes"),
        ("Above 45 % against the initial model?", "no"),
        ("Better at equal length?", "cannot tell"),
        ("Perplexity on plain text at most 5 % up?", "no"),
        ("May this judge promote?", "no"),
    ]
    assert rows[0].evidence == "60.0\N{NO-BREAK SPACE}% (55.0 to 65.0\N{NO-BREAK SPACE}%)"
    assert rows[3].evidence.startswith("+7.0\N{NO-BREAK SPACE}% (+6.0 to")
    page = render({"evaluation": {"against": "policy-1", "start": "initial", "reasons": blocked, "win_rate": 0.6}})
    assert "Policy-1 and the policy, measure by measure" in page and "Above 45 % against the initial model?" in page


def test_reward_model_beats_a_rule_where_it_agrees_with_more_of_the_same_verdicts() -> None:
    reward = made_up_facts()["reward"]
    assert {check.standing for check in rivals(reward)} == {Standing.YES}
    reward["gains"]["length_and_finish"] = around(0.018, 0.02)
    reward["gains"]["longer_wins"] = around(-0.2, 0.02)
    found = {check.question: (check.standing, check.evidence) for check in rivals(reward)}
    assert found["Length and finish flag"] == (Standing.UNCLEAR, "+1.8 points (\N{MINUS SIGN}0.2 to +3.8)")
    assert found["Longer wins"][0] is Standing.NO and found["Shorter wins"][0] is Standing.YES


def test_simulated_verdicts_are_called_so_wherever_they_count(page: str) -> None:
    for anchor in ("checks", "asked", "reward"):
        heading = re.search(rf'<section id="{anchor}">\s*<h2>(.*?)</h2>', page, flags=re.DOTALL)
        assert heading is not None and "SIMULATED" in heading[1]
    assert "No person took part." in page
    facts = made_up_facts()
    facts["comparisons"]["source"] = facts["evaluation"]["source"] = "human"
    del facts["evaluation"]["taste_parts"], facts["evaluation"]["verdict"]
    people = render(facts)
    assert "SIMULATED" not in people and "simulated" not in visible(people)
    facts["evaluation"]["source"] = "simulated"
    assert "SIMULATED" in render(facts)


def test_hostile_text_stays_text() -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(member) for key, member in value.items()}
        if isinstance(value, list):
            return [poisoned(member) for member in value]
        return HOSTILE if isinstance(value, str) else value

    facts = poisoned(made_up_facts())
    facts["evaluation"]["taste_parts"] = {name: {"before": 0.3, "after": 0.2} for name in (HOSTILE, "$\\frac{1}$ 漢字")}
    facts["reward"]["gains"][HOSTILE] = facts["reward"]["baselines"][HOSTILE] = around(0.5, 0.1)
    facts["comparisons"]["left_out"] = {HOSTILE: 3}
    page = render(facts)
    assert not {tag for tag, _ in Tags(page).found} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in Tags(page).found for name in attributes)
    assert HOSTILE.replace("_", " ") in unescape(page)
    assert "default-src 'none'" in page


def test_white_space_of_answers_is_kept(page: str) -> None:
    assert "1. Classical\n2. Rock\n3. Jazz\n" in page
    assert re.search(r"\.answer \.text \{[^}]*white-space: pre-wrap", page)


@pytest.mark.parametrize(
    ("part", "command"),
    [("comparisons", "manners sample"), ("reward", "manners reward"), ("ppo", "manners ppo"),
     ("evaluation", "manners evaluate"), ("seconds", "manners demo")],
)  # fmt: skip
def test_a_missing_part_names_the_command_that_makes_it(part: str, command: str, page: str) -> None:
    facts = made_up_facts()
    del facts[part]
    assert f"<code>{command}</code>" in render(facts)
    assert f"<code>{command}</code>" not in page


def test_every_single_fact_may_be_absent_and_may_stand_alone() -> None:
    whole = made_up_facts()
    assert "Not evaluated" in render({})
    for odd in (0, 1):
        halves = {part: dict(list(of.items())[odd::2]) if isinstance(of, dict) else of for part, of in whole.items()}
        assert Tags(render(halves)).open == []
    for part in ("model", "comparisons", "reward", "evaluation"):
        for key, value in whole[part].items():
            assert Tags(render({part: {key: value}})).open == []


def test_json_has_the_promised_keys(tmp_path: Path) -> None:
    facts = made_up_facts()
    read = json.loads(build(facts, tmp_path / "new").json.read_text(encoding="utf-8"))
    promised = {
        "model": ("name", "parameters"),
        "comparisons": ("total", "trained_on", "set_aside", "source"),
        "reward": ("accuracy", "interval", "length_only", "ece"),
        "ppo": ("episodes", "kl", "optimizer_steps", "episodes_per_second", "seconds"),
        "evaluation": ("win_rate", "interval", "prompts", "taste_before", "taste_after", "perplexity_before",
                       "perplexity_after"),
    }  # fmt: skip
    for part, keys in promised.items():
        for key in keys:
            assert read[part][key] == facts[part][key]
    assert read["seconds"] == facts["seconds"] and read["peak_memory_bytes"] == facts["peak_memory_bytes"]


def test_json_is_stable() -> None:
    facts = made_up_facts()
    turned = dict(reversed(facts.items())) | {"seed": np.int64(1)}
    assert to_json(facts) == to_json(turned)
    odd = to_json({"b": np.float32(0.5), "a": math.nan, "c": (0.1 + 0.2, math.inf), "d": np.float64(1 / 3), "e": True})
    assert json.loads(odd) == {"a": None, "b": 0.5, "c": [0.3, None], "d": 0.3333333333, "e": True}
    assert list(json.loads(odd)) == ["a", "b", "c", "d", "e"]


def test_same_facts_give_the_same_page(page: str) -> None:
    facts = copy.deepcopy(made_up_facts())
    assert render(facts) == page
    assert facts == made_up_facts()


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = build(made_up_facts(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.html", "report.json"} == {paths.html.name, paths.json.name}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MannersError, match=r"no space left on the disk to write .*report.html"):
        build({"seed": 2}, tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(MannersError, match="could not be written"):
        build({}, paths.html / "below a file")


def test_unrecorded_metrics_have_no_panel() -> None:
    curves = {"update": [1, 2, 3], "objective/kl": [0.1, None, 0.3], "objective/scores": [None] * 3}
    drawn = panels({"curves": curves})
    assert [title for title, _, _ in drawn] == ["KL from the initial model"]
    assert "from 0.100 to 0.300" in drawn[0][2]


def test_the_kl_is_said_to_be_from_the_version_that_it_is_from() -> None:
    facts = {"ppo": {"curves": {"update": [1, 2], "objective/kl": [0.1, 0.3]}}}
    for start, called in (("initial", "the initial model"), ("policy-2", "the start version, policy-2")):
        assert f"KL from {called}<" in render(facts | {"evaluation": {"start": start}})
    assert "KL from the start version<" in render(facts), "before an evaluation says which one that is"


def test_numbers_as_text() -> None:
    none = "\N{EN DASH}"
    assert [number(x) for x in (1234567, 0.1234, -3.14159, 24.31, 1234.5, None, math.nan, True)] == [
        "1,234,567", "0.123", "\N{MINUS SIGN}3.14", "24.3", "1,234", none, none, none,
    ]  # fmt: skip
    assert [report.duration(x) for x in (4.04, 59.6, 200, 3900)] == ["4.0 s", "1 min 00 s", "3 min 20 s", "1 h 05 min"]
    assert report.duration(None) == none == report.size(None)
    assert report.with_interval({"estimate": 0.5, "low": None, "high": 0.6}) == "not measured"
