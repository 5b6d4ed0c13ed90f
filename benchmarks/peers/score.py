"""Bulk scoring by plain transformers: the exported classifier over the rows of a file, as its page shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.contender import Measurement, Part, ScoreTask, read_task, report


def main() -> None:
    """Score the rows of a file; loading is not timed."""
    task = read_task(ScoreTask)
    rows = [json.loads(line) for line in Path(task.file).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(task.folder)
    model = AutoModelForSequenceClassification.from_pretrained(task.folder, dtype=torch.float32).eval()
    begin = time.perf_counter()
    found = scores(model, tokenizer, rows, task.batch)
    seconds = time.perf_counter() - begin
    report(Measurement(len(found), {"score": Part(seconds, 0.0)}))


@torch.inference_mode()
def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, str]], batch: int
) -> list[float]:
    """Return the logits of rows in batches, in their order."""
    found: list[float] = []
    for start in range(0, len(rows), batch):
        dialogues = [
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
            for row in rows[start : start + batch]
        ]
        inputs = tokenizer.apply_chat_template(
            dialogues, tokenize=True, return_dict=True, return_tensors="pt", padding=batch > 1
        )
        assert isinstance(inputs, BatchEncoding)
        found += model(**inputs, use_cache=False).logits[:, 0].tolist()
    return found


if __name__ == "__main__":
    main()
