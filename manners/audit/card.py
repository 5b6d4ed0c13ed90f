"""The card of a version: what it was made of and by whom, what was measured, where it fails, what it is not for.

A policy answers for the reward model that taught it, whose checks are on its card as well.
`card.json` and `card.html` lie in the version's folder, and are written whenever its record of checks is. They hold
numbers and settings, and no words of anybody but the reasons given to override the gate, to approve or to reject.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, PackageLoader, Template

from manners import __version__
from manners.audit.rules import EVALUATION, PEOPLE, POLICY, REWARD, Rule, Rules, rules
from manners.facts import Facts, to_facts
from manners.markup import environment
from manners.results.audit import CANNOT_TELL, FAIL, CheckRecord
from manners.workspace import Workspace, atomic_write

JSON, HTML = "card.json", "card.html"
EMBEDDED = {"smollm2-135m": "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0; 4-bit weights, dequantised."}
"""What is known of models by their names here."""
NOT_FOR = (
    "Decisions about people: their work, health, credit, rights or freedom.",
    "Answers that nobody reads before they have an effect.",
    "Languages, subjects and people that the comparisons above are not about: nothing was measured there.",
    "Facts: what was taught is what annotators preferred, which need not be true.",
)
NOT_FOR_REWARD = (
    "Absolute marks: a score says how answers to one prompt compare, and no more; two models' scores share no scale.",
    "Optimising without a limit: past some distance from the start version a higher score is a worse answer.",
)
SIMULATED = "A claim about people: the annotators are a program."


def write(workspace: Workspace, described: Mapping[str, Any], record: CheckRecord, asked: Rules) -> None:
    """Write both files of a version's card, each whole or not at all."""
    folder = workspace.models / str(described["name"])
    found = facts(described, record, asked)
    atomic_write(folder / JSON, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    atomic_write(folder / HTML, _template().render(card=found))


def facts(described: Mapping[str, Any], record: CheckRecord, asked: Rules) -> Facts:
    """Return the card of a version, in JSON's types, from its description and its record.

    The record of a policy comes with what was measured of the reward model that taught it, as `reward`.
    """
    metrics = dict(described.get("metrics") or {})
    teacher = metrics.get("reward")
    checks = [(check, part == REWARD and teacher) for part, kept in record.measured.items() for check in kept.checks]
    source = metrics.get("source")
    kinds = record.people.kinds if record.people else (source,) if source else ()
    return {
        "name": described["name"],
        "kind": described.get("kind"),
        "created_at": described.get("created_at"),
        "manners": __version__,
        "base": _base(described),
        "data": {
            "watermark": described.get("watermark"),
            **{name: metrics[name] for name in ("source", "trained_on", "set_aside", "prompts") if name in metrics},
        },
        "people": to_facts(record.people) if record.people else None,
        "training": {"metrics": metrics, "settings": described.get("settings") or {}},
        "measured": {part: to_facts(kept) for part, kept in record.measured.items()},
        "taught_by": teacher,
        "not_measured": [part for part in _parts(described) if part not in record.measured],
        "known_failures": [
            f"{teacher}, which taught it: {check.sentence}" if its else check.sentence
            for check, its in checks
            if check.verdict == FAIL
        ],
        "not_known": [
            f"{check.name} of {teacher}" if its else check.name for check, its in checks if check.verdict == CANNOT_TELL
        ],
        "overrides": [to_facts(one) for one in record.overrides],
        "reviews": [to_facts(one) for one in record.reviews],
        "started_by": record.started_by,
        "tried": [to_facts(one) for one in record.tried],
        "gate_changes": _changes(asked),
        "not_for": [
            *NOT_FOR,
            *(NOT_FOR_REWARD if described.get("kind") == "reward" else ()),
            *((SIMULATED,) if "simulated" in kinds else ()),
        ],
    }


def _parts(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what measures a version of this kind, and the reward model that taught it."""
    taught = (REWARD,) if (described.get("metrics") or {}).get("reward") else ()
    return {"policy": (EVALUATION, POLICY, *taught), "reward": (REWARD,)}.get(str(described.get("kind")), ())


def _base(described: Mapping[str, Any]) -> Facts:
    """Return where the base model comes from, and its licence as far as its files say."""
    name = str(described.get("base", ""))
    return {
        "name": name,
        "start": described.get("start", "initial"),
        "parent": described.get("parent"),
        "model_hash": described.get("model_hash") or None,
        "trunk_hash": described.get("trunk_hash"),
        "licence": EMBEDDED.get(name) or _licence(Path(name).expanduser()),
    }


def _licence(folder: Path) -> str:
    """Return what a model's folder says of its licence: the first line of a licence file, or its card's own field."""
    try:
        for file in sorted(folder.glob("LICEN[CS]E*")):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((f"{line.strip()} ({file.name})" for line in lines if line.strip()), file.name)
        for line in (folder / "README.md").read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return f"{line.partition(':')[2].strip()} (README.md)"
    except (OSError, ValueError):
        pass
    return "not known here: look it up where the model comes from, before you pass anything on"


def _changes(asked: Rules) -> list[str]:
    """Say where a workspace's gate asks for something else than what ships."""
    shipped = rules()
    found = [
        f"{name}: {str(getattr(asked, name)).lower()}, in place of {str(getattr(shipped, name)).lower()}"
        for name in PEOPLE
        if getattr(asked, name) != getattr(shipped, name)
    ]
    for part, some in asked.by_part.items():
        for name, rule in some.items():
            was = shipped.of(part, name)
            if differs := [*_differences(rule, was)]:
                found.append(f"{part}.{name}: {'; '.join(differs)}")
    return found


def _differences(rule: Rule, was: Rule) -> Iterator[str]:
    """Yield what a rule asks that another does not; what the words for both do not show is named by its field."""
    words, before = rule.words(), was.words()
    if words != before:
        yield f"{words}, in place of {before}"
    for field in ("fails", "weight") if words != before else ("threshold", "margin", "fails", "weight"):
        now, then = getattr(rule, field), getattr(was, field)
        if now != then:
            yield f"{field} {_number(now)}, in place of {_number(then)}"
    if rule.required != was.required:
        yield "now required" if rule.required else "no longer required"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


@cache
def _template() -> Template:
    return environment(PackageLoader("manners.audit"), ChainableUndefined).get_template("card.html.j2")
