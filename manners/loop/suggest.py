"""Settings that fit a model, the data at hand and this machine, each with its reason.

Context and length of an answer come from the data. Then the plans of all stages are made for the model on paper, with
the arithmetic that `--plan` shows. While one of them takes more than there is, the largest of its parts that can be
made smaller is, by the setting which the plan names for it.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from manners.errors import MannersError
from manners.loop import dpo, evaluate, ppo, reward, sample
from manners.loop.lengths import AtHand, at_hand, of_file, renderer_of
from manners.loop.plan import Part, Plan, free_on
from manners.loop.session import Session
from manners.models import whole
from manners.models.cost import states_bytes
from manners.models.paper import Outline, outline, paper, trunk_on_paper
from manners.models.pretrained import pick_device
from manners.settings import Settings
from manners.settings_load import to_toml
from manners.terminal import in_one_line
from manners.workspace import Workspace

MARGIN = 0.9
"""Share of the free memory that plans may take: what a stage really takes may be a ninth more (`test_planning.py`)."""
CONTEXT, NEW_TOKENS = 1024, 256
"""What is taken without data."""
SHARES = (1.0, 0.99, 0.95, 0.9)
"""Of the dialogues, how many a context holds whole; the first that there is memory for."""
RANK = 16
GPU_ROWS = 256
"""Answers drawn side by side on a GPU, where few take as long as many."""
FEWEST = 16
"""Rows below which batches are not halved."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One setting, and why."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Machine:
    """What there is to take."""

    device: torch.device
    free: int | None
    """Bytes of memory; None where the system does not say, and then everything fits."""
    disk: int
    """Bytes on the disk."""


