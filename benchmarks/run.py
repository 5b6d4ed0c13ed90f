"""Run the benchmarks: `python -m benchmarks.run`. Ours and the peer take turns; ratios are taken within a round."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import tyro

from benchmarks import publish
from benchmarks.contender import DPOTask, GenerateTask, Ids, Measurement, PPOTask, RewardTask, SFTTask
from benchmarks.prepare import Inputs, Request
from benchmarks.processes import Contender, Task, measure, measure_peak, pairs_file, prepare
from benchmarks.publish import Row, processor

TRL_PPO, TRL_REWARD = "TRL 1.12.0 PPOTrainer", "TRL 1.16.0 RewardTrainer"
TRL_SFT, TRL_DPO = "TRL 1.16.0 SFTTrainer, packed", "TRL 1.16.0 DPOTrainer"
GENERATE = "Hugging Face generate, transformers 5.23.0"
SET_ASIDE = 0.02
"""Ours always sets pairs aside and scores them; as few as it can, since the peer is not timed doing so."""
OTHERS = 100
"""Dialogues that learning from dialogues is measured with; that is not timed."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    only: tuple[str, ...] = ()
    """Names of benchmarks, such as `ppo_k6`; all of them if none is named."""
    rounds: int = 3
    """How often ours and the peer take turns."""
    threads: int = os.cpu_count() or 1
    """Threads of every contender."""
    pairs: int = 66
    """Pairs of `reward_1`, `reward_3`, `dpo_k6` and `dpo_all`."""
    quick: bool = False
    """Sizes that show only that everything runs; nothing is published."""


@dataclass(frozen=True)
class Group:
    """Benchmarks of one stage against one peer, which runs once a round for all of them."""

    stage: str
    """The module of both contenders: `benchmarks.ours.<stage>` and `benchmarks.peers.<stage>`."""
    environment: str
    peer_name: str
    unit: str
    peer: Task
    ours: Mapping[str, Task]
    """By name of the benchmark."""


def main(options: Options) -> None:
    """Prepare, measure, and publish each group as soon as it is measured."""
    with tempfile.TemporaryDirectory(prefix="manners-benchmark-") as scratch:
        folder = Path(scratch)
        counts = (12, 4) if options.quick else (options.pairs, OTHERS)
        request = Request(scratch, pairs_file(), counts[0], SET_ASIDE, others=counts[1])
        inputs = prepare(request, options.threads)
        for group in chosen(
            [ppo(inputs, options.quick), reward(inputs), sft(inputs), dpo(inputs), *generate(inputs, options.quick)],
            options.only,
        ):
            rows = list(compare(group, options, folder))
            print(publish.table(rows))
            if not options.quick:
                publish.publish(rows)
    if not options.quick:
        publish.replace_between(publish.PAGE, "prompts", publish.histogram([len(ids) for ids in inputs.chat]))


def chosen(groups: Sequence[Group], only: Sequence[str]) -> list[Group]:
    """Leave out what was not asked for, by name of the benchmark."""
    names = [name for group in groups for name in group.ours]
    if unknown := set(only) - set(names):
        raise SystemExit(f"--only: there is no benchmark {unknown.pop()} (there are: {', '.join(names)})")
    kept = [replace(g, ours={name: task for name, task in g.ours.items() if not only or name in only}) for g in groups]
    return [group for group in kept if group.ours]


def ppo(inputs: Inputs, quick: bool) -> Group:
    """PPO: 16 prompts a batch, 48 new tokens, 4 epochs; three updates, of which the first is not timed."""
    batch, updates, new_tokens, epochs, micro = (4, 2, 4, 1, 2) if quick else (16, 3, 48, 4, 4)
    whole = PPOTask(
        model=inputs.model,
        prompts=inputs.chat[: batch * (updates + 1)],
        updates=updates,
        batch=batch,
        new_tokens=new_tokens,
        epochs=epochs,
        micro=micro,
        trainable_layers="all",
        value="separate",
        members=1,
    )
    ours = {"ppo_k6": replace(whole, trainable_layers=6, value="shared", members=3), "ppo_all": whole}
    return Group("ppo", "trl-1.12.0", TRL_PPO, "episodes/s", whole, ours)


def reward(inputs: Inputs) -> Group:
    """Reward training: one pass over the same pairs."""
    one = reward_task(inputs, SET_ASIDE)
    ours = {"reward_1": one, "reward_3": replace(one, members=3)}
    return Group("reward", "trl-1.16.0", TRL_REWARD, "pairs/s", one, ours)


def reward_task(inputs: Inputs, set_aside: float) -> RewardTask:
    """One pass over the prepared pairs, in batches of 8."""
    return RewardTask(
        model=inputs.model,
        comparisons=inputs.comparisons,
        train=inputs.train,
        held_out=inputs.held_out,
        set_aside=set_aside,
        batch=8,
        micro=8,
        trainable_layers=6,
        members=1,
    )


