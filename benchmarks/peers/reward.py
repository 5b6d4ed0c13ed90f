"""Reward training by TRL 1.16.0: one whole model with a score head."""

from __future__ import annotations

import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from benchmarks import flops
from benchmarks.contender import Measurement, Part, RewardTask, read_task, report


def main() -> None:
    """Train for one epoch, which is timed, and score the pairs that were set aside, which is not."""
    task = read_task(RewardTask)
    folder, pad_id = task.model.folder, task.model.pad_id
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)  # the end of a turn occurs inside the prompts
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, pad_token_id=pad_id
    )
    chosen, rejected = zip(*task.train, strict=True)
    lengths = [max(len(c), len(r)) for c, r in task.train]
    pairs = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected, "length": lengths})
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model=model, args=settings(task, scratch), train_dataset=pairs, processing_class=tokenizer
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    needed = flops.peer_reward(task.model, task.tokens)
    report(Measurement(len(task.train), {"train": Part(seconds, needed)}, margins(model, task)))


def settings(task: RewardTask, scratch: str) -> RewardConfig:
    """Set TRL up for one pass, with pairs of similar length together and all that only costs time switched off."""
    return RewardConfig(
        output_dir=scratch,
        per_device_train_batch_size=task.micro,
        gradient_accumulation_steps=task.batch // task.micro,
        num_train_epochs=1,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,  # the sampler reads the column of lengths
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@torch.no_grad()
def margins(model: torch.nn.Module, task: RewardTask) -> list[float]:
    """Score both sides of each pair that was set aside, one pair at a time, and return left - right."""
    model.eval()
    found = []
    for pair in task.held_out:
        left, right = (float(model(input_ids=torch.tensor([ids])).logits) for ids in pair)
        found.append(left - right)
    return found


if __name__ == "__main__":
    main()
