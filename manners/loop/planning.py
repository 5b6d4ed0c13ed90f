"""What a stage will take, in memory and work: said before it starts, and refused where it cannot fit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedConfig

from manners.errors import MannersError
from manners.loop.session import Facts, Session
from manners.memory import free_memory
from manners.models.answer import WINDOW
from manners.models.branches import HEAD_CHUNK, Branch
from manners.models.compute import bucket_tokens
from manners.models.states import kept_bytes
from manners.models.surgery import layer_list
from manners.models.trunk import Trunk
from manners.models.weight_layout import laid_out_bytes
from manners.reward.data import LabelledPair, label
from manners.reward.train import CURVE_SHARES, divided
from manners.text import Batch, Packed, Rendered, TooLong, collate, pack
from manners.types import Comparison, PromptUse
from manners.workspace import INITIAL

LONGEST = 32
"""Exchanges, those of most characters, that are turned into tokens to find the longest."""
OVERHEAD = 150_000_000
"""Bytes that libraries keep for themselves, and that the allocator cannot give back between pieces in use: 0 to 170
million where it was measured (docs/decisions.md)."""
FLOAT = 4
"""Bytes of a float32: logits are never less."""
DRAWN_LOGIT = 5 * FLOAT
"""Bytes a logit takes while a token is drawn: as it comes, at temperature, less the maximum, exponentiated, padded."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory."""

    name: str
    size: int
    """Bytes."""
    lower: str
    """The setting that makes it smaller."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What is kept on the disk while a stage runs."""

    folder: Path
    needed: int
    """Bytes, at most."""
    free: int

    @property
    def facts(self) -> Facts:
        """Both figures."""
        return {"trunk_states_on_disk_bytes_at_most": self.needed, "disk_free_bytes": self.free}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage will take."""

    stage: str
    work: Facts
    model: int
    """Bytes of the model, which is loaded by now."""
    parts: tuple[Part, ...]
    """What comes on top of it, at the moment when most is held."""
    free: int | None
    """Bytes that may still be taken on the model's device; None where the system does not say."""
    disk: Disk | None = None

    @property
    def needed(self) -> int:
        """Bytes that are still to be taken, libraries and allocator included."""
        return OVERHEAD + sum(part.size for part in self.parts)

    @property
    def facts(self) -> Facts:
        """The plan in JSON's types."""
        memory = {"model": self.model} | {part.name: part.size for part in self.parts} | {"overhead": OVERHEAD}
        totals = {"memory_needed_bytes": self.needed, "memory_free_bytes": self.free}
        disk = self.disk.facts if self.disk else {}
        return {"stage": self.stage, **self.work, **disk, "memory_bytes": memory, **totals}


def announce(plan: Plan) -> None:
    """Print what each part will take on stderr.

    Raises MannersError where more is needed than is free: with the largest part, and the setting to lower. So it does
    for what is kept on the disk.
    """
    lines = [f"memory for {plan.stage}", f"{_megabytes(plan.model)}  model, loaded"]
    lines += [f"{_megabytes(part.size)}  {part.name.replace('_', ' ')} ({part.lower})" for part in plan.parts]
    free = "" if plan.free is None else f" of {plan.free / 1e6:,.0f} MB free"
    lines += [f"{_megabytes(OVERHEAD)}  overhead", f"{_megabytes(plan.needed)}  to be taken{free}"]
    if disk := plan.disk:
        lines += [f"{_megabytes(disk.needed)}  on the disk at most, of {disk.free / 1e6:,.0f} MB free in {disk.folder}"]
    print("\n".join(lines), file=sys.stderr)
    if plan.free is not None and plan.needed > plan.free:
        part = max(plan.parts, key=lambda part: part.size)
        raise MannersError(
            f"{plan.stage} needs about {plan.needed / 1e9:,.2f} GB more memory and {plan.free / 1e9:,.2f} GB is free:"
            f" the largest part is {part.name.replace('_', ' ')} with {part.size / 1e9:,.2f} GB; lower {part.lower}"
        )
    if disk and disk.needed > disk.free:
        raise MannersError(
            f"{plan.stage} keeps {disk.needed:,} bytes of trunk states in {disk.folder}, and {disk.free:,} are free"
            " there: make room on that disk, or set a lower reward.limit"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:9,.0f} MB"


