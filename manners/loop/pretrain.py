"""Pre-training: a text becomes tokens once, a model learns to predict them, is measured, and is kept whole."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners import ranks
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.facts import scalars
from manners.loop.keep import ensure_rows
from manners.loop.plan import Plan, free_on
from manners.loop.pretrain_size import not_used, parts, recipe_of, row_of, size_of
from manners.loop.pretrain_text import (
    division_of,
    own_tokenizer,
    refuse_short,
    replayed,
    source,
    surveyed,
    tell_marks,
    tell_passes,
    tokens_folder,
)
from manners.loop.session import Session, now
from manners.loop.stage import Inputs, Options
from manners.memory import keep_freed_memory
from manners.models import versions, whole
from manners.models.found import Found
from manners.models.pretrained import pick_device
from manners.models.quiet import quiet_transformers
from manners.models.versions import Version
from manners.pretrain import baselines, corpus, dial, vocabulary
from manners.pretrain.corpus import Corpus, Division
from manners.pretrain.dial import Recipe
from manners.pretrain.documents import PLAIN, Document, files, fingerprint
from manners.pretrain.measure import HeldOut, Measured, measured, sample
from manners.pretrain.model import new_model, weights_hash
from manners.pretrain.rows import Rows
from manners.pretrain.speed import peak
from manners.pretrain.train import Course, Taught, train
from manners.results.pretrain import PretrainResult, Written
from manners.settings import PretrainSettings
from manners.types import VersionKind
from manners.workspace import atomic_folder

QUICK = 2**16
"""Bytes of what is set aside that the model is measured on along the way."""
SAMPLES, SAMPLE_TOKENS = 4, 200
"""Texts that the finished model writes by itself, and their tokens at most."""
EFFICIENCY = 0.4
"""Share of the fastest matrix product that a plan counts on; `share_of_peak` says what it was."""


@dataclass(frozen=True, kw_only=True)
class PretrainInputs(Inputs):
    """What a model learns from."""

    text: str
    """The fingerprint of the text."""
    replay: str | None
    start: Found | None
    """The model that goes on."""
    tokenizer: str | None
    """What names its tokenizer."""


@dataclass(frozen=True)
class Begun:
    """A model before its first step, with what it is to read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    folder: Path
    """Of the text's tokens."""
    replay: Corpus | None
    recipe: Recipe
    flops: float
    """A token."""


def inputs(session: Session, _: Options, begun: Mapping[str, Any]) -> PretrainInputs:
    """Look at the text; raises MannersError where there is none, or where it has changed since a run was begun."""
    settings, model = session.settings.pretrain, session.settings.model
    _refuse_unused(settings)
    named = fingerprint(source(settings))
    if begun.get("the text", named) != named and begun.get("pretrain.text") == settings.text:
        raise MannersError(
            f"{settings.text} has changed since the unfinished run in {session.workspace.runs / 'pretrain'} was begun:"
            " restore it, or remove that folder to begin anew"
        )
    replay = fingerprint(replayed(settings)) if settings.replay else None
    start = _start(session)
    row = row_of(session, start)
    for sentence in not_used(settings, model, row):
        print(f"not used: {sentence}", file=sys.stderr)
    decides: dict[str, Any] = {"the text": named, "the device": pick_device(model.device).type}
    decides |= {"the replayed text": replay} if replay else {}
    tokenizer = None
    if start is not None:
        tokenizer = vocabulary.digest(start.tokenizer)
        tell_marks(start.tokenizer)
        decides |= {"the start model": weights_hash(start.model), "its tokenizer": tokenizer}
        decides |= {"the tokens of a row": row}
    return PretrainInputs(decides=decides, text=named, replay=replay, start=start, tokenizer=tokenizer)


