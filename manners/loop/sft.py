"""Learning from examples: the form of an answer, taught before anybody compares answers; kept as a version."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import examples
from manners.loop.keep import keep
from manners.loop.plan import Disk, Part, Plan, make_plan
from manners.loop.prompts import as_begun, until
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs, Options
from manners.loop.verdicts import VERDICT, VerdictInputs, serving, verdict_inputs
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.cost import drawing_bytes, own_bytes, rows_at_once, states_bytes, step_bytes, text_head_bytes
from manners.models.packing import pack
from manners.models.states import kept_bytes
from manners.models.trunk import Trunk
from manners.results.phases import AnsweredExample, SFTResult
from manners.sft import measure
from manners.sft.data import as_rows
from manners.sft.examples import LaidOut, Learned, LeftOut, answer_of, lay_out, prompt_of
from manners.sft.train import Split, Trained, split, train
from manners.store import Newest
from manners.templates import CHATML
from manners.text import Rendered, TooLong
from manners.training import training_bytes
from manners.types import Dialogue, VersionKind, opening
from manners.workspace import INITIAL, scratch_folder

SHOWN = 12
"""Prompts set aside that are answered before and after."""
RESAMPLES = 2000
"""Behind every interval."""


@dataclass(frozen=True, kw_only=True)
class SFTInputs(Inputs):
    """What a version learns from."""

    found: examples.Found
    laid: LaidOut
    parts: Split


def inputs(session: Session, _: Options, begun: Mapping[str, Any]) -> SFTInputs:
    """Gather the examples, and lay them out by the model's template, or by ChatML where it has none.

    Those of the store, and what is kept from training, are what it held when the run that goes on was begun: what came
    since is for the next.
    """
    record = _record(session, begun)
    upto = record.upto if record else as_begun(session, begun)
    found, laid, parts = _gathered(session, record, upto)
    for reason, count in laid.left_out.items():
        print(f"{count:,} left out: {reason}", file=sys.stderr)
    if laid.first:
        print(f"the first: {laid.first}", file=sys.stderr)
    learned = sum(one.learned for one in laid.sequences)
    reward = session.settings.reward
    chosen: Facts = {"reward.annotators": reward.annotators, "reward.user_share": reward.user_share}
    chosen |= {"reward.account_share": reward.account_share, "reward.set_aside": reward.set_aside}
    decides = {
        **({**record.decides, **chosen, **serving(session, begun, "share_chats")} if record else until(upto)),
        "the examples": f"{len(laid.examples)} dialogues, {learned} tokens ({digest(laid.sequences)})",
    }
    return SFTInputs(decides=decides, found=found, laid=laid, parts=parts)


def _record(session: Session, begun: Mapping[str, Any]) -> VerdictInputs | None:
    """Return the verdicts that examples are taken from; None where a file has them."""
    if examples.in_a_file(session.settings.sft):
        return None
    try:
        return verdict_inputs(session, begun, "sft")
    except MannersError as error:
        if VERDICT in begun:
            raise
        raise MannersError(f"{error}; or name a file of dialogues with sft.examples") from error


def _gathered(
    session: Session, record: VerdictInputs | None, upto: Newest | None = None
) -> tuple[examples.Found, LaidOut, Split]:
    found = examples.gather(session, record.comparisons if record else ())
    examples.tell(found)
    session.give_template()
    laid = lay_out(session.pretrained.renderer, found.examples, session.store.kept_openings(upto))
    return found, laid, split(laid, session.settings.sft, session.settings.seed)


def plan(session: Session, inputs: SFTInputs | None = None) -> Plan:
    """Memory, steps and tokens of learning from examples; raises MannersError where there are none."""
    settings = session.settings
    parts = inputs.parts if inputs else _gathered(session, _record(session, {}))[2]
    trunk = session.pretrained.trunk
    dialogues = len({one.example for one in parts.train})
    work: Facts = {
        "dialogues": dialogues,
        "set_aside": len({one.example for one in parts.held_out}),
        "tokens_read": sum(len(one.ids) for one in parts.train),
        "tokens_learned": sum(one.learned for one in parts.train),
        "optimizer_steps": settings.sft.epochs * -(-dialogues // settings.sft.batch),
    }
    every = [*parts.train, *parts.held_out]
    longest = max(len(one.ids) for one in every)
    learning = memory_parts(trunk, longest)
    drawn = drawing_bytes(trunk, SHOWN, SHOWN, longest, settings.sample.max_new_tokens)
    drawing = [learning[0], Part("drawing_responses", drawn, "sample.max_new_tokens")]
    needed = max(learning, drawing, key=lambda some: sum(part.size for part in some))
    return make_plan(session, "sft", work, needed, _disk(session, every))


def memory_parts(trunk: Trunk, longest: int) -> list[Part]:
    """What training takes beside the model, where the longest dialogue has so many tokens."""
    own = own_bytes(trunk, head=True)
    length = max(longest, 2)
    batch = pack([Rendered((), (0,) * length)] * 2, False, 0)
    rows = rows_at_once(trunk, length)
    tokens = max(length, trunk.compute.bucket_tokens)
    return [
        Part("branch", own, "model.trainable_layers"),
        Part("gradient_and_adam", training_bytes(own, trunk.whole.dtype), "model.trainable_layers"),
        Part("forward_and_backward", step_bytes(trunk, batch, rows) + text_head_bytes(trunk, tokens), "model.context"),
        Part("trunk_states", states_bytes(trunk, tokens), "model.context"),
    ]


def _disk(session: Session, sequences: Sequence[Learned]) -> Disk:
    """Return what trunk states take on the workspace's disk."""
    trunk = session.pretrained.trunk
    needed = kept_bytes(as_rows(sequences), trunk) if trunk.cut and trunk.keeps_states else 0
    runs = session.workspace.runs
    folder = runs if runs.is_dir() else session.workspace.root
    return Disk(folder, needed, shutil.disk_usage(folder).free)


