"""Which version a report is about, which one answered when it was written, and where its sections differ in that.

An evaluation says what it decided; what was done since, by hand or by a later round, it does not know.
"""

from __future__ import annotations

from manners.evaluate.promotion import called
from manners.results import PolicyResult, RewardResult
from manners.results.evaluation import EvaluationResult
from manners.workspace import INITIAL


def promotion(evaluation: EvaluationResult, current: str | None) -> str:
    """Say whether an evaluation promoted its policy, and which version answered when the report was written."""
    policy = evaluation.version or "the policy"
    said = []
    if evaluation.promoted is not None:
        said.append(f"The evaluation {'promoted' if evaluation.promoted else 'did not promote'} {policy}.")
    if current is not None:
        said.append(_answered(evaluation, current))
    return " ".join(said)


def _answered(evaluation: EvaluationResult, current: str) -> str:
    now = called(current, evaluation.start or INITIAL)
    if evaluation.version is None or evaluation.promoted is None:
        return f"When this page was written, {now} answered."
    if current == evaluation.version:
        if evaluation.promoted:
            return "When this page was written, it was the one that answered."
        return "It was promoted all the same since then: when this page was written, it was the one that answered."
    if evaluation.promoted:
        return f"That has changed since then: when this page was written, {now} answered."
    stayed = current == evaluation.against
    return f"When this page was written, {now} {'still ' if stayed else ''}answered."


def apart(reward: RewardResult, ppo: PolicyResult, evaluation: EvaluationResult) -> list[str]:
    """Say where sections of one report are of different versions."""
    said = []
    if ppo.version and evaluation.version and ppo.version != evaluation.version:
        said.append(
            f"What PPO trained is {ppo.version}, and what was evaluated is {evaluation.version}: the curves are of the"
            " one, the verdict and the answers of the other."
        )
    if ppo.reward and reward.version and ppo.reward != reward.version:
        policy = ppo.version or "The policy"
        said.append(f"{policy} was trained against {ppo.reward}, and the reward model shown is {reward.version}.")
    return [one[:1].upper() + one[1:] for one in said]
