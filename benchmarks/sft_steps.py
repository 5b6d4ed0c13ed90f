"""How far a step of learning from examples should go: `python -m benchmarks.sft_steps`.

SmolLM2 learns from the demonstrations of `self_instruct` with peaks of 0.1 to 3 % of a tensor's own spread, three
passes each; printed are the loss on those set aside before, and after each pass.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from manners.models.pretrained import load
from manners.settings import ModelSettings, SFTSettings
from manners.sft import train as module
from manners.sft.examples import Example, lay_out
from manners.types import Role, Turn

DATA = Path(os.environ.get("MANNERS_DATA", "../shared/data"))


@dataclass(frozen=True)
class Options:
    """What to try."""

    file: Path = (
        Path(os.environ.get("MANNERS_DATA", "../shared/data")) / "self_instruct/user_oriented_instructions.jsonl"
    )
    steps: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    """Peaks, as shares of a tensor's own spread."""
    seeds: int = 1
    epochs: int = 3
    count: int = 120
    """Demonstrations, those set aside included."""
    context: int = 384


def main(options: Options) -> None:
    """Train once a step and seed, and print a line each."""
    pretrained = load(ModelSettings(device="cpu", context=options.context))
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    laid = lay_out(pretrained.renderer, [demonstration(row) for row in rows][: options.count])
    print(f"{len(laid.examples)} demonstrations, left out: {dict(laid.left_out)}")
    settings = SFTSettings(epochs=options.epochs, set_aside=0.2)
    for seed in range(options.seeds):
        parts = module.split(laid, settings, seed)
        for step in options.steps:
            vars(module)["STEP"] = step  # what `sft.learning_rate = none` stands for
            with tempfile.TemporaryDirectory() as scratch:
                found = module.train(settings, seed, pretrained, parts, None, Path(scratch))
            after = ", ".join(f"{loss:.4f}" for loss in found.losses)
            print(
                f"seed {seed}, step {step:.1%}: {found.before.loss:.4f} -> {after}"
                f" ({found.tokens_per_second:.0f} tokens/s)",
                flush=True,
            )


def demonstration(row: dict[str, object]) -> Example:
    """Return an instruction with its first input, and the output."""
    first = row["instances"][0]  # type: ignore[index]
    asked = "\n\n".join(part for part in (str(row["instruction"]), first["input"]) if part)
    return Example((Turn(Role.USER, asked), Turn(Role.ASSISTANT, first["output"])))


if __name__ == "__main__":
    main(tyro.cli(Options))
