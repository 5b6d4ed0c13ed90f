"""Learning from dialogues by TRL 1.16.0: a whole model, dialogues packed into rows."""

from __future__ import annotations

import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks import flops
from benchmarks.contender import Measurement, Part, SFTTask, read_task, report


def main() -> None:
    """Train for one epoch, which is timed, and measure the answers that were set aside, which is not."""
    task = read_task(SFTTask)
    torch.manual_seed(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.model.folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(task.model.pad_id)
    model = AutoModelForCausalLM.from_pretrained(task.model.folder, dtype=torch.float32)
    masks = [[0] * start + [1] * (len(ids) - start) for ids, start in zip(task.train, task.starts, strict=True)]
    before = held_out(model, task)
    model.train()
    dialogues = Dataset.from_dict({"input_ids": task.train, "completion_mask": masks})
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model, args=settings(task, scratch), train_dataset=dialogues, processing_class=tokenizer
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    needed = flops.peer_sft(task.model, task.tokens, task.learned)
    report(Measurement(task.tokens, {"train": Part(seconds, needed)}, before=before, loss=held_out(model, task)))


def settings(task: SFTTask, scratch: str) -> SFTConfig:
    """Set TRL up for one pass over packed rows, about as many steps as ours, and switch off all that only costs time.

    A step has as many rows as hold the tokens of `batch` dialogues. The loss is TRL's own default, which gives only
    answers to the head, in chunks. Packed rows lie behind one another in one sequence where a micro-batch has several,
    and without FlashAttention each of them looks at all of it: one row a micro-batch is as good and faster.
    """
    rows = max(1, round(task.batch * task.tokens / len(task.train) / task.row))
    return SFTConfig(
        output_dir=scratch,
        max_length=task.row,
        packing=True,
        completion_only_loss=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows,
        num_train_epochs=1,
        learning_rate=task.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        adam_epsilon=1e-5,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=task.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@torch.no_grad()
def held_out(model: torch.nn.Module, task: SFTTask) -> float:
    """Return the mean loss of the answers that were set aside, one dialogue at a time."""
    model.eval()
    nats, count = 0.0, 0
    for ids, start in zip(task.held_out, task.held_starts, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum"))
        count += len(ids) - start
    return nats / count


if __name__ == "__main__":
    main()
