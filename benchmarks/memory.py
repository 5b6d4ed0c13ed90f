"""What models of usual sizes take, stage by stage, as `--plan` reckons: the tables of docs/gpu.md.

    python -m benchmarks.memory           # prints them

Nothing is read and nothing is run: shapes are the published ones, and models stand on paper (`manners.models.paper`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import AutoConfig, PreTrainedConfig

from manners.loop import evaluate, ppo, reward, sample
from manners.loop.plan import OVERHEAD
from manners.models.paper import paper, trunk_on_paper
from manners.settings import ModelSettings, PPOSettings, RewardSettings, SampleSettings, Settings

PROMPT, RESPONSE = 256, 256
"""Tokens of the longest prompt and of its answer."""


@dataclass(frozen=True)
class Shape:
    """The published shape of a model."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    head: int
    words: int
    tied: bool

    @property
    def config(self) -> PreTrainedConfig:
        """As transformers describes it; all of these differ from Llama in nothing that takes memory worth naming."""
        return AutoConfig.for_model(
            "llama",
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.head,
            vocab_size=self.words,
            tie_word_embeddings=self.tied,
        )


SHAPES = (
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49_152, tied=True),
    Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151_936, tied=True),
    Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
    Shape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128_256, tied=True),
    Shape("Llama-3.1-8B", 32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
)


@dataclass(frozen=True)
class Way:
    """What is trained of a model, and in what format."""

    layers: int | Literal["all"]
    rank: int | None
    dtype: Literal["float32", "bfloat16"]

    @property
    def words(self) -> str:
        """As the table's head says it."""
        what = f"{self.layers} layers" if self.layers != "all" else "all layers"
        return f"{what}{f', rank {self.rank}' if self.rank else ''}, {self.dtype}"


WAYS = (
    Way(4, None, "float32"),
    Way(4, None, "bfloat16"),
    Way(4, 16, "bfloat16"),
    Way("all", 16, "bfloat16"),
)


def takes(config: PreTrainedConfig, way: Way) -> tuple[float, float, float]:
    """Return the memory of a model, of reward training, and of the largest other stage, in GB."""
    model = ModelSettings(trainable_layers=way.layers, lora_rank=way.rank, dtype=way.dtype, recompute=True)
    settings = Settings(
        model=replace(model, context=PROMPT + RESPONSE),
        sample=SampleSettings(max_new_tokens=RESPONSE),
        reward=RewardSettings(curve=False),
        ppo=PPOSettings(),
    )
    with paper():
        trunk = trunk_on_paper(config, settings.model, torch.device("cuda"))
        size = sum(parameter.nbytes for parameter in trunk.whole.parameters())
        learnt = reward.memory_parts(trunk, settings.reward, PROMPT, RESPONSE)
        rows = ppo.rows_drawn(settings.ppo, settings.ppo.validation_prompts)
        improved = ppo.memory_parts(trunk, settings, rows, rows, PROMPT)
        drawn = sample.memory_parts(trunk, settings.sample, settings.sample.batch, PROMPT)
        at_once = settings.sample.batch // settings.evaluate.samples
        judged = evaluate.memory_parts(trunk, settings, at_once, 1, PROMPT)
    most = [size + OVERHEAD + sum(part.size for part in parts) for parts in (learnt, improved, drawn, judged)]
    return size / 1e9, most[0] / 1e9, max(most[1:]) / 1e9


def row(shape: Shape) -> str:
    """Return a model's row: what `reward`, and the largest of the other stages, take in each way."""
    cells = [takes(shape.config, way) for way in WAYS]
    return f"| {shape.name} | {cells[1][0]:.1f} | " + " | ".join(f"{r:.1f} / {p:.1f}" for _, r, p in cells) + " |"


HEAD = (
    "| model | weights in bfloat16 | " + " | ".join(way.words for way in WAYS) + " |\n|---|" + "---|" * (len(WAYS) + 1)
)


if __name__ == "__main__":
    print(HEAD)
    for each in SHAPES:
        print(row(each), flush=True)
