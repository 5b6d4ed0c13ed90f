"""Drawing responses by manners."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from benchmarks import flops
from benchmarks.contender import GenerateTask, Measurement, Part, read_task, report
from benchmarks.ours.ppo import NEVER, loaded
from manners.models.branches import Branch
from manners.models.generate import Decoding, Generated, generate
from manners.models.pretrained import Pretrained


def main() -> None:
    """Draw once to warm up, then `repeats` times by the clock."""
    task = read_task(GenerateTask)
    pretrained = loaded(task.model.folder, "all")
    model = Branch(pretrained.trunk, trainable=False).assembled(pretrained.trunk)
    respond(task, pretrained, model, seed=0, new_tokens=2)
    begin = time.perf_counter()
    drawn = [respond(task, pretrained, model, seed, task.new_tokens) for seed in range(task.repeats)]
    seconds = time.perf_counter() - begin
    tokens = sum(int(draws.batch.keep.sum()) for draws in drawn)
    needed = flops.drawing(task.model, task.prompt_tokens, tokens)
    report(Measurement(tokens, {"draw": Part(seconds, needed)}))


def respond(
    task: GenerateTask, pretrained: Pretrained, model: PreTrainedModel, seed: int, new_tokens: int
) -> Generated:
    """Draw one response to each prompt."""
    generator = torch.Generator().manual_seed(seed)
    return generate(
        model,
        pretrained.trunk,
        [tuple(ids) for ids in task.prompts],
        torch.rand((len(task.prompts), new_tokens), generator=generator, dtype=torch.float64),
        Decoding(frozenset(task.model.end_ids) if task.finish else NEVER, task.model.pad_id, task.temperature),
    )


if __name__ == "__main__":
    main()
