"""Our contenders run on a tiny model, and the operations that they claim are those that torch counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contender, flops, prepare
from benchmarks.contender import GenerateTask, Measurement, PPOTask, RewardTask
from benchmarks.ours import generate, ppo, reward
from benchmarks.prepare import Inputs, Request
from tests.worlds import save_tiny, tiny_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("benchmark")
    model = save_tiny(folder / "tiny", num_hidden_layers=8, max_position_embeddings=1024)
    run(prepare.main, Request(str(folder), None, 12, 0.2, str(model)), folder)
    return prepare.read_inputs(folder)


def run(main: Callable[[], None], task: Request | PPOTask | RewardTask | GenerateTask, folder: Path) -> None:
    """Call a contender as its process does."""
    (folder / "task.json").write_text(json.dumps(asdict(task)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["contender", str(folder / "task.json")])
        main()


@pytest.fixture
def ppo_task(inputs: Inputs) -> PPOTask:
    return PPOTask(
        model=inputs.model,
        prompts=[ids[-30:] for ids in inputs.chat[:12]],
        updates=2,
        batch=4,
        new_tokens=3,
        epochs=2,
        micro=2,
        trainable_layers=6,
        value="shared",
        members=3,
    )


def test_every_prompt_of_the_mix_is_there_once_and_the_mix_is_mixed() -> None:
    texts = prepare.prompt_texts()
    lengths = sorted(len(text) for text in texts)
    assert len(set(texts)) == len(texts) >= 64
    assert lengths[-1] > 10 * lengths[len(texts) // 4]


def test_both_sides_are_given_the_same_pairs(inputs: Inputs) -> None:
    split = prepare.split_of(Path(inputs.comparisons), 0.2)
    assert (len(split.train), len(split.held_out)) == (len(inputs.train), len(inputs.held_out))
    assert len(split.train) + len(split.held_out) == 12
    chosen_left = [pair.counts.left > pair.counts.right for pair in split.train]
    assert len(set(chosen_left)) == 2, "without both orders the next line shows nothing"
    rendered = {tuple(side) for pair in inputs.train for side in pair}
    assert len(rendered) == 2 * len(inputs.train)


@pytest.mark.parametrize(("layers", "value", "members"), [(6, "shared", 3), ("all", "separate", 1)])
def test_ppo_reports_every_update_but_the_first(
    ppo_task: PPOTask,
    layers: int | str,
    value: str,
    members: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(ppo.main, replace(ppo_task, trainable_layers=layers, value=value, members=members), tmp_path)
    found = contender.parse(capsys.readouterr().out.splitlines()[-1])
    assert found.units == 4
    assert set(found.parts) == {"rollout", "optimise"}
    assert len(found.curve) == 2 and found.curve[1][0] > found.seconds
    assert found.memory_bytes > 10_000_000


@pytest.mark.long
def test_reward_trains_on_what_the_peer_is_given(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RewardTask(
        model=inputs.model,
        comparisons=inputs.comparisons,
        train=inputs.train,
        held_out=inputs.held_out,
        set_aside=0.2,
        batch=8,
        micro=2,
        trainable_layers=6,
        members=2,
    )
    run(reward.main, task, tmp_path)
    found = contender.parse(capsys.readouterr().out.splitlines()[-1])
    whole = flops.ours_reward(task.model, task.tokens, task.trainable_layers, task.members)
    assert whole / 2 < found.parts["train"].flops < whole, "the prompt of a pair is read once"
    assert found.units == len(inputs.train)
    assert len(found.margins) == len(inputs.held_out)


@pytest.mark.long
def test_responses_are_as_long_as_the_limit_unless_they_may_end(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every_token = replace(inputs.model, end_ids=list(range(320)))
    for finish, tokens in ((False, 2 * 3 * 5), (True, 2 * 3)):
        task = GenerateTask(every_token, inputs.plain[:3], new_tokens=5, repeats=2, finish=finish)
        run(generate.main, task, tmp_path)
        assert contender.parse(capsys.readouterr().out.splitlines()[-1]).units == tokens


def test_a_measurement_survives_its_line_of_json() -> None:
    parts = {"rollout": contender.Part(2.0, 8.0), "optimise": contender.Part(6.0, 4.0)}
    found = Measurement(4, parts, margins=[0.5], memory_bytes=7)
    assert contender.parse(json.dumps(asdict(found))) == found
    assert (found.seconds, found.speed) == (8.0, 0.5)


def test_operations_of_a_forward_and_a_training_step_are_those_that_torch_counts(inputs: Inputs) -> None:
    model, tokens = tiny_model(num_hidden_layers=8), 6
    ids = torch.randint(0, 320, (1, tokens))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.base_model(input_ids=ids)
    with FlopCounterMode(display=False) as training:
        model.base_model(input_ids=ids).last_hidden_state.sum().backward()
    needed = flops.FORWARD * inputs.model.above("all") * tokens
    # Norms take no matrix product; attention's own products, which come on top, are few at this length.
    assert forward.get_total_flops() == pytest.approx(needed, rel=0.1)
    assert training.get_total_flops() == pytest.approx(needed * flops.TRAIN / flops.FORWARD, rel=0.1)


def test_operations_of_ppo_by_hand(ppo_task: PPOTask) -> None:
    task = replace(ppo_task, model=replace(ppo_task.model, layers=10, layer_parameters=5, head_parameters=7))
    task = replace(task, prompts=[[1, 2], [5, 2, 3, 4]], trainable_layers=4, members=2, epochs=3)
    # 2 episodes: 6 prompt tokens and 6 drawn ones, through 10 layers of 5 and a branch of 20, with a head of 7.
    rollout = 2 * (50 * 12 + 7 * 6) + 2 * (20 * 12 * (2 + 2) + 7 * 6)
    optimise = 3 * 6 * (20 * 12 + 7 * 6)
    assert flops.ours_ppo(task, 2) == {"rollout": rollout, "optimise": optimise}
    assert flops.peer_ppo(task, 2) == 2 * (50 * 12 + 7 * 6) + 2 * (3 * 50 + 7) * 12 + 3 * 6 * (2 * 50 + 7) * 12
    # Both begin with two tokens, which ours reads once for all.
    alike = replace(task, prompts=[[1, 2], [1, 2, 3, 4]])
    assert flops.ours_ppo(alike, 2)["optimise"] == 3 * 6 * (20 * 8 + 7 * 6)
    assert flops.peer_ppo(alike, 2) == flops.peer_ppo(task, 2)
