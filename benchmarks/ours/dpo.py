"""DPO by manners: the trunk once for every response, then a frozen branch that is the reference, and one to train."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import flops
from benchmarks.contender import DPOTask, Measurement, Part, read_task, report
from benchmarks.ours.ppo import loaded
from benchmarks.ours.reward import read
from manners.direct import train as training
from manners.direct.train import Material
from manners.metrics import RunLog
from manners.settings import DPOSettings, RewardSettings, SampleSettings, Settings
from manners.store.files.transfer import read_comparisons


def main() -> None:
    """Train from comparisons to the log-odds of the pairs that were set aside; reading the pairs is timed too."""
    task = read_task(DPOTask)
    pretrained = loaded(task.model.folder, task.trainable_layers)
    comparisons = list(read_comparisons(Path(task.comparisons), {}))
    settings = Settings(
        sample=SampleSettings(temperature=task.temperature, max_new_tokens=1),
        reward=RewardSettings(set_aside=task.set_aside),
        dpo=DPOSettings(beta=task.beta, passes=1, batch=task.batch, learning_rate=task.learning_rate),
    )
    prompts = [tuple(task.train[0][0][: task.prompt_tokens[0]])]  # it has to look at something: one token at a time
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder) / "run") as log:
        begin = time.perf_counter()
        trained = training.train(settings, pretrained, Material(comparisons, prompts), log)
        seconds = time.perf_counter() - begin
        curve = [(float(point["step"]), point["loss"]) for point in log.points]
    needed = flops.ours_dpo(task, read(pretrained, trained.split.train))
    margins = trained.margins.tolist()
    report(Measurement(len(trained.split.train), {"train": Part(seconds, needed)}, margins, curve=curve))


if __name__ == "__main__":
    main()
