"""DPO by TRL 1.16.0: a whole model that is trained, and another one that is the reference."""

from __future__ import annotations

import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks import flops
from benchmarks.contender import DPOTask, Measurement, Part, read_task, report


def main() -> None:
    """Train for one epoch, which is timed; what the trainer reads is already in tokens."""
    task = read_task(DPOTask)
    folder, pad_id = task.model.folder, task.model.pad_id
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)  # the end of a turn occurs inside the prompts
    model, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    words = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})  # it insists on tokenising some
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            model=model,
            ref_model=reference,
            args=settings(task, scratch),
            train_dataset=words,
            processing_class=tokenizer,
        )
        trainer.train_dataset = pairs(task)
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    report(Measurement(len(task.train), {"train": Part(seconds, flops.peer_dpo(task))}))


def pairs(task: DPOTask) -> Dataset:
    """Return the pairs with the columns that the trainer's collator reads."""
    cut = list(zip(task.train, task.prompt_tokens, strict=True))
    return Dataset.from_dict(
        {
            "prompt_ids": [chosen[:at] for (chosen, _), at in cut],
            "chosen_ids": [chosen[at:] for (chosen, _), at in cut],
            "rejected_ids": [rejected[at:] for (_, rejected), at in cut],
            "length": [max(len(chosen), len(rejected)) for (chosen, rejected), _ in cut],
        }
    )


def settings(task: DPOTask, scratch: str) -> DPOConfig:
    """Set TRL up for one pass, with pairs of similar length together and all that only costs time switched off."""
    return DPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=task.micro,
        gradient_accumulation_steps=task.batch // task.micro,
        num_train_epochs=1,
        beta=task.beta,
        learning_rate=task.learning_rate,
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


if __name__ == "__main__":
    main()
