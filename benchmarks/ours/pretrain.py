"""Pre-training by manners, for the time that it takes to a loss: `python -m benchmarks.ours.pretrain TASK.json`."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from manners.checkpoint import Run
from manners.memory import keep_freed_memory
from manners.pretrain import dial
from manners.pretrain.corpus import Division, tokenised
from manners.pretrain.documents import Source
from manners.pretrain.measure import HeldOut
from manners.pretrain.model import new_model
from manners.pretrain.rows import Rows
from manners.pretrain.train import Course, train
from manners.pretrain.vocabulary import ends_of
from manners.settings import PretrainSettings

SPLIT_SEED, ASIDE = 0, 0.1


@dataclass(frozen=True)
class Task:
    """What to train, on what."""

    text: str
    separator: str
    folder: str
    """Where its tokens and its tokenizer are."""
    vocabulary: int
    depth: int
    row: int
    tokens: int
    batch: int | None
    seed: int
    rate: float = 1.0
    measures: int = 20

    @property
    def settings(self) -> PretrainSettings:
        """The same as settings."""
        return PretrainSettings(
            text=self.text,
            separator=self.separator,
            set_aside=ASIDE,
            depth=self.depth,
            vocabulary=self.vocabulary,
            row=self.row,
            tokens=self.tokens,
            batch=self.batch,
            rate=self.rate,
            measures=self.measures,
        )

    @property
    def division(self) -> Division:
        """What is set aside of the text."""
        return Division(Source(Path(self.text), separator=self.separator), ASIDE, SPLIT_SEED, keep_duplicates=True)


def curve(task: Task) -> list[tuple[float, float]]:
    """Return seconds of training so far, and bits a byte of what is held out, at each measurement."""
    keep_freed_memory()
    tokenizer = AutoTokenizer.from_pretrained(Path(task.folder) / "tokenizer")
    corpus = tokenised(task.division, tokenizer, Path(task.folder))
    shape = dial.shape(task.settings, 10**9)
    recipe = dial.recipe(task.settings, shape)
    bos, _ = ends_of(tokenizer)
    course = Course(
        model=new_model(shape, tokenizer, task.seed),
        tokenizer=tokenizer,
        recipe=recipe,
        rows=Rows(corpus.ids, corpus.ends, bos, recipe.row + 1, task.seed),
        quick=HeldOut.of(corpus.measured, tokenizer, recipe.row + 1),
        measures=task.measures,
        seed=task.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        taught = train(course, Run(Path(scratch) / "run", "benchmark", {}, every=1e9), Path(scratch) / "curves")
    bits, seconds = taught.curves["held_out/bits_per_byte"], taught.curves["time/seconds"]
    return [(float(s), float(b)) for s, b in zip(seconds, bits, strict=True) if b is not None]


if __name__ == "__main__":
    found = curve(Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    print("\n" + json.dumps(found), flush=True)
