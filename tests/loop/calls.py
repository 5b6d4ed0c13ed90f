"""The stages as functions of a session: what the tests call."""

from __future__ import annotations

from manners.facts import Facts
from manners.loop.options import AuditOptions, EvaluateOptions, SampleOptions
from manners.loop.round import AUDIT, BEHAVIOUR, DPO, EVALUATE, PHASES, PPO, REWARD, SAMPLE, SFT
from manners.loop.session import Session
from manners.loop.stage import execute


def learn_from_examples(session: Session, *, resume: bool = False) -> Facts:
    """Learn from examples of answers."""
    return execute(SFT, session, resume=resume).facts


def sample(session: Session, *, crowd: bool, resume: bool = False) -> Facts:
    """Answer the training prompts, and have the crowd judge."""
    return execute(SAMPLE, session, SampleOptions(crowd=crowd), resume=resume).facts


def train_reward(session: Session, *, resume: bool = False) -> Facts:
    """Train a reward model."""
    return execute(REWARD, session, resume=resume).facts


def train_policy(session: Session, *, resume: bool = False) -> Facts:
    """Run PPO."""
    return execute(PPO, session, resume=resume).facts


def evaluate(session: Session, *, resume: bool = False) -> Facts:
    """Judge the newest policy."""
    return execute(EVALUATE, session, resume=resume).facts


def learn_directly(session: Session, *, resume: bool = False) -> Facts:
    """Run DPO."""
    return execute(DPO, session, resume=resume).facts


def compare_phases(session: Session, *, resume: bool = False) -> Facts:
    """Compare what examples have taught with what it grew on."""
    return execute(PHASES, session, EvaluateOptions(version="sft-1", against="initial"), resume=resume).facts


def audit(session: Session, *, resume: bool = False) -> Facts:
    """Find out what the newest reward model likes."""
    return execute(AUDIT, session, resume=resume).facts


def audit_policy(session: Session, *, resume: bool = False) -> Facts:
    """Find out how the newest policy behaves."""
    return execute(BEHAVIOUR, session, AuditOptions(what="policy"), resume=resume).facts