def machine_of(device: str, folder: Path) -> Machine:
    """Look at the machine: the memory of a device, and the disk of the first folder above one that is there."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    chosen = pick_device(device)
    return Machine(chosen, free_on(chosen), shutil.disk_usage(there).free)


@dataclass
class _Search:
    """Settings on their way to what fits, with the reasons so far."""

    outline: Outline
    data: AtHand
    machine: Machine
    settings: Settings
    reasons: dict[str, str] = field(default_factory=dict)
    share: int = 0
    """Index into SHARES."""

    def choose(self, name: str, value: Any, reason: str) -> None:
        """Set `stage.field`, and say why."""
        stage, _, entry = name.partition(".")
        record = replace(getattr(self.settings, stage), **{entry: value})
        self.settings = replace(self.settings, **{stage: record})
        self.reasons[name] = reason


def suggest(outline: Outline, data: AtHand, machine: Machine, settings: Settings) -> list[Suggestion]:
    """Return what to set for a model, the data at hand and a machine, in the order of the settings' records.

    Raises MannersError where nothing fits: with the stage, what it takes at least, and what there is.
    """
    search = _Search(outline, data, machine, settings)
    _from_data(search)
    _from_machine(search)
    plans = _plans(search)
    while over := next((plan for plan in plans if not _fits(plan, machine)), None):
        if not any(_lower(search, part, over) for part in _by_size(over)):
            raise MannersError(
                f"{settings.model.name} is too large for this machine: `{over.stage}` takes {_gb(_total(over))} of"
                f" memory at least, and {_gb(machine.free or 0)} is free; use a smaller model"
            )
        plans = _plans(search)
    _say_room(search, plans)
    return [
        Suggestion(f"{stage}.{entry}", getattr(getattr(search.settings, stage), entry), reason)
        for stage, entry, reason in ((*name.split("."), why) for name, why in search.reasons.items())
    ]


def for_file(
    settings: Settings, folder: Path, comparisons: Path | None, mapping: Mapping[str, str]
) -> list[Suggestion]:
    """Return what to set for a model, and for the comparisons of a file that are to be imported, if there is one."""
    described = outline(settings.model.name)
    data = (
        AtHand("no data")
        if comparisons is None
        else of_file(comparisons, renderer_of(described.tokenizer, settings.model), mapping)
    )
    return suggest(described, data, machine_of(settings.model.device, folder), settings)


def for_workspace(workspace: Workspace, settings: Settings) -> list[Suggestion]:
    """Return what to set for the model of a workspace, and for what is in its store."""
    store = Session(workspace, settings).store
    described = whole.outline(workspace, settings.model.name)
    comparisons = store.comparisons()
    prompts = [stored.dialogue for stored in store.prompts()]
    data = AtHand("no data")
    if comparisons or prompts:
        source = f"this workspace ({len(comparisons):,} comparisons, {len(prompts):,} prompts)"
        data = at_hand(comparisons, prompts, renderer_of(described.tokenizer, settings.model), source)
    return suggest(described, data, machine_of(settings.model.device, workspace.root), settings)


def as_toml(name: str, suggestions: Sequence[Suggestion]) -> str:
    """Write suggestions as a `manners.toml`, each under its reason."""
    lines = [
        "# Chosen by `manners init` for the model, the data and the machine at hand; `manners settings --suggest`",
        "# shows what it would be now, and `manners settings` what else there is.",
        "",
        "[model]",
        f"name = {to_toml(name)}",
    ]
    stages = dict.fromkeys(["model", *(s.field.partition(".")[0] for s in suggestions)])
    for stage in stages:
        lines += [] if stage == "model" else ["", f"[{stage}]"]
        for one in suggestions:
            if one.field.startswith(f"{stage}."):
                lines += textwrap.wrap(in_one_line(one.reason), 110, initial_indent="# ", subsequent_indent="# ")
                lines.append(f"{one.field.partition('.')[2]} = {to_toml(one.value)}")
    return "\n".join(lines) + "\n"


def _from_data(search: _Search) -> None:
    """Choose the length of an answer, and the context."""
    data, limit = search.data, search.outline.positions
    longest_answer = min(NEW_TOKENS, limit // 2) if limit else NEW_TOKENS
    reason = "no responses are at hand: the default"
    if data.responses:
        usual = data.quantile(data.responses, 0.95)
        longest_answer = min(_up(usual, 16), limit // 2 if limit else usual + 16)
        reason = f"95 of 100 responses of {data.source} have at most {usual:,} tokens"
    search.choose("sample.max_new_tokens", longest_answer, reason)
    _context(search)


def _context(search: _Search, because: str = "") -> None:
    """Choose the context for the share of the dialogues that is to be whole."""
    data, limit = search.data, search.outline.positions
    of_model = f"; the model takes up to {limit:,}" if limit else ""
    new_tokens = search.settings.sample.max_new_tokens
    lengths = [prompt + max(answer, new_tokens) for prompt, answer in data.exchanges]
    if not lengths:
        context = min(CONTEXT, limit or CONTEXT)
        search.choose("model.context", context, f"no dialogues are at hand: the default{of_model}")
        return
    wanted = _up(data.quantile(lengths, SHARES[search.share]), 64)
    context = max(16, min(wanted, limit or wanted))
    longer = sum(length > context for length in lengths)
    fits = f"{longer:,} of {len(lengths):,} are longer and are shortened" if longer else "all fit"
    reason = f"the longest dialogue of {data.source} takes {max(lengths):,} tokens with its answer; {fits}{of_model}"
    search.choose("model.context", context, reason + because)


def _from_machine(search: _Search) -> None:
    """Choose the number format, the cut and the batches to begin with."""
    on_gpu = search.machine.device.type == "cuda"
    where = "on a GPU" if on_gpu else f"on {search.machine.device.type}"
    format_reason = "half the memory, and a GPU computes in it" if on_gpu else f"{where} it is exact, and as fast"
    search.choose("model.dtype", "bfloat16" if on_gpu else "float32", format_reason)
    layers = search.outline.layers
    cut = min(4, layers - 1) or "all"
    search.choose("model.trainable_layers", cut, f"of {layers}")
    rows = GPU_ROWS if on_gpu else search.settings.sample.batch
    search.choose("sample.batch", rows, f"answers drawn side by side {where}; changes speed and memory only")
    search.choose("ppo.batch", search.settings.ppo.batch, "responses to an update")


def _plans(search: _Search) -> list[Plan]:
    """Make the plans of all stages on paper; the model is a part of each, as it is still to be loaded."""
    settings, data = search.settings, search.data
    context, new_tokens = settings.model.context, settings.sample.max_new_tokens
    prompt, answer = max(data.exchanges, key=sum, default=(context - new_tokens, new_tokens))
    answer = max(1, min(answer, context // 2, context - 1))
    prompt = max(1, min(prompt, context - answer))
    longest = max(1, min(max(data.prompts, default=context), context - new_tokens))
    count = _prompts(search)
    rows = ppo.rows_drawn(settings.ppo, count)
    at_once = min(-(-settings.sample.batch // settings.evaluate.samples), settings.evaluate.prompts)
    watched = min(settings.dpo.validation_prompts, count)
    with paper():
        trunk = trunk_on_paper(search.outline.config, settings.model, search.machine.device)
        model = sum(parameter.nbytes for parameter in trunk.whole.parameters())
        needed = {
            "sample": sample.memory_parts(trunk, settings.sample, count, longest),
            "reward": reward.memory_parts(trunk, settings.reward, prompt, answer),
            "ppo": ppo.memory_parts(trunk, settings, rows, min(rows, count), longest),
            "dpo": dpo.memory_parts(trunk, settings, prompt, answer, watched, longest),
            "evaluate": evaluate.memory_parts(trunk, settings, at_once, 1, longest),
        }
        kept = states_bytes(trunk, 2 * data.pairs * (sum(map(sum, data.exchanges)) // max(1, len(data.exchanges))))
    if trunk.cut and settings.model.trunk_states == "kept" and kept > MARGIN * search.machine.disk:
        reason = f"kept they would take {_gb(kept)} of {_gb(search.machine.disk)} free on the disk"
        search.choose("model.trunk_states", "recomputed", reason)
    return [Plan(stage, {}, model, tuple(parts), search.machine.free) for stage, parts in needed.items()]


def _prompts(search: _Search) -> int:
    """Return how many prompts are asked about at most."""
    return max(2, search.data.distinct) if search.data.distinct else search.settings.ppo.most_episodes


def _total(plan: Plan) -> int:
    return plan.model + plan.needed


def _fits(plan: Plan, machine: Machine) -> bool:
    return machine.free is None or _total(plan) <= MARGIN * machine.free


def _by_size(plan: Plan) -> list[Part]:
    """Return the parts of a plan, largest first; the model last, whose format is the last thing to change."""
    return [*sorted(plan.parts, key=lambda part: -part.size), Part("model", plan.model, "model.dtype")]


def _lower(search: _Search, part: Part, plan: Plan) -> bool:
    """Make a part of a plan smaller by the setting that the plan names, if it can be; return whether it was.

    What costs time goes before what costs quality, and what is learnt before what is read.
    """
    model, ppo_settings, members = search.settings.model, search.settings.ppo, search.settings.reward.members
    validated = ppo.rows_drawn(replace(ppo_settings, batch=2), _prompts(search))
    over = f"`{plan.stage}` would take {_gb(_total(plan))} of {_gb(search.machine.free or 0)} free without"
    match part.lower:
        case "model.context" | "sample.max_new_tokens" if not model.recompute:
            search.choose("model.recompute", True, f"{over}; a third more time")
        case "model.context" | "sample.max_new_tokens" if search.data.exchanges and search.share + 1 < len(SHARES):
            search.share += 1
            _context(search, f"; with a longer one {over.removesuffix(' without')}")
        case "ppo.batch" if ppo_settings.batch > max(FEWEST, ppo_settings.answers, validated):
            answers, half = ppo_settings.answers, ppo_settings.batch // 2
            half = half // answers * answers or half  # no prompt with a single answer is left over
            search.choose("ppo.minibatch", min(ppo_settings.minibatch, half), "no more than a batch")
            search.choose("ppo.batch", half, f"responses to an update; {over} halving it")
        case "ppo.validation_prompts" if ppo_settings.validation_prompts // 2 >= FEWEST:
            half = ppo_settings.validation_prompts // 2
            search.choose("ppo.validation_prompts", half, f"prompts that versions are chosen by; {over} halving it")
        case "dpo.validation_prompts" if search.settings.dpo.validation_prompts // 2 >= FEWEST:
            half = search.settings.dpo.validation_prompts // 2
            search.choose("dpo.validation_prompts", half, f"prompts that DPO is watched with; {over} halving it")
        case "sample.batch" if search.settings.sample.batch // 2 >= FEWEST:
            search.choose("sample.batch", search.settings.sample.batch // 2, f"{over} halving it; changes no answer")
        case "reward.members" if search.settings.reward.curve:
            search.choose("reward.curve", False, f"{over}; what more comparisons would buy is then not measured")
        case "reward.members" | "model.trainable_layers" if model.lora_rank is None:
            search.choose("model.lora_rank", RANK, f"adapters in the place of copies of the layers: {over}")
        case "reward.members" if members > 1:
            search.choose("reward.members", 1, f"{over}; where members differ is then not known")
        case "model.dtype" if model.dtype == "float32":
            search.choose("model.dtype", "bfloat16", f"{over}; half the memory of the model, slower on many CPUs")
        case _:
            return False
    return True


def _say_room(search: _Search, plans: Sequence[Plan]) -> None:
    """Put beside the cut what the stages will take with everything that was chosen."""
    free = search.machine.free
    takes = ", ".join(f"`{plan.stage}` {_gb(_total(plan))}" for plan in plans)
    room = "" if free is None else f" of {_gb(free)} free"
    search.reasons["model.trainable_layers"] += f"; memory with all of this: {takes}{room}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def _up(number: int, step: int) -> int:
    return ceil(number / step) * step