def run(session: Session, run: Run, inputs: SFTInputs) -> SFTResult:
    """Train a branch on the examples, measure it on those set aside, and keep it as a version."""
    settings = session.settings
    name = run.state.setdefault("version", session.next_version_name(VersionKind.SFT))
    # 1. A branch learns; loss and accuracy on what was set aside, before and after.
    with scratch_folder(session.workspace.runs / "trunk-states") as folder:
        trained = train(settings.sft, settings.seed, session.pretrained, inputs.parts, run, folder)
    # 2. The same prompts answered before and after.
    shown = _answered(session, inputs, trained.branch, name)
    # 3. A version.
    result = _result(session, inputs, trained, name, shown)
    keep(session, name, trained.branch, result, parent=INITIAL, kind=VersionKind.SFT)
    return result


def _answered(session: Session, inputs: SFTInputs, branch: Branch, name: str) -> tuple[AnsweredExample, ...]:
    """Answer some of the prompts that were set aside with the initial model and with the version."""
    settings, renderer = session.settings, session.pretrained.renderer
    private = frozenset[Dialogue]() if settings.serve.share_chats else session.store.only_in_chats()
    chosen = []
    for number in sorted({one.example for one in inputs.parts.held_out}):
        example = inputs.laid.examples[number]
        if inputs.found.source == examples.STORE and prompt_of(example) in private:
            continue
        try:
            renderer.prompt_ids(prompt_of(example), settings.sample.max_new_tokens)
        except TooLong:
            continue
        chosen.append(example)
    step = max(1, len(chosen) // SHOWN)
    chosen = chosen[::step][:SHOWN]
    if not chosen:
        return ()
    prompts = [prompt_of(example) for example in chosen]
    said = []
    for policy, author in ((Branch(session.pretrained.trunk, trainable=False), INITIAL), (branch, name)):
        texts = [""] * len(prompts)
        for some in answer(policy, session.pretrained, prompts, 1, settings.sample, settings.seed, author):
            for at, given in zip(some.places, some.answers, strict=True):
                texts[at] = given.response.text
        said.append(texts)
    return tuple(
        AnsweredExample(prompt=prompt_of(example)[-1].text, example=answer_of(example), before=before, after=after)
        for example, before, after in zip(chosen, *said, strict=True)
    )


def _result(
    session: Session, inputs: SFTInputs, trained: Trained, name: str, shown: tuple[AnsweredExample, ...]
) -> SFTResult:
    laid, parts, seed = inputs.laid, inputs.parts, session.settings.seed
    openings = [opening(laid.examples[one.example].dialogue) for one in parts.held_out]
    before, after, tokens = trained.before, trained.after, trained.before.tokens
    beside = openings, RESAMPLES, seed
    left_out = {str(reason): n for reason, n in laid.left_out.items()} | dict(inputs.found.passed)
    if parts.past_limit:
        left_out[str(LeftOut.LIMIT)] = parts.past_limit
    chosen = session.pretrained.chosen
    return SFTResult(
        version=name,
        source=inputs.found.source,
        dialogues=len({one.example for one in parts.train}),
        set_aside=len({one.example for one in parts.held_out}),
        turns=sum(len(one.spans) for one in parts.train),
        tokens=trained.tokens,
        loss_before=before.loss,
        loss_after=after.loss,
        loss_change=measure.change(before.nats, after.nats, tokens, *beside),
        loss_before_interval=measure.mean(before.nats, tokens, *beside),
        loss_after_interval=measure.mean(after.nats, tokens, *beside),
        accuracy_before=measure.mean(before.right, tokens, *beside),
        accuracy_after=measure.mean(after.right, tokens, *beside),
        accuracy_change=measure.change(before.right, after.right, tokens, *beside),
        losses=trained.losses,
        advice=advice(trained),
        epochs=session.settings.sft.epochs,
        optimizer_steps=trained.optimizer_steps,
        tokens_per_second=trained.tokens_per_second,
        left_out=left_out,
        first_left_out=laid.first or None,
        apart=laid.apart,
        template=CHATML if chosen is not None and chosen.chat_template == CHATML else None,
        examples=shown,
    )


def advice(trained: Trained) -> str | None:
    """Say what the losses after each pass say of `sft.epochs`; None where they say nothing."""
    best = min(range(len(trained.losses)), key=trained.losses.__getitem__) + 1
    if min(trained.losses) >= trained.before.loss:
        return f"no pass made the loss on what was set aside smaller: look at the examples, or {trained.lower}"
    if best < len(trained.losses):
        return f"the loss on what was set aside was lowest after pass {best}: set sft.epochs to {best}"
    return None
