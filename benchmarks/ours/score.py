"""Bulk scoring by manners: prompts read once, answers of like length together, all members on one trunk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.contender import Measurement, Part, ScoreTask, read_task, report
from manners.loop.bulk import Source, score
from manners.loop.session import Session
from manners.models import versions
from manners.settings_load import from_dict
from manners.workspace import Workspace


def main() -> None:
    """Score a file as `manners score` does; the model is loaded before, and that is not timed."""
    task = read_task(ScoreTask)
    workspace = Workspace.open(Path(task.workspace))
    session = Session(workspace, from_dict(versions.describe(workspace, task.version).settings))
    _ = session.pretrained
    with tempfile.TemporaryDirectory() as scratch:
        done = score(session, task.version, Source(Path(task.file)), Path(scratch) / "scores.jsonl")
    report(Measurement(done["scored"], {"score": Part(done["seconds"], 0.0)}))


if __name__ == "__main__":
    main()