def plan_sample(session: Session) -> Plan:
    """Memory of answering the training prompts."""
    longest, prompts = _prompts(session, PromptUse.TRAIN)
    sample = session.settings.sample
    distinct = min(-(-sample.batch // sample.answers), prompts[PromptUse.TRAIN]["fit"])
    drawing = _drawing(session, distinct * sample.answers, distinct, longest)
    parts = [Part("drawing_responses", drawing, "sample.batch")]
    if session.workspace.current_policy() != INITIAL:
        parts.append(Part("policy", _own(session.pretrained.trunk, head=True), "model.trainable_layers"))
    return _plan(session, "sample", {"prompts": prompts}, parts)


def plan_reward(session: Session, comparisons: Sequence[Comparison] | None = None) -> Plan:
    """Memory and forward-backward work of reward training; raises MannersError when there is nothing to learn from.

    It learns from these comparisons, or from all there are.
    """
    settings, trunk = session.settings.reward, session.pretrained.trunk
    pairs = label(session.store.comparisons() if comparisons is None else comparisons, settings.annotators).pairs
    split = divided(pairs, settings, session.settings.seed)
    learned = len(split.train)
    runs = settings.members * [learned] + [round(share * learned) for share in CURVE_SHARES if settings.curve]
    prompt, response = _longest_exchange(session, pairs)
    work: Facts = {
        "comparisons": len(pairs),
        "trained_on": learned,
        "optimizer_steps": settings.epochs * sum(-(-run // settings.batch) for run in runs),
        "pair_passes": settings.epochs * sum(runs),
    }
    together = pack([Rendered((0,) * prompt, (0,) * response)] * 2, trunk.compute.shares_prompts, 0)
    rows = min(settings.batch * len(together.ids), _rows(trunk.device, together.ids.shape[1]))
    step = _step(trunk, together, rows)
    parts = [
        Part("members", len(runs) * _own(trunk, head=True), "reward.members"),
        Part("gradient_and_adam", 3 * _own(trunk, head=False), "model.trainable_layers"),
        Part("forward_and_backward", step, "model.context"),
    ]
    disk = _disk(session, [*split.train, *split.held_out], prompt + response)
    return replace(_plan(session, "reward", work, parts), disk=disk)


def plan_policy(session: Session) -> Plan:
    """Memory and steps of PPO; of drawing responses and training on them, which alternate, the larger counts."""
    ppo, sample, trunk = session.settings.ppo, session.settings.sample, session.pretrained.trunk
    longest, prompts = _prompts(session, PromptUse.TRAIN, PromptUse.VALIDATE)
    separate, branch = ppo.value == "separate", _own(trunk, head=True)
    work: Facts = {
        "episodes": ppo.updates * ppo.batch,
        "optimizer_steps": ppo.updates * ppo.epochs * -(-ppo.batch // ppo.minibatch),
        "prompts": prompts,
    }
    # Of two sequences one is padded: attention may keep more then.
    widths, response = (longest, max(1, longest - 1)), (0,) * sample.max_new_tokens
    padded = collate([Rendered((0,) * width, response) for width in widths], 0)
    at_once = min(ppo.minibatch, _rows(trunk.device, padded.ids.shape[1]))
    step = _step(trunk, padded, at_once, temperature=1.0)
    training = Part("forward_and_backward", step, "sample.max_new_tokens")
    rows = max(ppo.batch, min(ppo.validation_prompts, prompts[PromptUse.VALIDATE]["fit"]))
    distinct = min(rows, max(prompts[use]["fit"] for use in prompts))
    drawing = Part("drawing_responses", _drawing(session, rows, distinct, longest), "ppo.batch")
    parts = [
        Part("policy_and_value", (1 + separate) * branch, "model.trainable_layers"),
        Part("gradient_and_adam", 3 * (branch + separate * _own(trunk, head=False)), "model.trainable_layers"),
        Part("best_version_kept", branch, "model.trainable_layers"),
        Part("reward_members", session.settings.reward.members * branch, "reward.members"),
        Part("rollout_states", _states(session, rows, longest), "ppo.batch"),
        max(drawing, training, key=lambda part: part.size),
    ]
    return _plan(session, "ppo", work, parts)


def plan_evaluate(session: Session) -> Plan:
    """Memory of answering the evaluation prompts with two versions, and of scoring the answers a batch at a time."""
    sample, evaluate, trunk = session.settings.sample, session.settings.evaluate, session.pretrained.trunk
    longest, prompts = _prompts(session, PromptUse.EVALUATE)
    distinct = min(-(-sample.batch // evaluate.samples), evaluate.prompts, prompts[PromptUse.EVALUATE]["fit"])
    rows = distinct * evaluate.samples
    drawing, length = _drawing(session, rows, distinct, longest), longest + sample.max_new_tokens
    scoring = _layer(trunk, _rows(trunk.device, length) * length) + _head(trunk)
    parts = [
        Part("policy", _own(trunk, head=True), "model.trainable_layers"),
        Part("reward_members", session.settings.reward.members * _own(trunk, head=True), "reward.members"),
        Part("trunk_states", _states(session, WINDOW * rows, longest), "sample.batch"),
        max(
            Part("drawing_responses", drawing, "sample.batch"),
            Part("scoring_responses", scoring, "sample.batch"),
            key=lambda part: part.size,
        ),
    ]
    return _plan(session, "evaluate", {"prompts": prompts}, parts)


def _plan(session: Session, stage: str, work: Facts, parts: list[Part]) -> Plan:
    trunk = session.pretrained.trunk
    model = session.pretrained.parameters * trunk.whole.dtype.itemsize
    free = torch.cuda.mem_get_info(trunk.device)[0] if trunk.device.type == "cuda" else free_memory()
    return Plan(stage, work, model, tuple(parts), free)


def _prompts(session: Session, *uses: PromptUse) -> tuple[int, Facts]:
    """Return the tokens of the longest prompt that leaves room for a response, and by use how many there are.

    `shortened` ones lose whole turns; those that `do_not_fit` are left out. Raises MannersError where none fits.
    """
    longest, counts = 1, Facts()
    for use in uses:
        fit = shortened = too_long = 0
        for stored in session.store.prompts(use):
            try:
                ids, dropped = session.pretrained.renderer.prompt_ids(
                    stored.dialogue, session.settings.sample.max_new_tokens
                )
            except TooLong:
                too_long += 1
                continue
            longest, fit, shortened = max(longest, len(ids)), fit + 1, shortened + (dropped > 0)
        if too_long and not fit:
            raise MannersError(
                f"none of the {too_long} prompts for `{use}` leaves room for a response: raise model.context"
                f" ({session.pretrained.renderer.context} tokens here), or lower sample.max_new_tokens"
            )
        counts[use] = {"fit": fit, "shortened": shortened, "do_not_fit": too_long}
    return longest, counts


def _longest_exchange(session: Session, pairs: tuple[LabelledPair, ...]) -> tuple[int, int]:
    """Return the tokens of prompt and response of the longest exchange, found among those of most characters."""
    exchanges = {(pair.prompt, side) for pair in pairs for side in (pair.left, pair.right)}
    characters = {e: sum(len(turn.text) for turn in e[0]) + len(e[1].text) for e in exchanges}
    chosen = sorted(exchanges, key=lambda e: -characters[e])[:LONGEST]
    rendered = [session.pretrained.renderer.render(*exchange) for exchange in chosen]
    longest = max(rendered, key=lambda r: r.length)
    return len(longest.prompt_ids), len(longest.response_ids)


def _disk(session: Session, pairs: Sequence[LabelledPair], longest: int) -> Disk:
    """Return what trunk states take on the workspace's disk: as if all were as long as the longest, if that fits.

    Only where it does not is every exchange turned into tokens, and counted.
    """
    runs, trunk = session.workspace.runs, session.pretrained.trunk
    folder = runs if runs.is_dir() else session.workspace.root
    free = shutil.disk_usage(folder).free
    if not trunk.cut:
        return Disk(folder, 0, free)
    most = 2 * len(pairs) * longest * trunk.width * FLOAT
    if most > free:
        exchanges = dict.fromkeys((pair.prompt, side) for pair in pairs for side in (pair.left, pair.right))
        most = kept_bytes([session.pretrained.renderer.render(*exchange) for exchange in exchanges], trunk.width)
    return Disk(folder, most, free)


def _own(trunk: Trunk, *, head: bool) -> int:
    """Bytes of a branch's own weights; a scalar branch keeps the language model's head, and does not train it."""
    if trunk.lora_rank:
        return sum(tensor.nbytes for tensor in Branch(trunk, trainable=True).own_tensors().values())
    idle = set() if head else {id(p) for p in trunk.whole.get_output_embeddings().parameters()}
    own = sum(p.numel() for p in trunk.whole.parameters() if id(p) in trunk.own - idle)
    return own * trunk.whole.dtype.itemsize


def _states(session: Session, rows: int, longest: int) -> int:
    """Bytes of the trunk states of so many prompts with responses; token ids where the trunk is empty."""
    trunk = session.pretrained.trunk
    tokens = rows * (longest + session.settings.sample.max_new_tokens)
    return tokens * (trunk.width * trunk.whole.dtype.itemsize if trunk.cut else 8)


def _drawing(session: Session, rows: int, distinct: int, longest: int) -> int:
    """Bytes of drawing a response in each of `rows`, to `distinct` prompts of at most `longest` tokens.

    Keys and values of every layer, those of the prompts twice while rows are seated; the logits of one token a row;
    what a layer holds while prompts are read; weights laid out for decoding.
    """
    trunk = session.pretrained.trunk
    config: PreTrainedConfig = trunk.whole.config.get_text_config()
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head: int = getattr(config, "head_dim", None) or trunk.width // config.num_attention_heads
    tokens = rows * (longest + session.settings.sample.max_new_tokens) + distinct * longest
    cache = 2 * len(layer_list(trunk.whole)) * tokens * heads * head * trunk.whole.dtype.itemsize
    reading = _layer(trunk, min(distinct, _rows(trunk.device, longest)) * longest)
    return cache + rows * int(config.vocab_size) * DRAWN_LOGIT + reading + laid_out_bytes(trunk.whole)


def _layer(trunk: Trunk, tokens: int) -> int:
    """Bytes that one layer holds while it reads so many tokens: about 4 times its width, and 3 times its inner one."""
    inner = getattr(trunk.whole.config.get_text_config(), "intermediate_size", None) or 4 * trunk.width
    return tokens * (4 * trunk.width + 3 * inner) * trunk.whole.dtype.itemsize


def _head(trunk: Trunk) -> int:
    """Bytes of the logits of one chunk of response tokens, with what their log-softmax and its backward add."""
    return 3 * HEAD_CHUNK * int(trunk.whole.config.get_text_config().vocab_size) * FLOAT


def _rows(device: torch.device, length: int) -> int:
    """How many sequences of a length go through one forward."""
    return max(1, bucket_tokens(device) // length)


def _step(trunk: Trunk, batch: Batch | Packed, rows: int, temperature: float | None = None) -> int:
    """Bytes of a forward and backward of a trained branch over so many rows like those of `batch`.

    What autograd keeps between the two is measured on `batch`: layers differ in it, and attention may keep more than a
    share a token. On top comes what one layer's backward holds; with a temperature, the head's log-probabilities too.
    """
    batch = batch.to(trunk.device)
    branch = Branch(trunk, trainable=trunk.lora_rank is not None)
    states = torch.zeros((*batch.ids.shape, trunk.width), dtype=trunk.whole.dtype) if trunk.cut else batch.ids

    def forward() -> Tensor:
        if temperature is None or isinstance(batch, Packed):
            return branch.final(states.to(trunk.device), batch)
        return branch.logprobs(branch.hidden(states.to(trunk.device), batch), batch, temperature)

    with _as_if_trained(trunk):
        kept = _kept_for_backward(trunk, forward) * rows // len(batch.ids)
    return kept + _layer(trunk, rows * batch.ids.shape[1]) + (0 if temperature is None else _head(trunk))


@contextmanager
def _as_if_trained(trunk: Trunk) -> Iterator[None]:
    """Have the frozen model's upper part record what a trained copy of it would, without making the copy.

    Where branches own adapters only, nothing pretends: the adapters themselves are there, and small.
    """
    own = [parameter for parameter in trunk.whole.parameters() if id(parameter) in trunk.own]
    for parameter in own:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(False)


def _kept_for_backward(trunk: Trunk, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps between a forward and its backward, the model's own weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in trunk.whole.parameters()}
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with saved_tensors_hooks(note, lambda saved: saved):
        result = forward()
    del result  # until here it held what was kept, so that no address came up twice
    return sum(size for address, size in kept.items() if address not in weights)
