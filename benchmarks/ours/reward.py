"""Reward training by manners: the trunk once for every response, then one branch a member."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import flops
from benchmarks.contender import Measurement, Part, RewardTask, read_task, report
from benchmarks.ours.ppo import loaded
from manners.models.pretrained import Pretrained
from manners.reward.labelled import LabelledPair
from manners.reward.train import train
from manners.settings import RewardSettings
from manners.store.files.transfer import read_comparisons


def main() -> None:
    """Train from comparisons to scores of the pairs that were set aside; all of it is timed, reading the pairs too."""
    task = read_task(RewardTask)
    pretrained = loaded(task.model.folder, task.trainable_layers)
    comparisons = list(read_comparisons(Path(task.comparisons), {}))
    settings = RewardSettings(members=task.members, epochs=1, batch=task.batch, set_aside=task.set_aside, curve=False)
    begin = time.perf_counter()
    trained = train(settings, 0, pretrained, comparisons)
    seconds = time.perf_counter() - begin
    needed = flops.ours_reward(task.model, read(pretrained, trained.split.train), task.trainable_layers, task.members)
    report(Measurement(len(trained.split.train), {"train": Part(seconds, needed)}, trained.margins.tolist()))


def read(pretrained: Pretrained, pairs: Sequence[LabelledPair]) -> int:
    """Count the tokens of pairs as they are read: the prompt of a pair once, where the model allows that."""
    total = 0
    for pair in pairs:
        left, right = (pretrained.renderer.render(pair.prompt, side) for side in (pair.left, pair.right))
        shared = pretrained.trunk.compute.shares_prompts and left.prompt_ids == right.prompt_ids
        total += left.length + (len(right.response_ids) if shared else right.length)
    return total


if __name__ == "__main__":
    main()
