"""Load-time proof that trunk + branch = the whole model; a model for which it fails is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.models.attention import listen
from manners.models.branches import Branch
from manners.models.decoder import Decoder
from manners.models.packing import pack, pack_flat
from manners.models.surgery import describe
from manners.models.trunk import Trunk
from manners.text import SHORTEST_COMMON, Batch, Packed, Rendered, collate

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.5}
"""Largest difference allowed, in standard deviations of the logits: what rounding explains, and no wrong mask does. In
bfloat16 the default model comes to 0.34 on a processor without arithmetic for it."""

LONGEST_DECIDES = {"longrope", "dynamic"}
"""Ways to turn positions, as transformers calls them, whose table depends on the longest position of a forward."""


def proved(trunk: Trunk, context: int) -> Trunk:
    """Compare whole and split logits on random tokens; raise MannersError naming the model and what differs.

    Return the trunk, which then knows whether responses may share a row with their prompt (see `text.Packed`): windows
    of attention and position biases forbid it, and scores are then computed one response a row. It also knows whether
    decoding can tell attention which columns are a row's own (see `models.attention`), on a CPU, where that pays, and
    whether all that is to be scored can stand in one row, each response looking at its prompt and itself.

    Four ways of running must agree with the plain forward of one unpadded row: split with left padding, cached decoding
    of the assembled model, the same after a row has left and another has entered the batch, and both on a sequence
    longer than any attention window that fits into `context`. A last check: no logit depends on a later token (a
    decoder-only model). Differences are measured in standard deviations of the logits, so that nearly uniform logits
    prove nothing less.
    """
    model = trunk.whole
    try:
        _prove(trunk, context)
        compute = replace(trunk.compute, shares_prompts=_shares_prompts(trunk, context))
        compute = replace(compute, by_row=_attends_by_row(replace(trunk, compute=compute), context))
        together = compute.by_row and not _turns_by_the_longest(model)
        compute = replace(compute, flat=together and _reads_flat(trunk, context))
        return replace(trunk, compute=compute)
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
    vocabulary = model.config.get_text_config().vocab_size
    longest = _longest(trunk, context)
    rows = _random_rows(trunk, [longest, 13, min(17, longest)])
    responses = 8
    batch = collate([Rendered(row[:-responses], row[-responses:]) for row in rows], pad_id=0).to(trunk.device)
    expected = torch.stack([_plain(model, row)[-responses - 1 :] for row in rows])  # (3, 9, V)
    if float(expected.float().std()) == 0.0:
        raise MannersError(f"{describe(model)} gives the same logit to every token, so nothing can be proved; check it")

    reference = Branch(trunk, trainable=False)
    split = reference.logits(reference.hidden(trunk.states(batch), batch).flatten(0, 1)).view_as(expected)
    _same(model, expected, split, "the split forward with left padding")

    decoder = Decoder(reference.assembled(trunk), trunk.compute, pad_id=0)
    for row, logits in _decode(decoder, rows, responses):
        _same(model, expected[row, : len(logits)], logits, "cached decoding where rows leave and enter")

    changed = (*rows[2][:-1], (rows[2][-1] + 1) % vocabulary)
    _same(model, _plain(model, rows[2])[:-1], _plain(model, changed)[:-1], "a forward with only a later token changed")


def _longest(trunk: Trunk, context: int) -> int:
    """Length that is past any window of attention which fits into the context."""
    window = getattr(trunk.whole.config.get_text_config(), "sliding_window", None) or 0
    return min(window + 9 if 0 < window < context else 21, context)


def _random_rows(trunk: Trunk, lengths: list[int]) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = trunk.whole.config.get_text_config().vocab_size
    return [tuple(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in lengths]


@torch.no_grad()
def _shares_prompts(trunk: Trunk, context: int) -> bool:
    """Whether responses behind one copy of their prompt, and rows behind one copy of what all begin with, end alike."""
    rendered = _exchanges(trunk, context)
    sharing = replace(trunk, compute=replace(trunk.compute, shares_prompts=True))
    return _ends_alike(trunk, sharing, rendered, [pack(rendered, share=True, pad_id=0), collate(rendered, pad_id=0)])


@torch.no_grad()
def _reads_flat(trunk: Trunk, context: int) -> bool:
    """Whether responses in one row, each told to look at its prompt and itself, end alike.

    The model listens from now on, with all that is made of it: trunk, branches, and what is put together of them.
    """
    listen(trunk.whole)
    rendered = _exchanges(trunk, context)
    flat = replace(trunk, compute=replace(trunk.compute, flat=True))
    return _ends_alike(trunk, flat, rendered, [pack_flat(rendered), pack_flat(rendered[:2])])


def _turns_by_the_longest(model: PreTrainedModel) -> bool:
    """Whether the longest sequence of a forward decides how all positions are turned; no short proof would see it."""
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    tables = [found, *(table for table in found.values() if isinstance(table, dict))]  # or one for each kind of layer
    return any(table.get("rope_type") in LONGEST_DECIDES for table in tables)


def _exchanges(trunk: Trunk, context: int) -> list[Rendered]:
    """Responses to two prompts that begin alike, one of them longer than any window of attention."""
    longest = max(_longest(trunk, context) - 6, SHORTEST_COMMON + 2)
    first, other, *responses = _random_rows(trunk, [longest, 3, 4, 6, 5, 3])
    owners = (first, first, first[:SHORTEST_COMMON] + other, first)
    return [Rendered(prompt, response) for prompt, response in zip(owners, responses, strict=True)]


def _ends_alike(trunk: Trunk, changed: Trunk, rendered: Sequence[Rendered], batches: Sequence[Batch | Packed]) -> bool:
    """Whether responses, or the first of them, end in these batches on a changed trunk as each does alone."""
    alone = pack(rendered, share=False, pad_id=0).to(trunk.device)
    expected = Branch(trunk, trainable=False).final(trunk.states(alone), alone)[alone.ends].float()
    tolerance = _tolerance(trunk.whole) * float(expected.std())
    branch = Branch(changed, trainable=False)
    for given in batches:
        batch = given.to(trunk.device)
        try:
            found = branch.final(changed.states(batch), batch)[batch.ends].float()
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return False  # a model that makes its masks in a way of its own
        if not bool(((found - expected[: len(found)]).abs() <= tolerance).all()):
            return False
    return True


@torch.no_grad()
def _attends_by_row(trunk: Trunk, context: int) -> bool:
    """Whether decoding by row, with and without what all prompts begin with, ends as the plain forward does."""
    model = trunk.whole
    responses = 6
    if not trunk.compute.saves_columns:
        return False
    first, *others = _random_rows(trunk, [max(_longest(trunk, context), SHORTEST_COMMON + responses + 1), 9, 7])
    rows = [first, *(first[:SHORTEST_COMMON] + other for other in others)]
    whole = Branch(trunk, trainable=False).assembled(trunk)
    try:
        expected = [_plain(model, row)[-responses - 1 :] for row in rows]
        return all(
            _difference(expected[row][: len(logits)], logits) <= _tolerance(model)
            for shares in {False, trunk.compute.shares_prompts}
            for row, logits in _decode(
                Decoder(whole, replace(trunk.compute, shares_prompts=shares, by_row=True), pad_id=0), rows, responses
            )
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False  # a model that tells its attention nothing, or a context shorter than this


def _plain(model: PreTrainedModel, row: tuple[int, ...]) -> Float[Tensor, "n V"]:
    ids = torch.tensor([row], device=model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits


def _decode(decoder: Decoder, rows: list[tuple[int, ...]], responses: int) -> list[tuple[int, Float[Tensor, "t V"]]]:
    """Teacher-forced cached decoding; half way the middle row leaves, and enters again from its prompt.

    Return, for each that was seated, its row and the logits from the end of its prompt on.
    """
    device = decoder.model.device
    half = responses // 2
    who = [0, 1, 2]
    step = [0, 0, 0]
    read = list[tuple[int, list[Tensor]]]()
    decoder.seat(torch.zeros(0, dtype=torch.long, device=device), [row[:-responses] for row in rows], half)
    seated = [(row, list[Tensor]()) for row in who]
    while True:
        assert decoder.logits is not None
        for (_, logits), found in zip(seated, decoder.logits, strict=True):
            logits.append(found)
        if step[0] == responses:
            return [(row, torch.stack(logits)) for row, logits in [*read, *seated]]
        if step == [half, half, half]:
            decoder.seat(torch.tensor([0, 2], device=device), [rows[1][:-responses]], responses)
            read = [seated[1]]
            who = [0, 2, 1]
            step = [half, half, 0]
            seated = [seated[0], seated[2], (1, [decoder.logits[2]])]
        token = [rows[row][s - responses] for row, s in zip(who, step, strict=True)]
        decoder.read(torch.tensor(token, device=device), torch.ones(3, dtype=torch.bool, device=device))
        step = [s + 1 for s in step]


def _same(model: PreTrainedModel, expected: Tensor, actual: Tensor, what: str) -> None:
    if not (difference := _difference(expected, actual)) <= _tolerance(model):
        raise MannersError(
            f"{describe(model)} cannot be used: {what} differs from the plain forward by {difference:.2g} standard"
            " deviations of its logits (layers that talk across the cut, a state-space hybrid, or no decoder-only"
            " model); use another model"
        )


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference, in standard deviations of what is expected."""
    return float((expected.float() - actual.float()).abs().max()) / float(expected.float().std())


def _tolerance(model: PreTrainedModel) -> float:
    return TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16])
