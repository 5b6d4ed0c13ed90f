"""Pre-training as nanoGPT does it, written anew from its published recipe: a plain PyTorch loop with AdamW.

    python -m benchmarks.peers.nanogpt TASK.json     one line of JSON: loss on held-out text against seconds

From the recipe (github.com/karpathy/nanoGPT, train.py and config/train_shakespeare_char.py): blocks from random places
of one long stream of tokens; weights normal with 0.02, residual projections with 0.02 / sqrt(2 layers); AdamW with
betas 0.9 and 0.99, weight decay 0.1 on all matrices, clipping at 1.0; 100 steps of warm-up, cosine down to a tenth.
The architecture is the task's: a Llama, untied, where nanoGPT has a GPT-2, so that both train the same function.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WARM_UP = 100
LAST = 0.1


@dataclass(frozen=True)
class Task:
    """What to train, on what."""

    train: str
    """A .npy file of token ids: documents one behind the other, each between BOS and EOS."""
    held_out: str
    """The same of what is set aside."""
    held_rows: str
    """The same text in rows of `row` + 1, each of which begins with BOS."""
    held_targets: str
    """What is predicted of each; below 0 counts nothing."""
    held_out_bytes: int
    special: int
    """Ids below it are special tokens, which count nothing."""
    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    row: int
    rows: int
    steps: int
    rate: float
    seed: int
    measures: int = 10


@dataclass(frozen=True)
class HeldOut:
    """What is set aside, in two layouts."""

    stream: Tensor
    rows: Tensor
    targets: Tensor


class Rotary(nn.Module):
    """Turns halves of queries and keys by their positions."""

    def __init__(self, size: int, row: int) -> None:
        """Make the table."""
        super().__init__()
        frequencies = 10_000.0 ** -(torch.arange(0, size, 2).float() / size)
        angles = torch.arange(row).float()[:, None] * frequencies
        self.register_buffer("cos", torch.cat((angles, angles), 1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), 1).sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn."""
        length = x.shape[-2]
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        return x * cos + torch.cat((-b, a), dim=-1) * sin


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm."""

    def __init__(self, task: Task, rotary: Rotary) -> None:
        """Make the layers."""
        super().__init__()
        self.heads, self.rotary = task.heads, rotary
        self.norm1, self.norm2 = (nn.RMSNorm(task.width, eps=1e-5) for _ in range(2))
        self.qkv = nn.Linear(task.width, 3 * task.width, bias=False)
        self.out = nn.Linear(task.width, task.width, bias=False)
        self.gate = nn.Linear(task.width, task.hidden, bias=False)
        self.up = nn.Linear(task.width, task.hidden, bias=False)
        self.down = nn.Linear(task.hidden, task.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Read and write the residual stream."""
        rows, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        said = functional.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
        x = x + self.out(said.transpose(1, 2).reshape(rows, length, width))
        normed = self.norm2(x)
        found: Tensor = x + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return found


class Model(nn.Module):
    """The whole of it."""

    def __init__(self, task: Task) -> None:
        """Make it, with the recipe's spread of weights."""
        super().__init__()
        self.embedding = nn.Embedding(task.vocabulary, task.width)
        rotary = Rotary(task.width // task.heads, task.row)
        self.blocks = nn.ModuleList(Block(task, rotary) for _ in range(task.layers))
        self.norm = nn.RMSNorm(task.width, eps=1e-5)
        self.head = nn.Linear(task.width, task.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * task.layers) if ends else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


@torch.no_grad()
def bits(model: Model, held: HeldOut, task: Task) -> float:
    """Return bits a byte of what is held out, as a stream or in rows, whichever is better."""
    stream, rows, targets = held.stream, held.rows, held.targets
    blocks = [stream[start : start + task.row + 1] for start in range(0, len(stream) - 1, task.row)]
    as_stream = nats(model, [(one[:-1], torch.where(one[1:] < task.special, -1, one[1:])) for one in blocks])
    in_rows = nats(model, [(row[:-1], target) for row, target in zip(rows, targets, strict=True)])
    return min(as_stream, in_rows) / math.log(2) / task.held_out_bytes


def nats(model: Model, some: list[tuple[Tensor, Tensor]]) -> float:
    """Return the loss of all targets, in nats."""
    counts = [int((targets >= 0).sum()) for _, targets in some]
    losses = [
        float(model(ids[None], targets[None])) if n else 0.0 for (ids, targets), n in zip(some, counts, strict=True)
    ]
    return sum(loss * n for loss, n in zip(losses, counts, strict=True))


def train(task: Task) -> list[tuple[float, float]]:
    """Return seconds of training so far, and bits a byte of what is held out, at each measurement."""
    torch.manual_seed(task.seed)
    files = (task.train, task.held_out, task.held_rows, task.held_targets)
    stream, held_stream, rows, targets = (torch.from_numpy(np.load(file).astype(np.int64)) for file in files)
    held = HeldOut(held_stream, rows, torch.where(targets < 0, -1, targets))
    model = Model(task)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=task.rate, betas=(0.9, 0.99))
    curve, seconds = [], 0.0
    for step in range(1, task.steps + 1):
        started = time.perf_counter()
        places = torch.randint(len(stream) - task.row - 1, (task.rows,))
        ids = torch.stack([stream[place : place + task.row] for place in places])
        targets = torch.stack([stream[place + 1 : place + 1 + task.row] for place in places])
        for group in optimiser.param_groups:
            group["lr"] = task.rate * share(step, task.steps)
        loss = model(ids, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        seconds += time.perf_counter() - started
        if step * task.measures // task.steps > (step - 1) * task.measures // task.steps:
            curve.append((seconds, bits(model, held, task)))
    return curve


def share(step: int, steps: int) -> float:
    """Return the share of the peak rate at a step, from 1."""
    warm = min(WARM_UP, steps // 10)
    if step < warm:
        return step / warm
    done = (step - warm) / max(1, steps - warm)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * done))


if __name__ == "__main__":
    print("\n" + json.dumps(train(Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))), flush=True)
