"""A round of the loop, on one page: the stages in order; follow any of them into the module of its name.

prompts -> the policy writes two answers -> people say which is better -> reward model
   ^                                                                          |
   |                                                                          v
serve + ask again <- promote or roll back <- evaluate <- PPO against the reward model

The commands, `--plan`, `--resume`, `manners status`, the demo and the report go by these lists. Nothing here loads
torch: the module that does a stage's work is imported when it is to be done.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manners.data import DEMO_TOML, demo_prompts
from manners.facts import Facts
from manners.loop.options import (
    AuditOptions,
    EvaluateOptions,
    JudgeOptions,
    PPOOptions,
    PretrainOptions,
    SampleOptions,
    TrainingOptions,
)
from manners.loop.stage import Options, Stage, Standing, execute, to_resume
from manners.results import AdversarialResult, PolicyResult, RewardResult, SampleResult
from manners.results.audit import AuditResult, BehaviourResult
from manners.results.direct import DirectResult
from manners.results.evaluation import EvaluationResult
from manners.results.judge import JudgeResult
from manners.results.phases import PhasesResult, SFTResult
from manners.results.pretrain import PretrainResult
from manners.settings_load import as_toml, load
from manners.workspace import Workspace, move_aside

if TYPE_CHECKING:
    from manners.loop.session import Session
    from manners.settings import Settings


def _answers_or_verdicts(standing: Standing) -> str | None:
    if not standing.comparisons:
        return "manners sample, or manners comparisons import FILE"
    if not standing.verdicts:
        return "manners serve, for people to compare; or manners comparisons export FILE, and import their verdicts"
    return None


def _judgement(standing: Standing) -> str | None:
    judged = standing.results.get(EVALUATE.name)
    decided = judged and judged.version == standing.policies[-1] and judged.promoted is not None
    if standing.to_judge and not (judged and decided and judged.promoted):
        return (
            f"manners serve, for people to judge the {standing.to_judge} comparisons of {standing.policies[-1]} that"
            " lack verdicts; or manners comparisons export FILE, and import their verdicts; then manners evaluate"
        )
    return None if decided else "manners evaluate"


PRETRAIN = Stage(
    name="pretrain",
    command="pretrain",
    summary="Teach a model to write from plain text: a new one, or one that goes on.",
    reads=("pretrain",),
    loads=False,
    shared=True,
    module="manners.loop.pretrain",
    result=PretrainResult,
    options=PretrainOptions,
    section="Pre-training",
)
SFT = Stage(
    name="sft",
    command="sft",
    summary="Teach the form of an answer from examples: dialogues in a file, or what people preferred.",
    reads=("sample", "sft"),
    shared=True,
    module="manners.loop.sft",
    result=SFTResult,
    options=TrainingOptions,
    section="From examples",
)
ADVERSARIAL = Stage(
    name="adversarial",
    command="sample",
    summary="Find answers that the reward model likes for the wrong reasons, and open comparisons of them.",
    reads=("sample", "crowd"),
    trains=False,
    module="manners.loop.adversarial",
    result=AdversarialResult,
    options=SampleOptions,
    asked=" --adversarial {--adversarial}",
    section="What the reward model likes too much",
)
SAMPLE = Stage(
    name="sample",
    command="sample",
    summary="The current policy answers the prompts, and opens comparisons.",
    reads=("sample", "crowd"),
    trains=False,
    module="manners.loop.sample",
    result=SampleResult,
    options=SampleOptions,
    beside=ADVERSARIAL,
    next=_answers_or_verdicts,
)
REWARD = Stage(
    name="reward",
    command="reward",
    summary="Train a reward model on the verdicts, and measure it on comparisons set aside.",
    reads=("sample", "reward"),
    shared=True,
    module="manners.loop.reward",
    result=RewardResult,
    options=TrainingOptions,
    next=lambda standing: None if standing.rewards or standing.policies else "manners reward",
)
PPO = Stage(
    name="ppo",
    command="ppo",
    summary="Train the policy against the newest reward model.",
    reads=("sample", "ppo"),
    teaches=True,
    shared=True,
    module="manners.loop.ppo",
    result=PolicyResult,
    options=PPOOptions,
    next=lambda standing: None if standing.policies else "manners ppo",
)
DPO = Stage(
    name="dpo",
    command="dpo",
    summary="Train the policy on the verdicts themselves, without a reward model.",
    reads=("sample", "reward", "dpo"),
    teaches=True,
    shared=True,
    module="manners.loop.dpo",
    result=DirectResult,
    options=TrainingOptions,
    section="Direct preference optimisation",
)
BEHAVIOUR = Stage(
    name="behaviour",
    command="audit",
    summary="Find out how a policy behaves, beside the initial model.",
    reads=("sample", "audit"),
    module="manners.loop.behaviour",
    result=BehaviourResult,
    options=AuditOptions,
    asked=" policy {the policy} --against {the version compared with}",
    section="How the policy behaves",
)
AUDIT = Stage(
    name="audit",
    command="audit",
    summary="Find out what a reward model really likes, how a policy behaves, or where that stands before the gate.",
    reads=("sample", "audit"),
    module="manners.loop.audit",
    result=AuditResult,
    options=AuditOptions,
    asked=" reward {the reward model}",
    beside=BEHAVIOUR,
    section="What the reward model likes",
)
JUDGE = Stage(
    name="judge",
    command="judge",
    summary="Have an AI judge comparisons, and find out whether its verdicts may train.",
    loads=False,
    trains=False,
    module="manners.loop.judge",
    result=JudgeResult,
    options=JudgeOptions,
    section="The judge",
)
PHASES = Stage(
    name="phases",
    command="evaluate",
    summary="Compare any two phases, each a whole model.",
    reads=("model", "sample", "crowd", "evaluate"),
    loads=False,
    trains=False,
    module="manners.loop.phases",
    result=PhasesResult,
    options=EvaluateOptions,
    asked=" {the phase} --against {the other phase}",
    section="Two phases side by side",
)
EVALUATE = Stage(
    name="evaluation",
    command="evaluate",
    summary="Compare the newest policy with the current version on unused prompts, or measure a reward model.",
    reads=("sample", "crowd", "evaluate"),
    module="manners.loop.evaluate",
    result=EvaluationResult,
    options=EvaluateOptions,
    beside=PHASES,
    next=_judgement,
)

STAGES: tuple[Stage, ...] = (
    SAMPLE,  # answers to every prompt, and verdicts on them
    REWARD,  # verdicts -> reward model
    PPO,  # reward model -> policy
    EVALUATE,  # policy against the current version; promoted or not
)
"""A round."""
COMMANDS: tuple[Stage, ...] = (
    PRETRAIN,  # plain text -> a model that writes
    SFT,  # examples of answers -> a model to begin the rounds with
    *STAGES,
    DPO,  # verdicts -> a policy, without a reward model
    AUDIT,  # what a reward model likes, how a policy behaves, and what the gate says
    JUDGE,  # verdicts of an AI, and whether they may train
)
"""Every stage with a command, a run and a part in the report: what comes before the rounds, their stages, and what
stands beside them."""
EVERY: tuple[Stage, ...] = (*COMMANDS, *(stage.beside for stage in COMMANDS if stage.beside))
"""Every stage with a run and a part in the report: also those that the command of another runs."""

ASKED = 220
"""Prompts that a round played at once asks about: the demo's four answers to each make 1,320 comparisons (D480)."""


