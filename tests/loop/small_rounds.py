"""Three rounds in a world so small that they take seconds: what promotes is a gate that asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manners.data import questions
from manners.feedback import crowd
from manners.loop import evaluate, rounds
from manners.loop.rounds import Asked
from manners.ppo.learner import Learner
from manners.settings import DataSettings, LoopSettings, Settings
from manners.types import PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.test_restart import contents
from tests.ppo.scripted import keep

THREE = Asked(rounds=3, crowd=True)
PROMPTS = {use: some[: {PromptUse.TRAIN: 12, PromptUse.VALIDATE: 3}.get(use, 6)] for use, some in tiny.PROMPTS.items()}


def small(model: Path, **stages: Any) -> Settings:
    """The tiny settings, smaller; a round asks about 9 of 12 prompts."""
    chosen = tiny.settings(model, checkpoint_every=0.0)
    prose = model.parent / "prose.txt"
    prose.write_text("\n\n".join(f"In the year {n} the sea was calm, and bread was cheap." for n in range(60)))
    return replace(
        chosen,
        data=DataSettings(prose=str(prose)),
        reward=replace(chosen.reward, members=1, epochs=1),
        ppo=replace(chosen.ppo, updates=1, batch=8, epochs=1),
        evaluate=replace(chosen.evaluate, samples=1, bootstrap=100),
        sample=replace(chosen.sample, max_new_tokens=4),
        loop=LoopSettings(prompts=9),
        **stages,
    )


@contextmanager
def everything_wins() -> Iterator[None]:
    """The last policy of a run is kept, better or not, and the gate asks for nothing: every round promotes.

    A model that babbles learns too little to be shown better in so few answers; what promotes is tested elsewhere.
    """
    few = questions()[:6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
        patch.setattr(Learner, "offer", keep)
        # Half of the time of so small a round: forgetting is measured on fewer questions, and no report is drawn.
        patch.setattr(evaluate, "questions", lambda: few)
        patch.setattr(rounds, "report", lambda *_: None)
        yield


GATE = "\n".join(
    f'[evaluation.{name}]\nbetter = "{better}"\nthreshold = {end}\nrequired = false\nmargin = 0.0'
    for name, better, end in [
        ("win_rate", "above", -1.0),
        ("start", "above", -1.0),
        ("matched_length", "above", -1.0),
        ("perplexity", "below", 1000.0),
        ("collapse", "below", 2.0),
        ("variety", "above", -1.0),
    ]
).replace("start]", "start]\nfails = -1.0")


def project(root: Path, model: Path, *, promotes: bool = True) -> Workspace:
    session = tiny.project(root, model, PROMPTS)
    if promotes:
        (root / "gate.toml").write_text("version = 1\n" + GATE)
    session.store.close()
    return session.workspace


def steady(root: Path) -> dict[str, Any]:
    """Return all that a workspace holds, but for what a clock decides, and how the loop was begun."""
    return {name: value for name, value in contents(root).items() if name not in ("runs/loop.json", "report.json")}
