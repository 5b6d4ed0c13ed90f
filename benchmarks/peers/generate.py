"""Drawing responses by Hugging Face `generate`."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks import flops
from benchmarks.contender import GenerateTask, Measurement, Part, read_task, report


def main() -> None:
    """Draw once to warm up, then `repeats` times by the clock."""
    task = read_task(GenerateTask)
    model = AutoModelForCausalLM.from_pretrained(task.model.folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # what the task says, and nothing else, ends a response
    respond(task, model, seed=0, new_tokens=2)
    begin = time.perf_counter()
    tokens = sum(respond(task, model, seed, task.new_tokens) for seed in range(task.repeats))
    seconds = time.perf_counter() - begin
    needed = flops.drawing(task.model, task.prompt_tokens, tokens)
    report(Measurement(tokens, {"draw": Part(seconds, needed)}))


@torch.inference_mode()
def respond(task: GenerateTask, model: Any, seed: int, new_tokens: int) -> int:
    """Draw one response to each prompt and count the tokens up to where each ends."""
    torch.manual_seed(seed)
    pad_id, end_ids = task.model.pad_id, task.model.end_ids if task.finish else []
    width = max(map(len, task.prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in task.prompts])
    attend = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in task.prompts])
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=task.temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad_id,
        eos_token_id=end_ids or None,
    )
    drawn = model.generate(input_ids=ids, attention_mask=attend, generation_config=config)[:, width:]
    ends = torch.isin(drawn, torch.tensor(end_ids, dtype=torch.long))
    after_end = ends.cumsum(dim=1) - ends.long() > 0
    return int((~after_end).sum())


if __name__ == "__main__":
    main()
