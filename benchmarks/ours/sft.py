"""Learning from dialogues by manners: the trunk once for every dialogue, then a branch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import flops
from benchmarks.contender import Ids, Measurement, Part, SFTTask, read_task, report
from benchmarks.ours.ppo import loaded
from manners.models.branches import Branch
from manners.settings import SFTSettings
from manners.sft.data import ReadExamples
from manners.sft.examples import Learned
from manners.sft.measure import reading
from manners.sft.train import Split, train

WATCHED = 2


def main() -> None:
    """Train for one pass, which is timed, and measure the answers that were set aside, which is not.

    Ours cannot do without a few to watch, and is timed watching them.
    """
    task = read_task(SFTTask)
    pretrained = loaded(task.model.folder, task.trainable_layers)
    held_out = learned(task.held_out, task.held_starts)
    parts = Split(learned(task.train, task.starts), held_out[:WATCHED])
    settings = SFTSettings(epochs=1, batch=task.batch, learning_rate=task.learning_rate)
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        trained = train(settings, task.seed, pretrained, parts, None, Path(scratch))
        seconds = time.perf_counter() - begin
        data = ReadExamples(pretrained, held_out, Path(scratch) / "measured", "reading examples set aside")
        before = reading(Branch(pretrained.trunk, trainable=False), data).loss
        loss = reading(trained.branch, data).loss
    needed = flops.ours_sft(task.model, task.tokens, task.learned, task.trainable_layers)
    report(Measurement(task.tokens, {"train": Part(seconds, needed)}, before=before, loss=loss))


def learned(dialogues: Sequence[Ids], starts: Sequence[int]) -> tuple[Learned, ...]:
    """Return dialogues of which the answer is learned."""
    pairs = enumerate(zip(dialogues, starts, strict=True))
    return tuple(Learned(tuple(ids), ((start, len(ids)),), number) for number, (ids, start) in pairs)


if __name__ == "__main__":
    main()