def plan(session: Session, inputs: PretrainInputs | None = None) -> Plan:
    """Memory, work and time of a run: of a new model on paper, and of a text by the size of its files."""
    settings = session.settings.pretrain
    device = pick_device(session.settings.model.device)
    read = files(source(settings).path)
    bytes_read = sum(file.stat().st_size for file in read)
    start = inputs.start if inputs else _start(session)
    fresh = bytes_read * (1 - settings.set_aside)
    size = size_of(session, start, vocabulary.carried(int(fresh)))
    text = vocabulary.tokens_about(fresh, size.shape.vocabulary)
    recipe = recipe_of(settings, start, size, text)
    speed = EFFICIENCY * peak(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    unlike = sum(not file.name.lower().endswith(PLAIN) for file in read)
    unused = not_used(settings, session.settings.model, recipe.row)
    work = {
        **{name: value for name, value in asdict(size.shape).items() if name != "row"},
        **asdict(recipe),
        "parameters": size.parameters,
        "batch": recipe.batch,
        "tokens": recipe.tokens,
        "flops": size.flops * recipe.tokens,
        "text_bytes": bytes_read,
        **({"files_whose_text_is_of_another_size": unlike} if unlike else {}),
        "passes_about": round(recipe.tokens * dial.fresh_share(settings) / max(1.0, text), 2),
        "tokens_on_disk_bytes_about": round(text) * (2 if size.shape.vocabulary <= 2**16 else 4),
        "seconds_about": round(size.flops * recipe.tokens / speed),
        **({"not_used": unused} if unused else {}),
    }
    return Plan(
        "pretrain",
        work,
        4 * size.parameters,
        tuple(parts(size, recipe, bytes_read, device)),
        free_on(device),
        on_gpu=device.type == "cuda",
    )


def run(session: Session, run: Run, inputs: PretrainInputs) -> PretrainResult:
    """Train a model on the text, measure it beside gzip and an n-gram, and keep it as a version."""
    name = run.state.setdefault("version", session.next_version_name(VersionKind.PRETRAIN))
    keep_freed_memory()
    # 1. The text as tokens, and a model to read it.
    with ranks.first_before():  # who writes the tokens down
        begun = _begin(session, inputs)
    held = HeldOut.of(begun.corpus.measured, begun.tokenizer, begun.recipe.row + 1)
    course = _course(session, begun)
    if "before" not in run.state:
        first = measured(begun.model, held, course.at_once)
        run.state["before"] = [first.nats, first.bits]
        run.state["replay before"] = _on_replay(begun, course)
    # 2. What needs no network, while the text is there: a long run must not fail at its end for want of it.
    beside = run.state.get("beside") or ({} if ranks.number() else _beside(session, begun))
    run.state["beside"] = beside
    # 3. Steps.
    taught = train(course, run, session.workspace.runs / name)
    # 4. Bits a byte of what it never saw.
    after = measured(begun.model, held, course.at_once)
    kept = (run.state["replay before"], _on_replay(begun, course))
    result = _result(session, begun, course, taught, (Measured(*run.state["before"]), after), kept, beside, name)
    # 5. A version that plain transformers loads.
    _keep(session, name, begun, result)
    if result.advice:
        print(result.advice, file=sys.stderr)
    ratio = after.bits / (result.ngram_bits_per_byte or 1)
    print(
        f"{name}: {after.bits:.3f} bits a byte of text set aside; gzip -9 {result.gzip_bits_per_byte:.3f}, a 5-gram"
        f" {result.ngram_bits_per_byte:.3f} ({'less' if ratio < 1 else 'no less'} than the 5-gram)",
        file=sys.stderr,
    )
    return result


def _begin(session: Session, inputs: PretrainInputs) -> Begun:
    """Tokenise what is to be read, and make the model, or load the one that goes on."""
    settings = session.settings.pretrain
    division = division_of(settings, session.settings.seed)
    device = pick_device(session.settings.model.device)
    kept_for = inputs.tokenizer or f"own {settings.vocabulary} {settings.depth} {settings.row}"
    folder = tokens_folder(session, inputs.text, kept_for)
    found = surveyed(division, folder)
    size = size_of(session, inputs.start, vocabulary.carried(found.training_bytes))
    if inputs.start is None:
        tokenizer = own_tokenizer(division, found, size.shape, settings, folder)
        shape = replace(size.shape, vocabulary=len(tokenizer))
        size = replace(size, shape=shape, parameters=shape.parameters, flops=shape.flops)
        model: PreTrainedModel = new_model(shape, tokenizer, session.settings.seed)
    else:
        model, tokenizer = inputs.start.model, inputs.start.tokenizer
    read = corpus.tokenised(division, tokenizer, folder)
    refuse_short(read, size.shape.row, settings)
    recipe = recipe_of(settings, inputs.start, size, read.tokens)
    tell_passes(settings, recipe, read)
    replay = None
    if inputs.replay is not None:
        other = Division(replayed(settings), settings.set_aside, session.settings.seed, keep_duplicates=True)
        kept = tokens_folder(session, inputs.replay, kept_for, "replay")
        surveyed(other, kept, "pretrain.replay")
        replay = corpus.tokenised(other, tokenizer, kept)
    if device.type == "cuda":
        for parameter in model.parameters():  # never the buffers, in which the table of rotations stands
            parameter.data = parameter.data.to(torch.bfloat16)
    torch.nn.Module.to(model, device=device)
    return Begun(model.requires_grad_(True).eval(), tokenizer, read, folder, replay, recipe, size.flops)


def _course(session: Session, begun: Begun) -> Course:
    settings, seed = session.settings.pretrain, session.settings.seed
    bos, _ = vocabulary.ends_of(begun.tokenizer)

    def rows(read: Corpus, number: int) -> Rows:
        return Rows(read.ids, read.ends, bos, begun.recipe.row + 1, number)

    return Course(
        model=begun.model,
        tokenizer=begun.tokenizer,
        recipe=begun.recipe,
        rows=rows(begun.corpus, seed),
        quick=HeldOut.of(_quick(begun.corpus.measured), begun.tokenizer, begun.recipe.row + 1),
        replay=None if begun.replay is None else rows(begun.replay, seed + 1),
        replay_share=settings.replay_share,
        max_grad_norm=settings.max_grad_norm,
        measures=settings.measures,
        seed=seed,
    )


def _on_replay(begun: Begun, course: Course) -> float | None:
    """Return bits a byte of what is set aside of the replayed text; None where nothing is replayed."""
    if begun.replay is None:
        return None
    held = HeldOut.of(begun.replay.measured, begun.tokenizer, begun.recipe.row + 1)
    return measured(begun.model, held, course.at_once).bits


def _beside(session: Session, begun: Begun) -> dict[str, Any]:
    """Return what gzip and an n-gram make of the texts that the model is measured on, by their names in the result."""
    settings = session.settings.pretrain
    texts = [document.text for document in begun.corpus.measured]
    division = division_of(settings, session.settings.seed)
    learnt = list(corpus.sample(division, begun.corpus.survey, begun.folder, baselines.LEARNT_FROM))
    return {
        "gzip_bits_per_byte": baselines.gzip_bits(texts),
        "ngram_bits_per_byte": baselines.ngram_bits(learnt, texts),
        "ngram_learnt_from": sum(len(one.encode()) for one in learnt),
        "measured_bytes": sum(len(one.encode()) for one in texts),
    }


def _result(
    session: Session,
    begun: Begun,
    course: Course,
    taught: Taught,
    losses: tuple[Measured, Measured],
    replay: tuple[float | None, float | None],
    beside: Mapping[str, Any],
    name: str,
) -> PretrainResult:
    """Put together what the run came to."""
    settings, recipe, found = session.settings.pretrain, begun.recipe, begun.corpus.survey
    text: Any = begun.model.config.get_text_config()
    most = min(SAMPLE_TOKENS, recipe.row - 1)
    last = sample(begun.model, begun.tokenizer, session.settings.seed, SAMPLES, most)
    speed = recipe.tokens / taught.seconds
    return PretrainResult(
        **beside,
        version=name,
        begun_as=settings.start,
        parameters=sum(p.numel() for p in begun.model.parameters()),
        tokens=recipe.tokens,
        passes=recipe.tokens * dial.fresh_share(settings) / begun.corpus.tokens,
        advice=advice(taught.curves),
        loss_before=losses[0].nats,
        loss_after=losses[1].nats,
        bits_per_byte=losses[1].bits,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        row=recipe.row,
        steps=recipe.steps,
        batch=recipe.batch,
        documents=found.documents,
        text_bytes=found.bytes,
        duplicates=found.duplicates,
        documents_cut=found.cut,
        rows_cut=course.rows.cut,
        left_out=found.left_out or None,
        replayed=settings.replay_share if begun.replay else None,
        replay_bits_before=replay[0],
        replay_bits_after=replay[1],
        tokens_per_second=speed,
        flops_per_token=begun.flops,
        share_of_peak=speed * begun.flops / peak(begun.model.device, begun.model.dtype),
        muon_share=None if taught.muon_seconds is None else taught.muon_seconds / taught.seconds,
        samples=tuple(Written(step=step, text=one) for step, one in taught.samples)
        + tuple(Written(step=recipe.steps, text=one) for one in last),
        curves={name: tuple(values) for name, values in taught.curves.items()},
    )


def advice(curves: Mapping[str, Sequence[Any]]) -> str | None:
    """Say where the looks along the way were best, if that was not the last one, whose weights are kept."""
    pairs = zip(curves["held_out/bits_per_byte"], curves["tokens"], strict=True)
    looks = [(bits, tokens) for bits, tokens in pairs if bits is not None]
    least, tokens = min(looks)
    if tokens == looks[-1][1]:
        return None
    return (
        f"the text set aside was written best behind {tokens:,} tokens ({least:.3f} bits a byte, and {looks[-1][0]:.3f}"
        f" in the end, which is what was kept): set pretrain.tokens to {tokens}, or add text"
    )


def _keep(session: Session, name: str, begun: Begun, result: PretrainResult) -> None:
    """Write the version's folder, a whole model that plain transformers loads, then its row."""
    if name not in versions.names(session.workspace, VersionKind.PRETRAIN):
        with atomic_folder(session.workspace.models / name) as draft, quiet_transformers():
            begun.model.save_pretrained(draft)
            begun.tokenizer.save_pretrained(draft)
            weights = hashlib.sha256()
            for file in sorted(draft.glob("*.safetensors")):
                with file.open("rb") as opened:
                    hashlib.file_digest(opened, lambda: weights)
            version = Version(
                name=name,
                kind=VersionKind.PRETRAIN,
                base=session.settings.pretrain.start or name,
                trunk_hash=weights.hexdigest()[:16],
                cut=0,
                template_hash="",
                dtype=str(begun.model.dtype).removeprefix("torch."),
                created_at=now(),
                settings=asdict(session.settings),
                metrics=scalars(result),
            )
            versions.write_description(version, draft)
    ensure_rows(session)


def _refuse_unused(settings: PretrainSettings) -> None:
    """Raise MannersError for what was set and would not be used."""
    if settings.start is None and settings.replay is not None:
        raise MannersError("pretrain.replay is for a model that goes on: set pretrain.start, or leave replay out")
    if settings.start is not None and settings.vocabulary is not None:
        raise MannersError("a model that goes on keeps its tokenizer: leave out pretrain.vocabulary, or pretrain.start")


def _start(session: Session) -> Found | None:
    """Read the model to go on from, whole: any version of this workspace by its name, or what is found by another."""
    start = session.settings.pretrain.start
    if start is None:
        return None
    with quiet_transformers():
        return whole.find(session.workspace, start, torch.float32)


def _quick(some: tuple[Document, ...]) -> list[Document]:
    """Return the first documents that together have `QUICK` bytes; one at least."""
    chosen, size = list[Document](), 0
    for document in some:
        if chosen and size + len(document.text.encode()) > QUICK:
            break
        chosen.append(document)
        size += len(document.text.encode())
    return chosen
