"""A tokenizer of the text's own: byte-level BPE, split as SmolLM2 splits, which llama.cpp knows by name."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from manners.errors import MannersError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL = (BOS, EOS, PAD)
"""Begins every document, ends it, fills rows in later stages: ids 0, 1 and 2."""
BYTES_EACH = 128
"""Bytes of text that an entry of the vocabulary needs: what is rarer is not learnt."""
SMALLEST = 256 + len(SPECIAL)
"""Every byte, and the special tokens."""
LEARNT_FROM = 64 * 2**20
"""Bytes of text at most that a tokenizer is learnt from; of more, a random part."""


def carried(text_bytes: int) -> int:
    """Return how many entries a text of so many bytes can carry."""
    return max(SMALLEST, text_bytes // BYTES_EACH)


def learn(texts: Iterable[str], entries: int, row: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of so many entries, special tokens included; `row` is the longest text of the model.

    Digits stand alone, then GPT-2's expression splits, with no space put before a text: what llama.cpp calls `smollm`.
    In plain transformers a text begins with BOS, as every row did.
    Raises MannersError where the text has too few different words for it.
    Source: Sennrich et al. 2016, on bytes as in GPT-2 (Radford et al. 2019); `tokenizers` finds the merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    found = tokenizer.get_vocab_size()
    if found < entries:
        raise MannersError(
            f"the text carries a vocabulary of {found:,} entries, and {entries:,} were asked for: lower"
            " pretrain.vocabulary, or add text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=row
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts, without special tokens: whatever a text spells, it stays text."""
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def ends_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids that begin and end a document: BOS and EOS, one for the other where a tokenizer has only one.

    Raises MannersError where it has neither.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise MannersError("the tokenizer has neither BOS nor EOS, and rows must begin with one; use another model")
    return int(eos if bos is None else bos), int(bos if eos is None else eos)
