"""The text of a pre-training run: named by settings, kept as tokens in the workspace, or refused: it is too little."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.loop.session import Session
from manners.pretrain import corpus, dial, vocabulary
from manners.pretrain.corpus import Corpus, Division, Survey
from manners.pretrain.dial import Recipe, Shape
from manners.pretrain.documents import LONGEST, Source
from manners.settings import PretrainSettings
from manners.workspace import atomic_folder, discard


def source(settings: PretrainSettings) -> Source:
    """Return the text to learn from; raises MannersError where none is named."""
    if settings.text is None:
        raise MannersError("there is no text to learn from: name a file or a folder with --text, or set pretrain.text")
    return Source(Path(settings.text).expanduser(), settings.column, settings.separator)


def replayed(settings: PretrainSettings) -> Source:
    """Return the text that is read again."""
    return Source(Path(settings.replay or "").expanduser(), settings.column, settings.separator)


def division_of(settings: PretrainSettings, seed: int) -> Division:
    """Return how the text is divided."""
    return Division(source(settings), settings.set_aside, seed, settings.duplicates == "kept")


def tokens_folder(session: Session, text: str, tokenizer: str, what: str = "text") -> Path:
    """Return where the tokens of a text are kept; those of another text, or for another tokenizer, are removed.

    `tokenizer` says which ids they are: by how it is learnt from the text, or by what it makes of any.
    """
    settings = session.settings.pretrain
    parts = (text, tokenizer, settings.set_aside, settings.duplicates, session.settings.seed)
    folder = session.workspace.runs / f"{what}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
    for other in session.workspace.runs.glob(f"{what}-*"):
        if other != folder:
            discard(other)
    return folder


def surveyed(division: Division, folder: Path, setting: str = "pretrain.text") -> Survey:
    """Read a text once, say what it holds, and refuse what nothing can be learnt from; `setting` names it."""
    found = corpus.survey(division, folder)
    shown = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
    sentences = [
        f"{division.source.path}: {found.documents:,} documents in {found.files:,} files, {found.bytes:,} bytes",
        f"{found.duplicates:,} exact duplicates {'kept' if division.keep_duplicates else 'left out'}",
        *([f"{found.cut:,} documents longer than {LONGEST:,} characters are read as several"] if found.cut else []),
        *([f"left out: {shown}"] if shown else []),
        *found.notes,
    ]
    print("; ".join(sentences), file=sys.stderr)
    if not found.documents:
        raise MannersError(f"{division.source.path} holds no text to learn from; set {setting} to another")
    if not found.set_aside_bytes or not found.training_bytes:
        remedy = "none is set aside: set a higher" if found.training_bytes else "all are set aside: set a lower"
        raise MannersError(
            f"{division.source.path} holds {found.documents:,} documents, of which {remedy} pretrain.set_aside, say"
            " with pretrain.separator what stands between documents, or add text"
        )
    return found


def own_tokenizer(
    division: Division, found: Survey, shape: Shape, settings: PretrainSettings, folder: Path
) -> PreTrainedTokenizerBase:
    """Learn a tokenizer from the text, or load the one that was learnt from it."""
    most = vocabulary.carried(found.training_bytes)
    if shape.vocabulary > most:
        raise MannersError(
            f"pretrain.vocabulary is {shape.vocabulary:,}, and {found.training_bytes:,} bytes of text carry {most:,}"
            f" entries, one for {vocabulary.BYTES_EACH} bytes: lower it, or add text"
        )
    kept = folder / "tokenizer"
    if not kept.is_dir():
        learnt = vocabulary.learn(corpus.sample(division, found, folder), shape.vocabulary, shape.row)
        with atomic_folder(kept) as draft:
            learnt.save_pretrained(draft)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(kept, trust_remote_code=False)
    if len(loaded) < shape.vocabulary:
        said = f"the text has different words for a vocabulary of {len(loaded):,} entries, and {shape.vocabulary:,}"
        if settings.vocabulary is not None:
            raise MannersError(f"{said} were asked for: lower pretrain.vocabulary, or add text")
        print(f"{said} would suit pretrain.depth: it has {len(loaded):,}", file=sys.stderr)
    return loaded


def tell_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Say what stands around documents, where the tokenizer's own BOS or EOS stands around turns of dialogues."""
    marks = vocabulary.turn_marks(tokenizer)
    if not marks:
        return
    ends = [str(token) for token in tokenizer.convert_ids_to_tokens(list(dict.fromkeys(vocabulary.ends_of(tokenizer))))]
    shown = " and ".join(sorted(marks))
    if marks & set(ends):
        print(
            f"{shown} stand around turns of dialogues, and the tokenizer has nothing else to stand around documents:"
            " a model that goes on will answer worse in dialogues until it is taught them again",
            file=sys.stderr,
        )
    else:
        print(f"{shown} stand around turns of dialogues: around documents stands {' and '.join(ends)}", file=sys.stderr)


def tell_passes(settings: PretrainSettings, recipe: Recipe, read: Corpus) -> None:
    """Say how often the text is read, where it is short for the run, or the run was made shorter for it."""
    passes = recipe.tokens * dial.fresh_share(settings) / read.tokens
    if passes > 1.1 * dial.PASSES:
        print(
            f"the text has {read.tokens:,} tokens and is read {passes:.0f} times: past {dial.PASSES:.0f} a model learns"
            " it by heart rather than how it is written; lower pretrain.tokens, or add text",
            file=sys.stderr,
        )
    elif settings.tokens is None and passes > 0.9 * dial.PASSES:
        print(
            f"the text has {read.tokens:,} tokens and is read {passes:.1f} times, where the model would bear more: add"
            " text, or set pretrain.tokens to go on beyond that",
            file=sys.stderr,
        )


def refuse_short(read: Corpus, row: int, settings: PretrainSettings) -> None:
    """Raise MannersError where the text does not fill a row."""
    tokens = read.tokens
    if tokens <= row:
        raise MannersError(
            f"{settings.text} has {tokens:,} tokens to train on, and a row takes {row + 1:,}: add text, or lower"
            " pretrain.row"
        )
