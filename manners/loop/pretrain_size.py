"""How large a pre-training run is: of a new model by the dial, of one that goes on by what it is; and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manners.errors import MannersError
from manners.loop.plan import Part
from manners.loop.session import Session
from manners.models.found import Found
from manners.pretrain import baselines, dial, vocabulary
from manners.pretrain.dial import Recipe, Shape
from manners.pretrain.documents import KNOWN, files
from manners.pretrain.forward import HEAD_NUMBERS, has_short_head
from manners.pretrain.model import groups
from manners.pretrain.train import GPU_MICRO_TOKENS, MICRO_TOKENS
from manners.settings import ModelSettings, PretrainSettings

NUMBERS_KEPT = 11, 3
"""Numbers that a layer keeps for its backward: of the width, and of the SwiGLU's, for each token."""


@dataclass(frozen=True)
class Size:
    """A model, as far as work and memory go."""

    shape: Shape
    parameters: int
    matrices: int
    """Parameters that Muon moves."""
    flops: float
    """A token, forward and backward."""
    short_head: bool = True
    """Whether its logits are held a few rows at a time, on a CPU."""


def size_of(session: Session, start: Found | None, carried: int) -> Size:
    """Return the size of a new model, for a text that carries so many entries, or of one that goes on."""
    settings = session.settings.pretrain
    if start is None:
        shape = dial.shape(settings, carried)
        return Size(shape, shape.parameters, shape.matrices, shape.flops)
    text: Any = start.model.config.get_text_config()
    shape = Shape(
        depth=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        hidden=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        row=row_of(session, start),
    )
    parameters = sum(p.numel() for p in start.model.parameters())
    table: Any = start.model.get_input_embeddings().weight
    head: Any = start.model.get_output_embeddings()
    tied = head is not None and head.weight is table
    [*muon] = (group for group in groups(start.model, dial.continued(settings, parameters, shape)) if group.muon)
    matrices = sum(p.numel() for group in muon for p in group.parameters)
    multiplied = parameters if tied else parameters - table.numel()
    flops = 6.0 * multiplied + 12.0 * shape.depth * shape.width * shape.row
    return Size(shape, parameters, matrices, flops, has_short_head(start.model))


def row_of(session: Session, start: Found | None) -> int:
    """Return the tokens of a row; raises MannersError for more than a model that goes on has positions for."""
    settings, context = session.settings.pretrain, session.settings.model.context
    if start is None:
        return dial.new_row(settings)
    most: int | None = getattr(start.model.config.get_text_config(), "max_position_embeddings", None)
    if settings.row is not None and most and settings.row > most:
        raise MannersError(
            f"pretrain.row is {settings.row:,}, and {settings.start} has {most:,} positions: lower pretrain.row, or"
            " leave it out"
        )
    return settings.row or min(context, most or context)


def recipe_of(settings: PretrainSettings, start: Found | None, size: Size, text: float) -> Recipe:
    """Return how a model is trained on a text of so many tokens."""
    if start is None:
        return dial.recipe(settings, size.shape, text)
    return dial.continued(settings, size.parameters, size.shape, text)


def parts(size: Size, recipe: Recipe, text: int, device: torch.device) -> list[Part]:
    """Return what the hungriest of three times takes: learning the tokenizer, training, measuring with the n-gram."""
    shape = size.shape
    micro = MICRO_TOKENS if device.type == "cpu" else GPU_MICRO_TOKENS
    tokens = min(recipe.batch, max(recipe.row, micro))
    logits = HEAD_NUMBERS if device.type == "cpu" and size.short_head else tokens * shape.vocabulary
    layer = NUMBERS_KEPT[0] * shape.width + NUMBERS_KEPT[1] * shape.hidden
    kept = 4 * (tokens * layer * shape.depth + 3 * logits + 2 * shape.head)
    training = [
        Part("weights", 4 * size.parameters, "pretrain.depth"),
        Part("gradient_and_momenta", 4 * (3 * size.parameters - size.matrices), "pretrain.depth"),
        # Below `micro` tokens a shorter row means only more of them at once; a smaller batch means fewer.
        Part("forward_and_backward", kept, "pretrain.row" if recipe.row > micro else "pretrain.batch"),
    ]
    reading = [Part("learning_the_tokenizer", 8 * min(text, vocabulary.LEARNT_FROM), "pretrain.text")]
    ngram = Part("n_gram", 60 * min(text, baselines.LEARNT_FROM), "pretrain.text")
    return max(training, reading, [training[0], ngram], key=lambda some: sum(part.size for part in some))


def not_used(settings: PretrainSettings, model: ModelSettings, row: int) -> list[str]:
    """Return a sentence for each setting that changes nothing about a run, or is not taken as it was set."""
    plain, other = PretrainSettings(), ModelSettings()
    found = []
    if settings.start is not None and settings.depth != plain.depth:
        found.append("pretrain.depth: a model that goes on keeps its layers")
    texts = [Path(text).expanduser() for text in (settings.text, settings.replay) if text is not None]
    plain_text = {file.name.lower().endswith(KNOWN) for text in texts for file in files(text)}
    if settings.column != plain.column and False not in plain_text:
        found.append("pretrain.column: no file is one of rows")
    if settings.separator != plain.separator and True not in plain_text:
        found.append("pretrain.separator: no file is one of plain text")
    if settings.replay is None and settings.replay_share != plain.replay_share:
        found.append("pretrain.replay_share: there is no pretrain.replay")
    if settings.batch is not None and settings.batch % row:
        taken = dial.rows_of(settings.batch, row) * row
        found.append(f"pretrain.batch: a step takes {taken:,} tokens, which are whole rows of {row:,}")
    if settings.start is None and model.context != other.context:
        found.append("model.context: a new model's row is pretrain.row, or follows from pretrain.depth")
    if model.dtype != other.dtype:
        found.append("model.dtype: weights are float32 on a CPU, and bfloat16 with float32 masters on a GPU")
    for name in ("trainable_layers", "lora_rank"):
        if getattr(model, name) != getattr(other, name):
            found.append(f"model.{name}: pre-training moves all weights")
    if model.recompute:
        found.append("model.recompute: pre-training keeps what its backward needs")
    return found
