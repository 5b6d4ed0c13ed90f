"""Pre-training by transformers' own Trainer: the same shape as its Llama, on such blocks; for its speed alone.

python -m benchmarks.peers.trainer TASK.json     one line of JSON: the seconds that training took
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmarks.peers.nanogpt import Task


class Blocks(Dataset[dict[str, Tensor]]):
    """Blocks from random places of one long stream, as many as all steps read."""

    def __init__(self, task: Task) -> None:
        """Draw the places."""
        self.row = task.row
        self.stream = torch.from_numpy(np.load(task.train).astype(np.int64))
        self.places = torch.randint(len(self.stream) - task.row - 1, (task.rows * task.steps,)).tolist()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Return one; the model moves the labels by one place itself."""
        ids = self.stream[self.places[number] : self.places[number] + self.row]
        return {"input_ids": ids, "labels": ids}


def train(task: Task) -> float:
    """Return the seconds that so many steps took."""
    torch.manual_seed(task.seed)
    config = LlamaConfig(
        vocab_size=task.vocabulary,
        hidden_size=task.width,
        intermediate_size=task.hidden,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        num_key_value_heads=task.heads,
        max_position_embeddings=task.row,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=task.rows,
            max_steps=task.steps,
            learning_rate=task.rate,
            weight_decay=0.1,
            adam_beta2=0.99,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            use_cpu=True,
            seed=task.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=Blocks(task))
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


if __name__ == "__main__":
    print(
        "\n" + json.dumps([(train(Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))), 0.0)]), flush=True
    )
