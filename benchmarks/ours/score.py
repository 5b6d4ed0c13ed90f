"""Bulk scoring by manners: prompts read once, answers one after another in a row, all members on one trunk."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from benchmarks.contender import Measurement, Part, ScoreTask, read_task, report
from manners.loop.bulk import Source, score
from manners.loop.session import Session
from manners.models import versions
from manners.models.products import rounded_products
from manners.reward.ensemble import score_exchanges
from manners.reward.stored import load_reward
from manners.settings_load import from_dict
from manners.store.files.exchanges import parse_exchange
from manners.workspace import Workspace


def main() -> None:
    """Score a file as `manners score` does; the model is loaded before, and that is not timed."""
    task = read_task(ScoreTask)
    workspace = Workspace.open(Path(task.workspace))
    session = Session(workspace, from_dict(versions.describe(workspace, task.version).settings))
    _ = session.pretrained
    if task.alone:
        report(_alone(task, session))
        return
    with tempfile.TemporaryDirectory() as scratch:
        done = score(session, task.version, Source(Path(task.file)), Path(scratch) / "scores.jsonl", task.fast)
    report(Measurement(done["scored"], {"score": Part(done["seconds"], 0.0)}))


def _alone(task: ScoreTask, session: Session) -> Measurement:
    """Score with the first member, which no command does: the same work as the peer's."""
    reward = load_reward(session.workspace, task.version, session.pretrained)
    first = replace(reward, members=reward.members[:1], shifts=reward.shifts[:1], scales=reward.scales[:1], camps=None)
    begin = time.perf_counter()
    lines = Path(task.file).read_text(encoding="utf-8").splitlines()
    exchanges = [parse_exchange(json.loads(line), "file") for line in lines]
    with rounded_products() if task.fast else nullcontext():
        count = sum(len(scored.mean.tolist()) for scored in score_exchanges(first, session.pretrained, exchanges))
    return Measurement(count, {"score": Part(time.perf_counter() - begin, 0.0)})


if __name__ == "__main__":
    main()
