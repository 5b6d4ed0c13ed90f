"""What every contender shares: its task comes in as JSON, its measurement goes out as one line of JSON.

Only the standard library, since a peer's environment has nothing of ours.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Ids = list[int]
"""Token ids of a sequence."""


@dataclass(frozen=True)
class Model:
    """The language model that both contenders work with."""

    folder: str
    """What `from_pretrained` loads."""
    pad_id: int
    """Ends nothing and occurs in no prompt."""
    end_ids: Ids
    """Tokens that end a response."""
    layers: int
    layer_parameters: int
    """Of one layer."""
    head_parameters: int
    """Of the language-model head: vocabulary times width."""

    def above(self, trainable_layers: int | str) -> int:
        """Parameters of the upper layers, or of all of them; the head left out."""
        return self.layer_parameters * (self.layers if trainable_layers == "all" else int(trainable_layers))


@dataclass(frozen=True)
class Goal:
    """What is to be learned, where learning is measured and not only work: a reward model, in both its forms."""

    workspace: str
    """For ours."""
    version: str
    folder: str
    """For the peer: its first member, exported."""
    shift: float
    """What to take off the exported model's logit."""


@dataclass(frozen=True)
class PPOTask:
    """So many updates of PPO.

    Without a goal the reward models are random and no end token is known to either contender: every response is as long
    as the limit.
    """

    model: Model
    prompts: list[Ids]
    """More than all updates take: in the last batch of a pass, TRL steps after every micro-batch."""
    updates: int
    batch: int
    new_tokens: int
    epochs: int
    """Passes over each batch, each with one optimiser step."""
    micro: int
    """Sequences per forward and backward of the peer; ours has its own."""
    trainable_layers: int | str
    """Of ours, as the next two."""
    value: str
    members: int
    temperature: float = 0.7
    learning_rate: float = 3e-6
    seed: int = 0
    goal: Goal | None = None


@dataclass(frozen=True)
class RewardTask:
    """One pass of reward training over pairs."""

    model: Model
    comparisons: str
    """For ours, which renders and splits them itself: a JSONL file of chosen and rejected transcripts."""
    train: list[list[Ids]]
    """For the peer: chosen and rejected of the same pairs."""
    held_out: list[list[Ids]]
    """For the peer: left and right of the pairs that are set aside."""
    set_aside: float
    batch: int
    micro: int
    """Pairs per forward of the peer; ours has its own."""
    trainable_layers: int | str
    """Of ours, as the next one."""
    members: int

    @property
    def tokens(self) -> int:
        """Tokens of all responses that are trained on, each with its prompt."""
        return sum(len(side) for pair in self.train for side in pair)


@dataclass(frozen=True)
class SFTTask:
    """One pass of learning from dialogues, each with one answer."""

    model: Model
    train: list[Ids]
    """A dialogue with its answer at the end."""
    starts: list[int]
    """Where the answer begins in each."""
    held_out: list[Ids]
    held_starts: list[int]
    batch: int
    """Dialogues per optimiser step; of the peer as many packed rows as hold that many tokens."""
    row: int
    """Tokens of a packed row of the peer; ours has its own."""
    trainable_layers: int | str
    """Of ours."""
    learning_rate: float = 1e-4
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all dialogues that are trained on, prompts included."""
        return sum(map(len, self.train))

    @property
    def learned(self) -> int:
        """Tokens of their answers."""
        return self.tokens - sum(self.starts)


@dataclass(frozen=True)
class DPOTask:
    """One pass of DPO over pairs."""

    model: Model
    comparisons: str
    """For ours, which renders and splits them itself: a JSONL file of chosen and rejected transcripts."""
    train: list[list[Ids]]
    """For the peer: chosen and rejected of the same pairs, each with its prompt."""
    prompt_tokens: list[int]
    """For the peer: how many tokens of either are the prompt, pair by pair."""
    set_aside: float
    batch: int
    micro: int
    """Pairs per forward of the peer; ours has its own."""
    trainable_layers: int | str
    """Of ours."""
    beta: float = 0.1
    learning_rate: float = 1e-6
    temperature: float = 1.0
    """What the peer scores at."""

    @property
    def tokens(self) -> int:
        """Tokens of all responses that are trained on, each with its prompt."""
        return sum(len(side) for pair in self.train for side in pair)

    @property
    def said(self) -> int:
        """Tokens of these responses alone."""
        return self.tokens - 2 * sum(self.prompt_tokens)


@dataclass(frozen=True)
class GenerateTask:
    """A batch of responses, drawn `repeats` times after a few tokens that are not timed."""

    model: Model
    prompts: list[Ids]
    new_tokens: int
    repeats: int
    finish: bool = False
    """Whether end tokens end a response; otherwise all are as long as the limit."""
    temperature: float = 0.7

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that are read in all."""
        return self.repeats * sum(map(len, self.prompts))


@dataclass(frozen=True)
class ScoreTask:
    """A file of prompts and responses, each to be scored."""

    model: Model
    workspace: str
    """For ours."""
    version: str
    members: int
    folder: str
    """For the peer: the first member, exported."""
    shift: float
    """What to take off the exported model's logit."""
    file: str = ""
    batch: int = 1
    """Rows per forward of the peer; ours has its own."""
    fast: bool = False
    """Whether ours rounds products."""
    alone: bool = False
    """Whether ours scores with the first member alone, as the peer does."""


@dataclass(frozen=True)
class Part:
    """A part of the work: how long it took, and what it needed."""

    seconds: float
    flops: float
    """Floating-point operations on real tokens, see `flops`."""


@dataclass(frozen=True)
class Measurement:
    """What a contender did in which time, without loading anything."""

    units: float
    """Episodes, pairs or tokens."""
    parts: dict[str, Part]
    margins: list[float] = field(default_factory=list)
    """Reward models: score left - score right of the pairs that were set aside."""
    before: float | None = None
    """Learning from dialogues: mean loss of the answers that were set aside before any was learned, in nats a token."""
    loss: float | None = None
    """Behind all."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """PPO: seconds since the start at which an update ended, and the mean score of its responses."""
    memory_bytes: int = 0
    """Peak resident memory of the process, loading included."""

    @property
    def seconds(self) -> float:
        """Time of all parts."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def speed(self) -> float:
        """Units a second."""
        return self.units / self.seconds


Task = TypeVar("Task", PPOTask, RewardTask, SFTTask, DPOTask, GenerateTask, ScoreTask)


def as_task(kind: type[Task], fields: dict[str, Any]) -> Task:
    """Make a task from its fields as JSON has them."""
    goal = {"goal": Goal(**fields["goal"])} if fields.get("goal") else {}
    return kind(**{**fields, "model": Model(**fields["model"]), **goal})


def read_task(kind: type[Task]) -> Task:
    """Read the task from the file that the first argument names."""
    return as_task(kind, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def report(measurement: Measurement) -> None:
    """Print the measurement, with the peak of memory, as the last line of standard output."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory_bytes = peak if sys.platform == "darwin" else peak * 1024
    print("\n" + json.dumps(asdict(measurement) | {"memory_bytes": memory_bytes}), flush=True)


def parse(line: str) -> Measurement:
    """Read a measurement back."""
    fields = json.loads(line)
    return Measurement(**{**fields, "parts": {name: Part(**part) for name, part in fields["parts"].items()}})
