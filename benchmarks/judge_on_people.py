"""A version as a judge of real people's comparisons: is SmolLM2 admitted by the three annotators of PandaLM's test set?

    python -m benchmarks.judge_on_people FOLDER [--data DIR] [--count N] [--probes N] [--seed N] [--page]

FOLDER becomes a workspace; DIR holds pandalm_testset/pairs.jsonl. Of its 999 pairs N are drawn by the seed, and so is
which two of the three annotators come first, for only these count. Prints what `manners judge --json` prints, and with
--page writes it into docs/judge.md. What was stopped goes on, and what has finished is not asked again.

With its defaults it asks at most 624 questions of about 600 tokens, one after the other; two cores that read 300 tokens
a second are done in 21 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.publish import ROOT, processor, replace_between
from manners.loop import stages
from manners.loop.round import JUDGE
from manners.loop.session import Session
from manners.settings import JudgeSettings, Settings
from manners.store import Store
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from manners.workspace import Workspace

PAGE = ROOT / "docs" / "judge.md"
LABELS = {"a": Choice.LEFT, "b": Choice.RIGHT, "tie": Choice.TIE}
COUNT, PROBES = 240, 36
"""Pairs, and of each sort of probe: of fewer than 36, none of which turns a verdict, too little would be known."""


def comparison(row: Mapping[str, Any], rng: random.Random) -> Comparison:
    """Return a row with the verdicts of its annotators, in any order: the first two that choose a side will count."""
    votes = rng.sample(row["votes"], len(row["votes"]))
    verdicts = tuple(
        Verdict(LABELS[vote["label"]], Annotator(f"pandalm {vote['annotator']}", AnnotatorKind.HUMAN)) for vote in votes
    )
    sides = Response(row["response_a"], row["model_a"]), Response(row["response_b"], row["model_b"])
    return Comparison((Turn(Role.USER, row["prompt"]),), *sides, AskedHow.IMPORTED, verdicts=verdicts)


def fill(store: Store, drawn: Sequence[Comparison]) -> None:
    """Put what was drawn into a store that is empty; exits where one holds others, by which the page would be wrong."""
    if not store.counts().comparisons:
        store.add_comparisons(drawn)
    if {_told(one) for one in store.comparisons()} != {_told(one) for one in drawn}:
        raise SystemExit("the folder holds pairs of another seed, number or set: name a folder of its own for these")


def _told(one: Comparison) -> tuple[object, ...]:
    people = [v for v in one.verdicts if v.annotator.kind is AnnotatorKind.HUMAN]
    return one.prompt, one.left.text, one.right.text, *((v.annotator.name, v.choice) for v in people)


def published(facts: Mapping[str, Any], of: int, drawn: int, seed: int, probes: int, machine: str) -> str:
    """Return what a judge came to as it stands on the page: each check with its interval, and by what it was held."""
    verdicts = {"pass": "kept", "fail": "broken", "cannot_tell": "cannot be told"}
    rows = ["| check | figure [95 %] | | of |", "|---|---|---|---|"]
    for check in facts["checks"]:
        known = check["value"] is not None
        figure = f"{check['value']:+.2f} [{check['low']:+.2f}, {check['high']:+.2f}]" if known else "-"
        rows.append(f"| `{check['name']}` | {figure} | {verdicts[check['verdict']]} | {check['n']} |")
    sides = [
        f"{words} {100 * one['estimate']:.0f} % [{100 * one['low']:.0f}, {100 * one['high']:.0f}]"
        for words, one in (
            ("it agrees with a person on", facts["agreement"]),
            ("two people agree on", facts["human_agreement"]),
        )
        if one is not None
    ]
    apart = ", ".join(f"{count} ({why})" for why, count in {**facts["left_out"], **facts["without_verdict"]}.items())
    said = [
        f"`{facts['judge']}`, {drawn} of the {of} pairs of PandaLM's test set, drawn by seed {seed}, and of three"
        " annotators' verdicts on each the first two, in an order drawn as well, that choose a side:"
        f" {facts['asked']} pairs asked about, {facts['verdicts']} verdicts, up to {probes} of each sort of probe,"
        f" read off {facts.get('source') or 'nothing'}.",
        *([f"Where all have a verdict, {', and '.join(sides)}."] if sides else []),
        *([f"Without a part in it: {apart}."] if apart else []),
        facts["sentence"],
        f"{facts['seconds'] / 60:.0f} minutes on {machine}.",
    ]
    return "\n".join([*rows, "", " ".join(said)])


def main() -> None:
    """Make the workspace, and have it judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MANNERS_DATA", "data")))
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="write the figures into docs/judge.md")
    chosen = parser.parse_args()
    lines = (chosen.data / "pandalm_testset" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rng = random.Random(chosen.seed)
    rows = rng.sample([json.loads(line) for line in lines], chosen.count)
    settings = Settings(judge=JudgeSettings(checked=chosen.count, probes=chosen.probes, most=0))
    workspace = Workspace.create(chosen.folder)
    session = Session(workspace, settings)
    fill(session.store, [comparison(row, rng) for row in rows])
    facts = stages.perform(workspace, settings, JUDGE, resume=True)
    print(json.dumps(facts, indent=1))
    if chosen.page:
        text = published(facts, len(lines), chosen.count, chosen.seed, chosen.probes, processor())
        replace_between(PAGE, "judge-on-people", text)


if __name__ == "__main__":
    main()
