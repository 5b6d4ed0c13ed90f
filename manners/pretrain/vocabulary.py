"""A tokenizer of the text's own: byte-level BPE, split as SmolLM2 splits, which llama.cpp knows by name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from manners.errors import MannersError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL = (BOS, EOS, PAD)
"""Begins every document, ends it, fills rows in later stages: ids 0, 1 and 2."""
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""What tokenizers of chat models call the token that stood between documents, where it is not their EOS."""
BYTES_EACH = 128
"""Bytes of text that an entry of the vocabulary needs: what is rarer is not learnt."""
SMALLEST = 256 + len(SPECIAL)
"""Every byte, and the special tokens."""
LEARNT_FROM = 64 * 2**20
"""Bytes of text at most that a tokenizer is learnt from; of more, a random part."""


def carried(text_bytes: int) -> int:
    """Return how many entries a text of so many bytes can carry."""
    return max(SMALLEST, text_bytes // BYTES_EACH)


def tokens_about(text_bytes: float, entries: int) -> float:
    """Guess how many tokens a text will be, before it is read: a quarter of a byte for each bit of an entry's number.

    Tinyshakespeare has 2.7 bytes a token at 2,048 entries, English about 4 at 50,000. Only a plan goes by it.
    """
    return 4 * text_bytes / math.log2(entries)


def learn(texts: Iterable[str], entries: int, row: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of so many entries, special tokens included, or of as many as the text has words for.

    `row` is the longest text of the model.

    Digits stand alone, then GPT-2's expression splits, with no space put before a text: what llama.cpp calls `smollm`.
    In plain transformers a text begins with BOS, as every row did.
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=row
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts, without special tokens: whatever a text spells, it stays text."""
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short name for what a tokenizer makes of a text: another name, other ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else type(tokenizer).__name__
    said = repr((sorted(tokenizer.get_vocab().items()), rules, ends_of(tokenizer)))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def ends_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids that begin and end a document: BOS and EOS, one for the other where a tokenizer has only one.

    A tokenizer of a chat model may call those BOS and EOS that its template puts around every turn (SmolLM2's are
    `<|im_start|>` and `<|im_end|>`): they would be taught another meaning, so `DOCUMENT_ENDS` come before them.
    Raises MannersError where there is none.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    marks = turn_marks(tokenizer)
    if (bos or eos) in marks or (eos or bos) in marks:
        known = tokenizer.get_added_vocab()
        instead = next((token for token in DOCUMENT_ENDS if token in known and token not in marks), None)
        bos, eos = (instead if instead and token in (None, *marks) else token for token in (bos, eos))
    if bos is None and eos is None:
        raise MannersError("the tokenizer has neither BOS nor EOS, and rows must begin with one; use another model")
    ids: Any = tokenizer.convert_tokens_to_ids([bos or eos, eos or bos])
    return int(ids[0]), int(ids[1])


def turn_marks(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return which of BOS and EOS the chat template puts around turns, a user's too: one dialogue has several.

    Of a template that refuses a plain dialogue nothing is known, and nothing returned.
    """
    if not tokenizer.chat_template:
        return set()
    asked = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    try:
        said = str(tokenizer.apply_chat_template(asked, tokenize=False))
    except Exception:  # a template is a program of somebody else's
        return set()
    return {token for token in (tokenizer.bos_token, tokenizer.eos_token) if token and said.count(token) > 1}
