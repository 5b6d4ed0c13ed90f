"""What pre-training found out; the others are in `manners.results`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote by itself."""

    step: int
    """Behind which step of its training."""
    text: str


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """A model that has learnt to write, and how well it does."""

    version: str | None = None
    begun_as: str | None = None
    """The model that it went on from; absent where it began from nothing."""
    parameters: int | None = None
    tokens: int | None = None
    """Tokens that it was trained on, those read again counted again."""
    passes: float | None = None
    """Times that it read the text, on average."""
    advice: str | None = None
    """Where the text set aside was written best, if that was not at the end."""
    loss_before: float | None = None
    """On the text set aside, in nats a token, before the first step."""
    loss_after: float | None = None
    bits_per_byte: float | None = None
    """Of the text set aside; special tokens count nothing."""
    gzip_bits_per_byte: float | None = None
    """What `gzip -9` makes of the same bytes."""
    ngram_bits_per_byte: float | None = None
    """What an interpolated 5-gram of bytes makes of them, which has learnt from the same training text."""
    ngram_learnt_from: int | None = None
    """Bytes of training text that the 5-gram learnt from."""
    measured_bytes: int | None = None
    """Bytes of text set aside that all of these are measured on."""
    layers: int | None = None
    width: int | None = None
    vocabulary: int | None = None
    row: int | None = None
    """Tokens of a row."""
    steps: int | None = None
    batch: int | None = None
    """Tokens of a step."""
    documents: int | None = None
    text_bytes: int | None = None
    duplicates: int | None = None
    """Documents that are, to the byte, one that came before."""
    documents_cut: int | None = None
    """Documents so long that they were read as several."""
    rows_cut: int | None = None
    """Parts of documents, beyond the first of each, that rows were filled up with."""
    left_out: Mapping[str, int] | None = None
    """Rows and files of the text that were not read, by reason."""
    replayed: float | None = None
    """Share of the rows that came from the replayed text."""
    replay_bits_before: float | None = None
    """Bits a byte of what is set aside of the replayed text, before the first step."""
    replay_bits_after: float | None = None
    tokens_per_second: float | None = None
    flops_per_token: float | None = None
    """Forward and backward: 6 a weight of matrices and head, and attention."""
    share_of_peak: float | None = None
    """Of the fastest matrix product that was measured on the device."""
    muon_share: float | None = None
    """Share of the time of steps that Muon takes; absent on a GPU."""
    samples: tuple[Written, ...] | None = None
    """What it wrote by itself, along the way and in the end."""
    curves: Mapping[str, tuple[int | float | None, ...]] | None = None
    """By metric; `step` is the horizontal axis."""
