"""How fast a small model should learn to write: `python -m benchmarks.pretrain_rates --text stories.txt`.

The dial's rates, of matrices, embedding and head, each times a factor (the dial itself has higher ones the shorter the
run is, which D217 was measured without); one run each, on the same text from the same
seed over a short horizon. Printed are bits a byte of the text set aside.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from manners.loop import stages
from manners.pretrain import dial
from manners.settings import PretrainSettings, Settings
from manners.workspace import Workspace

NAMES = ("MATRIX_RATE", "EMBEDDING_RATE", "HEAD_RATE")


@dataclass(frozen=True)
class Options:
    """What to try."""

    text: Path
    """A file or a folder of text, with blank lines between documents."""
    factors: tuple[str, ...] = ("0.5:0.5:0.5", "1:1:1", "2:2:2", "4:4:4")
    """Of matrices, embedding and head."""
    depth: int = 3
    tokens: int = 500_000
    batch: int | None = None
    vocabulary: int | None = None
    row: int | None = None
    seed: int = 0


def main(options: Options) -> None:
    """Train once for each factor, and print a line each."""
    told = {name: vars(dial)[name] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.create(Path(folder) / "work")
        for factors in options.factors:
            for name, factor in zip(NAMES, factors.split(":"), strict=True):
                vars(dial)[name] = told[name] * float(factor)
            chosen = PretrainSettings(
                text=str(options.text.resolve()),
                separator="",
                depth=options.depth,
                tokens=options.tokens,
                batch=options.batch,
                vocabulary=options.vocabulary,
                row=options.row,
                measures=2,
            )
            found = stages.pretrain(workspace, Settings(seed=options.seed, pretrain=chosen), plan=False)
            beside = f"5-gram {found['ngram_bits_per_byte']:.3f}, gzip -9 {found['gzip_bits_per_byte']:.3f}"
            speed = f"{found['tokens_per_second']:.0f} tokens/s, of them Muon {found['muon_share']:.0%}"
            length = f"{found['steps']} steps of {found['batch']} tokens"
            print(f"{factors}: {found['bits_per_byte']:.4f} bits a byte ({beside}); {length}; {speed}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
