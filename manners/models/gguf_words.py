"""A tokenizer as llama.cpp reads it from a GGUF file: entries, kinds, merges, how it splits a text, and what ends one.

llama.cpp knows ways of splitting a text by name, and its code for a name is all that a file can ask for. So a tokenizer
is compared with what each name stands for, rule by rule; one that is none of them is refused.
Source: llama.cpp, `src/llama-vocab.cpp`, the expressions of each `LLAMA_VOCAB_PRE_TYPE_*`; GGUF specification,
`tokenizer.ggml.*`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.text import Renderer

_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_ONE_DIGIT = rf"{_SHORT}|{_WORDS}|\p{{N}}|{_REST}"

_BYTES = ("ByteLevel", True)
"""GPT-2's own expression."""
_BYTES_ALONE = ("ByteLevel", False)

SPLITS: Mapping[tuple[tuple[tuple[str, Any], ...], bool], str] = {
    ((_BYTES,), False): "gpt-2",
    ((("Digits", True), _BYTES), False): "smollm",
    ((("Split", _ONE_DIGIT), _BYTES_ALONE), False): "qwen2",
    ((("Split", _THREE_DIGITS), _BYTES_ALONE), True): "llama-bpe",
    ((("Split", _THREE_DIGITS), _BYTES_ALONE), False): "smaug-bpe",
}
"""Names of llama.cpp's by the steps that split a text, and by whether a word that is an entry is one, merges or not."""

SPARE = "[PAD{}]"
"""What a row of the embedding is called that the tokenizer has no entry for."""


@dataclass(frozen=True)
class Words:
    """What a file says of a tokenizer."""

    split: str
    """Name of the way in which a text is split."""
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    spare: int
    """Rows of the embedding without an entry."""


def words_of(renderer: Renderer, rows: int) -> Words:
    """Read a tokenizer whose model has so many rows; raises MannersError, naming what llama.cpp has no name for."""
    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MannersError(_unknown(f"{type(renderer.tokenizer).__name__}, which has no tokenizer.json"))
    described = json.loads(backend.to_str())
    split = _split(described)
    entries = {number: entry for entry, number in renderer.tokenizer.get_vocab().items()}
    if (highest := max(entries)) >= rows:
        raise MannersError(
            f"the tokenizer has an entry {highest} ({entries[highest]!r}), and the model {rows} rows: export with"
            " --as folder"
        )
    tokens = [entries.get(number, SPARE.format(number)) for number in range(rows)]
    added = {token["id"] for token in described["added_tokens"]}
    shown = {True: TokenType.USER_DEFINED, False: TokenType.NORMAL}
    kinds = [
        TokenType.UNUSED
        if number not in entries
        else TokenType.CONTROL
        if number in renderer.special_ids
        else shown[number in added]
        for number in range(rows)
    ]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    return Words(split, tokens, [int(kind) for kind in kinds], merges, rows - len(entries))


def add_words(writer: GGUFWriter, words: Words, renderer: Renderer, model: PreTrainedModel) -> None:
    """Write a tokenizer into a file's description, with the chat template as dialogues were laid out.

    The end is what the tokenizer calls so (`eos`), and what the template ends an answer with where that is another
    (`eot`): llama.cpp stops at both. A BOS stands before a text where the tokenizer puts one there.
    """
    tokenizer = renderer.tokenizer
    eos = renderer.end_id if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    bos = tokenizer.bos_token_id
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.split)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    writer.add_token_merges(words.merges)
    writer.add_bos_token_id(eos if bos is None else int(bos))  # never left out: llama.cpp would take token 11
    writer.add_eos_token_id(eos)
    if renderer.end_id != eos:
        writer.add_eot_token_id(renderer.end_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(int(tokenizer.pad_token_id))
    writer.add_add_bos_token(bool(renderer.bos))
    writer.add_add_eos_token(False)
    writer.add_chat_template(renderer.template.text)


def _split(described: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer splits a text; raises MannersError where it has none."""
    model, normal = described["model"], described["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "BPE with bytes as entries (as SentencePiece has)" if model["type"] == "BPE" else model["type"]
        raise MannersError(_unknown(kind))
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if normal is not None and normal["type"] != "NFC":
        odd.append(f"the normalizer {_steps_named(normal, 'normalizers')}")
    if odd:
        raise MannersError(_unknown(f"BPE with {odd[0]}"))
    steps = described["pre_tokenizer"]
    parts = () if steps is None else tuple(steps["pretokenizers"]) if steps["type"] == "Sequence" else (steps,)
    try:
        return SPLITS[tuple(map(_step, parts)), bool(model.get("ignore_merges"))]
    except KeyError:
        raise MannersError(_unknown(f"the pre-tokenizer {_steps_named(steps, 'pretokenizers')}")) from None


def _step(step: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a step by all that it does, or one that no name stands for."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel", step.get("use_regex", True)
        case {"type": "Digits", "individual_digits": alone}:
            return "Digits", alone
        case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}:
            return "Split", expression
    return json.dumps(step), None


def _steps_named(steps: Mapping[str, Any] | None, inner: str) -> str:
    """Name a tokenizer's steps for a sentence, shortly."""
    if steps is None:
        return "(none)"
    if steps["type"] == "Sequence":
        return " + ".join(_steps_named(step, inner) for step in steps[inner])
    said = {name: value for name, value in steps.items() if name not in ("type", "trim_offsets")}
    return f"{steps['type']} {json.dumps(said)}" if said else str(steps["type"])


def _unknown(what: str) -> str:
    return (
        f"llama.cpp has no name for the model's tokenizer ({what}), so that a GGUF file would read texts otherwise:"
        " export with --as folder"
    )
