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


def play(session: Session, *, crowd: bool) -> Facts:
    """Run one round: ask, learn what people like, teach it, judge the outcome, and report."""
    asking.sample(session, crowd=crowd)  # two answers to every prompt, and verdicts on them
    learning.train_reward(session)  # verdicts -> reward model
    learning.train_policy(session)  # reward model -> policy
    judging.evaluate(session)  # policy against the initial model; promoted or not
    return reporting.report(session)  # report.html and report.json


def demo(root: Path, settings: Settings) -> Facts:
    """Run the whole loop once with a simulated crowd, in a workspace of its own that stays for inspection."""
    previous = move_aside(root)
    if previous is not None:
        print(f"the demo that was in {root} is now in {previous}", file=sys.stderr)
    session = Session(Workspace.create(root), settings)
    for use, dialogues in demo_prompts().items():
        session.store.add_prompts(dialogues, use, "demo")
    return play(session, crowd=True)