def play(session: Session, *, crowd: bool, resume: bool = False) -> Facts:
    """Run one round: ask, learn what people like, teach it, judge the outcome, and report.

    With `resume` the stages that have finished are passed over, and the one that was stopped goes on.
    """
    from manners.loop.reporting import report

    chosen: dict[str, Options] = {SAMPLE.name: SampleOptions(crowd=crowd, limit=ASKED)}
    for stage in STAGES:
        execute(stage, session, chosen.get(stage.name), resume=resume)
    return report(session, EVERY)


def demo(root: Path, settings: Settings, *, resume: bool = False) -> Facts:
    """Run the whole loop once with a simulated crowd, in a workspace of its own that stays for inspection.

    With `resume`, go on with the one that is there, or begin where there is none. `settings` are the demo's own, with
    what the user changed; a new workspace keeps them, for all that is done in it later.
    """
    from manners.loop.session import Session

    toml = DEMO_TOML.read_text(encoding="utf-8") if settings == load(DEMO_TOML).settings else as_toml(settings)
    previous = None if resume else move_aside(root)
    if previous is not None:
        print(f"the demo that was in {root} is now in {previous}", file=sys.stderr)
        if to_resume(EVERY, Workspace.open(previous)):
            print(f"it was not finished: `manners demo --workspace {previous} --resume` goes on", file=sys.stderr)
    session = Session(Workspace.create(root, toml=toml), settings)
    for use, dialogues in demo_prompts().items():
        session.store.add_prompts(dialogues, use, "demo")
    return play(session, crowd=True, resume=resume)
