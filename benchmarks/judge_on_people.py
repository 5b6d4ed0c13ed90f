"""A version as a judge of real people's comparisons: is SmolLM2 admitted by the three annotators of PandaLM's test set?

    python benchmarks/judge_on_people.py FOLDER [--data DIR] [--count N] [--probes N]

FOLDER becomes a workspace; DIR holds pandalm_testset/pairs.jsonl. Pairs are drawn by a seed. Prints what
`manners judge --json` prints.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

from manners.loop import stages
from manners.loop.round import JUDGE
from manners.loop.session import Session
from manners.settings import JudgeSettings, Settings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from manners.workspace import Workspace

LABELS = {"a": Choice.LEFT, "b": Choice.RIGHT, "tie": Choice.TIE}


def comparison(row: dict[str, Any]) -> Comparison:
    """Return a row with the verdicts of its annotators."""
    verdicts = tuple(
        Verdict(LABELS.get(vote["label"], Choice.TIE), Annotator(f"pandalm {vote['annotator']}", AnnotatorKind.HUMAN))
        for vote in row["votes"]
    )
    sides = Response(row["response_a"], row["model_a"]), Response(row["response_b"], row["model_b"])
    return Comparison((Turn(Role.USER, row["prompt"]),), *sides, AskedHow.IMPORTED, verdicts=verdicts)


def main() -> None:
    """Make the workspace, and have it judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MANNERS_DATA", "data")))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--probes", type=int, default=10)
    chosen = parser.parse_args()
    lines = (chosen.data / "pandalm_testset" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = random.Random(0).sample([json.loads(line) for line in lines], chosen.count)
    settings = Settings(judge=JudgeSettings(checked=chosen.count, probes=chosen.probes, most=0))
    session = Session(Workspace.create(chosen.folder), settings)
    if not session.store.counts().comparisons:
        session.store.add_comparisons([comparison(row) for row in rows])
    facts = stages.perform(session.workspace, settings, JUDGE, resume=True)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
