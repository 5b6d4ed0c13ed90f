"""PPO by TRL 1.12.0: four whole models."""

from __future__ import annotations

import tempfile
import time

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks import flops
from benchmarks.contender import Measurement, Part, PPOTask, read_task, report


class Curve(TrainerCallback):
    """Notes when each update ends, and the mean score of its responses."""

    def __init__(self) -> None:
        """Start with no update done."""
        self.points: list[tuple[float, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Start the clock."""
        self.begin = time.perf_counter()
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Read the clock and what was logged for the update."""
        score = state.log_history[-1]["objective/scores"]
        self.points.append((time.perf_counter() - self.begin, float(score)))
        return control


def main() -> None:
    """Run the updates; the time is that from the end of the first update to the end of the last."""
    task = read_task(PPOTask)
    tokenizer = AutoTokenizer.from_pretrained(task.model.folder, padding_side="left")
    # The end of a turn, which pads by default, occurs inside the prompts.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(task.model.pad_id)
    policy, reference = (AutoModelForCausalLM.from_pretrained(task.model.folder, dtype=torch.float32) for _ in range(2))
    reward, value = scalar_model(task), scalar_model(task)
    prompts, curve = Dataset.from_dict({"input_ids": task.prompts}), Curve()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=settings(task, scratch),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=prompts,
            eval_dataset=prompts.select([0]),
            callbacks=[curve],
        )
        trainer.train()
    episodes = task.batch * (len(curve.points) - 1)
    seconds = curve.points[-1][0] - curve.points[0][0]
    shift = task.goal.shift if task.goal else 0.0
    points = [(end, score - shift) for end, score in curve.points]
    report(Measurement(episodes, {"update": Part(seconds, flops.peer_ppo(task, episodes))}, curve=points))


def scalar_model(task: PPOTask) -> PreTrainedModel:
    """Load a reward model or value function: the one to learn from, or the language model with a random head."""
    goal, folder, pad_id = task.goal, task.model.folder, task.model.pad_id
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        goal.folder if goal else folder, num_labels=1, dtype=torch.float32, pad_token_id=pad_id
    )
    return model


def settings(task: PPOTask, scratch: str) -> PPOConfig:
    """Set TRL up for the same updates, one optimiser step an epoch, with all that only costs time switched off."""
    return PPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=task.micro,
        gradient_accumulation_steps=task.batch // task.micro,
        num_mini_batches=1,
        num_ppo_epochs=task.epochs,
        total_episodes=task.updates * task.batch,
        response_length=task.new_tokens,
        stop_token="eos" if task.goal else None,
        temperature=task.temperature,
        local_rollout_forward_batch_size=task.batch,
        learning_rate=task.learning_rate,
        seed=task.seed,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
