"""Floating-point operations that each stage needs on real tokens: what is spent on padding counts as lost.

A forward takes 2 per parameter and token, a backward twice that. Attention's own products are left out: at the lengths
of the benchmarks they are about 3 % of the rest.
"""

from __future__ import annotations

from itertools import takewhile

from benchmarks.contender import DPOTask, Model, PPOTask

FORWARD = 2
TRAIN = 3 * FORWARD


def drawing(model: Model, prompt_tokens: float, new_tokens: float) -> float:
    """Read prompts and draw responses; both counts are of the whole batch."""
    return FORWARD * (model.above("all") * (prompt_tokens + new_tokens) + model.head_parameters * new_tokens)


def ours_ppo(task: PPOTask, episodes: int) -> dict[str, float]:
    """PPO on branches: the trunk's states come from drawing, and the head sees response tokens only.

    What all prompts begin with, which is read once for many rows, counts as nothing.
    """
    prompt_tokens, new_tokens = _tokens(task, episodes)
    columns = zip(*task.prompts, strict=False)
    prompt_tokens -= episodes * len(list(takewhile(lambda tokens: len(set(tokens)) == 1, columns)))
    branch, head = task.model.above(task.trainable_layers), task.model.head_parameters
    tokens, values = prompt_tokens + new_tokens, 1 if task.value == "separate" else 0
    measuring = FORWARD * (branch * tokens * (task.members + 2 + values) + head * new_tokens)
    training = TRAIN * (branch * tokens * (1 + values) + head * new_tokens)
    rollout = drawing(task.model, prompt_tokens, new_tokens) + measuring
    return {"rollout": rollout, "optimise": task.epochs * training}


def peer_ppo(task: PPOTask, episodes: int) -> float:
    """PPO on four whole models, with logits of the reference and of the policy at every token."""
    prompt_tokens, new_tokens = _tokens(task, episodes)
    whole, head, tokens = task.model.above("all"), task.model.head_parameters, prompt_tokens + new_tokens
    measuring = FORWARD * (3 * whole + head) * tokens
    training = TRAIN * (2 * whole + head) * tokens
    return drawing(task.model, prompt_tokens, new_tokens) + measuring + task.epochs * training


def ours_reward(model: Model, tokens: int, trainable_layers: int | str, members: int) -> float:
    """Reward training on branches: the trunk reads every token once, each member trains on it once.

    The tokens of a prompt that two responses share count once.
    """
    branch = model.above(trainable_layers)
    return tokens * (FORWARD * (model.above("all") - branch) + TRAIN * branch * members)


def peer_reward(model: Model, tokens: int) -> float:
    """Reward training of a whole model."""
    return tokens * TRAIN * model.above("all")


def ours_sft(model: Model, tokens: int, learned: int, trainable_layers: int | str) -> float:
    """Learning from dialogues on a branch: the trunk reads every token once, the head sees answers only."""
    branch = model.above(trainable_layers)
    return tokens * (FORWARD * (model.above("all") - branch) + TRAIN * branch) + learned * TRAIN * model.head_parameters


def peer_sft(model: Model, tokens: int, learned: int) -> float:
    """Learning from dialogues with a whole model, whose head sees answers only too."""
    return tokens * TRAIN * model.above("all") + learned * TRAIN * model.head_parameters


def ours_dpo(task: DPOTask, tokens: int) -> float:
    """DPO on branches: the trunk reads every token once, the reference's branch too, the policy's is trained on it.

    The head sees response tokens only; the tokens of a prompt that two responses share count once.
    """
    branch, head = task.model.above(task.trainable_layers), task.model.head_parameters * task.said
    trunk = FORWARD * (task.model.above("all") - branch) * tokens
    return trunk + (FORWARD + TRAIN) * (branch * tokens + head)


def peer_dpo(task: DPOTask) -> float:
    """DPO on two whole models, each response with a prompt of its own; the heads see response tokens only."""
    return (FORWARD + TRAIN) * (task.model.above("all") * task.tokens + task.model.head_parameters * task.said)


def _tokens(task: PPOTask, episodes: int) -> tuple[float, float]:
    """Prompt and response tokens of so many episodes; prompts are of average length."""
    return episodes * sum(map(len, task.prompts)) / len(task.prompts), float(episodes * task.new_tokens)
