"""A round of the loop, on one page: follow any call into the folder of its name.

prompts -> the policy writes two answers -> people say which is better -> reward model
   ^                                                                          |
   |                                                                          v
serve + ask again <- promote or roll back <- evaluate <- PPO against the reward model
"""

from __future__ import annotations

import sys
from pathlib import Path

from manners.data import demo_prompts
from manners.loop import asking, judging, learning, reporting
from manners.loop.session import Facts, Session
from manners.settings import Settings
from manners.workspace import Workspace, move_aside


def play(session: Session, *, crowd: bool, resume: bool = False) -> Facts:
    """Run one round: ask, learn what people like, teach it, judge the outcome, and report.

    With `resume` the stages that have finished are passed over, and the one that was stopped goes on.
    """
    asking.sample(session, crowd=crowd, resume=resume)  # answers to every prompt, and verdicts on them
    learning.train_reward(session, resume=resume)  # verdicts -> reward model
    learning.train_policy(session, resume=resume)  # reward model -> policy
    judging.evaluate(session, resume=resume)  # policy against the initial model; promoted or not
    return reporting.report(session)  # report.html and report.json


def demo(root: Path, settings: Settings, *, resume: bool = False) -> Facts:
    """Run the whole loop once with a simulated crowd, in a workspace of its own that stays for inspection."""
    previous = None if resume else move_aside(root)
    if previous is not None:
        print(f"the demo that was in {root} is now in {previous}", file=sys.stderr)
        if Session(Workspace.open(previous), settings).unfinished():
            print(f"it was not finished: `manners demo --workspace {previous} --resume` goes on", file=sys.stderr)
    session = Session(Workspace.create(root), settings)
    for use, dialogues in demo_prompts().items():
        session.store.add_prompts(dialogues, use, "demo")
    return play(session, crowd=True, resume=resume)