def sft(inputs: Inputs) -> Group:
    """Learning from dialogues: one pass over the preferred side of the same pairs."""
    train = [pair[0] for pair in inputs.train]
    whole = SFTTask(
        model=inputs.model,
        train=train,
        starts=inputs.starts[: len(train)],
        held_out=inputs.others,
        held_starts=inputs.others_starts,
        batch=8,
        row=512,
        trainable_layers="all",
    )
    ours = {"sft_k6": replace(whole, trainable_layers=6), "sft_all": whole}
    return Group("sft", "trl-1.16.0", TRL_SFT, "tokens/s", whole, ours)


def dpo(inputs: Inputs) -> Group:
    """DPO: one pass over the same pairs; reference and policy are two whole models of the peer."""
    whole = DPOTask(
        model=inputs.model,
        comparisons=inputs.comparisons,
        train=inputs.train,
        prompt_tokens=inputs.starts[: len(inputs.train)],
        set_aside=SET_ASIDE,
        batch=8,
        micro=8,
        trainable_layers="all",
    )
    return Group(
        "dpo", "trl-1.16.0", TRL_DPO, "pairs/s", whole, {"dpo_k6": replace(whole, trainable_layers=6), "dpo_all": whole}
    )


def generate(inputs: Inputs, quick: bool) -> Iterator[Group]:
    """Drawing: in a batch and alone; and apart from these, with prompts in common, and with responses that end."""

    def group(name: str, prompts: list[Ids], repeats: int, new_tokens: int = 64, finish: bool = False) -> Group:
        task = GenerateTask(inputs.model, prompts, new_tokens, repeats, finish)
        if quick:
            task = replace(task, prompts=prompts[:4], repeats=1, new_tokens=4)
        return Group("generate", "trl-1.16.0", GENERATE, "tokens/s", task, {name: task})

    yield group("generate_32", inputs.plain[:32], repeats=1)
    yield group("generate_1", inputs.plain[:1], repeats=3)
    yield group("generate_shared_prompts", [ids for ids in inputs.chat[:8] for _ in range(4)], repeats=1)
    yield group("generate_row_removal", inputs.chat[:32], repeats=1, new_tokens=128, finish=True)


def compare(group: Group, options: Options, folder: Path) -> Iterator[Row]:
    """Let the contenders of a group take turns, each round in the other order, and yield a row for each of ours."""
    contenders = {name: Contender(f"benchmarks.ours.{group.stage}", task) for name, task in group.ours.items()}
    contenders["peer"] = Contender(f"benchmarks.peers.{group.stage}", group.peer, group.environment)
    found: dict[str, list[Measurement]] = {name: [] for name in contenders}
    peaks = []
    for turn in range(1 if options.quick else options.rounds):
        peaks.append(measure_peak(options.threads))
        for name in list(contenders) if turn % 2 == 0 else reversed(contenders):
            measured = measure(seeded(contenders[name], turn), options.threads, folder)
            found[name].append(measured)
            memory = measured.memory_bytes / 1e9
            loss = "" if measured.loss is None else f", held-out loss {measured.loss:.4f}"
            print(
                f"round {turn + 1}, {name}: {measured.speed:.3f} {group.unit}, {memory:.2f} GB{loss}", file=sys.stderr
            )
    for name in group.ours:
        yield row(name, group.unit, group.peer_name, found[name], found["peer"], median(peaks))


def seeded(contender: Contender, turn: int) -> Contender:
    """Give a round its own seed, the same for all contenders; work that draws nothing has none."""
    if not isinstance(contender.task, SFTTask):
        return contender
    return replace(contender, task=replace(contender.task, seed=turn))


def row(name: str, unit: str, peer_name: str, ours: list[Measurement], peer: list[Measurement], peak: float) -> Row:
    """Sum the rounds of a benchmark up; `peak` is in operations a second."""
    ratios = [a.speed / b.speed for a, b in zip(ours, peer, strict=True)]
    ours_memory, peer_memory = (round(median(m.memory_bytes for m in side)) for side in (ours, peer))
    return Row(
        name=name,
        processor=processor(),
        ratio=median(ratios),
        spread=(min(ratios), max(ratios)),
        memory_ratio=ours_memory / peer_memory,
        ours=median(m.speed for m in ours),
        peer=median(m.speed for m in peer),
        unit=unit,
        peer_name=peer_name,
        ours_memory_bytes=ours_memory,
        peer_memory_bytes=peer_memory,
        peak_gflops=peak / 1e9,
        share_of_peak=shares(ours, peak),
        peer_share_of_peak=shares(peer, peak),
        rounds=len(ratios),
        before=ours[0].before,
        losses=[(a.loss, b.loss) for a, b in zip(ours, peer, strict=True) if a.loss is not None and b.loss is not None],
    )


def shares(rounds: list[Measurement], peak: float) -> dict[str, float]:
    """Share of the machine's peak that each part reached; median over the rounds."""
    return {
        part: median(m.parts[part].flops / m.parts[part].seconds / peak for m in rounds) for part in rounds[0].parts
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
