"""Learning from dialogues by manners: the trunk once for every dialogue, then a branch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import flops
from benchmarks.contender import Ids, Measurement, Part, SFTTask, read_task, report
from benchmarks.ours.ppo import loaded
from manners.settings import SFTSettings
from manners.sft.examples import Learned
from manners.sft.train import Split, train


def main() -> None:
    """Train for one pass; all of it is timed, with the loss on what was set aside before and after."""
    task = read_task(SFTTask)
    pretrained = loaded(task.model.folder, task.trainable_layers)
    parts = Split(learned(task.train, task.starts), learned(task.held_out, task.held_starts))
    settings = SFTSettings(epochs=1, batch=task.batch, learning_rate=task.learning_rate)
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        trained = train(settings, task.seed, pretrained, parts, None, Path(scratch))
        seconds = time.perf_counter() - begin
    needed = flops.ours_sft(task.model, task.tokens, task.learned, task.trainable_layers)
    report(Measurement(task.tokens, {"train": Part(seconds, needed)}, loss=trained.after.loss))


def learned(dialogues: Sequence[Ids], starts: Sequence[int]) -> tuple[Learned, ...]:
    """Return dialogues of which the answer is learned."""
    pairs = enumerate(zip(dialogues, starts, strict=True))
    return tuple(Learned(tuple(ids), ((start, len(ids)),), number) for number, (ids, start) in pairs)


if __name__ == "__main__":
    main()
