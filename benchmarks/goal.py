"""The task of `benchmarks.learning`: prompts and reward model of a workspace, for both contenders."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.contender import Goal, PPOTask
from benchmarks.prepare import model_of
from manners.loop.prompts import short_enough
from manners.loop.session import Session
from manners.models import versions
from manners.reward import stored
from manners.settings_load import from_dict
from manners.types import PromptUse, VersionKind
from manners.workspace import Workspace

EXPORT = "reward"
BATCH, EPOCHS = 16, 4


def main() -> None:
    """Export a workspace's newest reward model and write `goal.json` beside it: `goal WORKSPACE FOLDER`."""
    workspace, folder = Workspace.open(Path(sys.argv[1])), Path(sys.argv[2])
    version = versions.describe(workspace, versions.latest(workspace, VersionKind.REWARD))
    session = Session(workspace, from_dict(version.settings))
    pretrained, sample = session.pretrained, session.settings.sample
    reward = stored.load_reward(workspace, version.name, pretrained)
    shift = stored.export_reward(reward, 0, pretrained, folder / EXPORT)
    prompts = short_enough(session, [prompt.dialogue for prompt in session.store.prompts(PromptUse.TRAIN)]).prompts
    task = PPOTask(
        model=model_of(version.base, pretrained),
        prompts=[list(pretrained.renderer.prompt_ids(prompt, sample.max_new_tokens)[0]) for prompt in prompts],
        updates=1,  # each contender has its own
        batch=BATCH,
        new_tokens=sample.max_new_tokens,
        epochs=EPOCHS,
        micro=4,
        trainable_layers=session.settings.model.trainable_layers,
        value="shared",
        members=1,
        temperature=sample.temperature,
        goal=Goal(str(workspace.root), version.name, str(folder / EXPORT), shift),
    )
    (folder / "goal.json").write_text(json.dumps(asdict(task)), encoding="utf-8")


if __name__ == "__main__":
    main()
