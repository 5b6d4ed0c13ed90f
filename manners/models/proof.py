"""Load-time proof that trunk + branch = the whole model; a model for which it fails is refused by name."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.models.branches import Branch
from manners.models.generate import Decoder
from manners.models.trunk import Trunk, describe
from manners.text import Batch, Rendered, collate

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15}
"""Largest difference allowed, in standard deviations of the logits: what rounding explains, and no wrong mask does."""


def prove_split(trunk: Trunk, context: int) -> None:
    """Compare whole and split logits on random tokens, or raise MannersError naming the model and what differs.

    Four ways of running must agree with the plain forward of one unpadded row: split with left padding, cached decoding
    of the assembled model, the same after a row has left the batch, and both on a sequence longer than any attention
    window that fits into `context`. A last check: no logit depends on a later token (a decoder-only model).
    Differences are measured in standard deviations of the logits, so that nearly uniform logits prove nothing less.
    """
    model = trunk.whole
    try:
        _prove(trunk, context)
    except MannersError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        raise MannersError(
            f"{describe(model)} cannot be split at layer {trunk.cut} ({type(error).__name__}: {error});"
            " use another model"
        ) from error


@torch.no_grad()
def _prove(trunk: Trunk, context: int) -> None:
    model = trunk.whole
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None) or 0
    longest = min(window + 9 if 0 < window < context else 21, context)
    generator = torch.Generator().manual_seed(0)
    lengths = [longest, 13, min(17, longest)]
    rows = [tuple(torch.randint(0, text.vocab_size, (n,), generator=generator).tolist()) for n in lengths]
    responses = 8
    batch = collate([Rendered(row[:-responses], row[-responses:]) for row in rows], pad_id=0).to(trunk.device)
    expected = torch.stack([_plain(model, row)[-responses - 1 :] for row in rows])  # (3, 9, V)
    if float(expected.float().std()) == 0.0:
        raise MannersError(f"{describe(model)} gives the same logit to every token, so nothing can be proved; check it")

    reference = Branch(trunk, trainable=False)
    split = reference.logits(reference.hidden(trunk.states(batch), batch).flatten(0, 1)).view_as(expected)
    _same(model, expected, split, "the split forward with left padding")

    cached = _decode(reference.assembled(trunk), batch, responses)
    for row, logits in enumerate(cached):
        _same(model, expected[row, : len(logits)], logits, "cached decoding with row removal")

    changed = (*rows[2][:-1], (rows[2][-1] + 1) % text.vocab_size)
    _same(model, _plain(model, rows[2])[:-1], _plain(model, changed)[:-1], "a forward with only a later token changed")


def _plain(model: PreTrainedModel, row: tuple[int, ...]) -> Float[Tensor, "n V"]:
    logits: Tensor = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0]
    return logits


def _decode(model: PreTrainedModel, batch: Batch, steps: int) -> list[Float[Tensor, "t V"]]:
    """Teacher-forced cached decoding; the middle row leaves half way."""
    width, rows = batch.prompt_width, torch.arange(len(batch.ids), device=batch.ids.device)
    decoder = Decoder(model, None, width + steps)
    logits: list[list[Tensor]] = [[] for _ in rows]
    step_logits = decoder.read(batch.ids[:, :width], batch.attend[:, :width], batch.positions[:, :width])
    for step in range(steps + 1):
        for at, row in enumerate(rows.tolist()):
            logits[row].append(step_logits[at])
        if step == steps:
            break
        if step == steps // 2:
            stay = torch.tensor([0, 2], device=rows.device)
            decoder.select(stay)
            rows = rows[stay]
        column = width + step
        step_logits = decoder.read(
            batch.ids[rows, column : column + 1],
            batch.attend[rows, : column + 1],
            batch.positions[rows, column : column + 1],
        )
    return [torch.stack(row) for row in logits]


def _same(model: PreTrainedModel, expected: Tensor, actual: Tensor, what: str) -> None:
    scale = float(expected.float().std())
    difference = float((expected.float() - actual.float()).abs().max()) / scale
    if not difference <= TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16]):
        raise MannersError(
            f"{describe(model)} cannot be used: {what} differs from the plain forward by {difference:.2g} standard"
            " deviations of its logits (layers that talk across the cut, a state-space hybrid, or no decoder-only"
            " model); use another model"
        )
