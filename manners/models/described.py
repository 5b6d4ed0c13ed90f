"""What a version's folder says of it, without loading it: kind, base, parent, settings, metrics, watermark.

Nothing here loads torch: whoever only looks on does not wait for it.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manners.errors import MannersError
from manners.facts import from_facts
from manners.types import AnnotatorKind, VersionKind
from manners.workspace import INITIAL, Workspace

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a version can be called: a folder of its own in `models/`, and no way out of it."""
NUMBERED = re.compile(rf"({'|'.join(VersionKind)})-([1-9][0-9]*)")
"""What a version is called: `policy-03` is no version, and would be a second `policy-3`."""


@dataclass(frozen=True)
class Version:
    """A version's description, as version.json holds it."""

    name: str
    kind: VersionKind
    base: str
    """The base model, as model.name gave it."""
    trunk_hash: str
    cut: int
    template_hash: str
    dtype: str
    created_at: str
    start: str = INITIAL
    """The version that learning started from: the reference of its KL, of its scores' unit and of its evaluation."""
    parent: str | None = None
    watermark: int | None = None
    """Highest id of a verdict that it learned from."""
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """What was not learned from, by reason; empty also in a version that does not say, as old ones."""
    shifts: tuple[float, ...] = ()
    """Reward models: each member's mean on the start version's answers."""
    scale: float | tuple[float, ...] = 1.0
    """Reward models: what a unit is in each member's score. Older ones have one number for all members: the standard
    deviation of their mean on all of the start version's answers, to whatever prompt."""
    witness: tuple[float, float] | None = None
    """Reward models: shift and scale of the member kept out of the reward, whose branch comes last; None without."""
    model_hash: str = ""
    """Of the whole model that it grew on, and the cut; empty in a version that does not say, as old ones."""
    template: str = ""
    """The chat template, with its arguments and its date; empty in a version that does not say, as old ones."""

    @property
    def scales(self) -> tuple[float, ...]:
        """Reward models: the scale of each member."""
        return (self.scale,) * len(self.shifts) if isinstance(self.scale, int | float) else self.scale

    @property
    def source(self) -> AnnotatorKind | None:
        """Whose verdicts it learned from: a reward model, or a policy without one; None for one that does not say."""
        said = self.metrics.get("source")
        return AnnotatorKind(said) if said else None

    @property
    def reward(self) -> str | None:
        """Policies: the reward model that it was trained against; None for one that does not say, as old ones."""
        said = self.metrics.get("reward")
        return str(said) if said else None

    @property
    def method(self) -> str:
        """Policies: what they were trained by; `ppo` for one that does not say, as old ones."""
        return str(self.metrics.get("method") or "ppo")


def describe(workspace: Workspace, name: str) -> Version:
    """Read a version's description; raises MannersError naming the versions there are.

    A version is what its folder is called: another name in its description is damage.
    """
    file = workspace.models / name / "version.json"
    if not NUMBERED.fullmatch(name) or not file.is_file():
        there = ", ".join(sorted(every(workspace))) or "none yet"
        raise MannersError(f"there is no version {name} in {workspace.root} (there are: {there})")
    if not file.resolve().is_relative_to(workspace.models.resolve()):
        raise MannersError(
            f"{workspace.models / name} is a link that leads out of {workspace.models}: move the version itself there"
        )
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MannersError(f"{file} is damaged ({error}): use another version.") from error
    version = from_facts(Version, facts, str(file), "use another version")
    if version.name != name:
        said = version.name if NAME.fullmatch(version.name) else "another version"
        raise MannersError(
            f"{file} is damaged (it describes {said}, and its folder is {name}): move a copy out of {workspace.models},"
            " or put the version back from a backup."
        )
    return version


def names(workspace: Workspace, kind: VersionKind) -> list[str]:
    """Versions of a kind, oldest first; a folder that is called otherwise is none."""
    found = (NUMBERED.fullmatch(file.parent.name) for file in workspace.models.glob(f"{kind}-*/version.json"))
    return [f"{kind}-{number}" for number in sorted(int(match[2]) for match in found if match and match[1] == kind)]


def every(workspace: Workspace) -> list[str]:
    """Versions of all kinds, kind by kind, oldest first."""
    return [name for kind in VersionKind for name in names(workspace, kind)]


def teacher_of(workspace: Workspace, policy: str) -> str:
    """Return the reward model that a policy was trained against; the newest one for a policy that does not say.

    Raises MannersError where there is none.
    """
    return describe(workspace, policy).reward or latest(workspace, VersionKind.REWARD)


def legible(workspace: Workspace) -> tuple[dict[str, Version], dict[str, str]]:
    """Return all versions that can be read, by name, and what is wrong with each of the others."""
    found, damaged = dict[str, Version](), dict[str, str]()
    for name in every(workspace):
        try:
            found[name] = describe(workspace, name)
        except (MannersError, OSError) as error:
            damaged[name] = str(error)
    return found, damaged


def named_by(workspace: Workspace, model: str) -> str:
    """Return the version that a model's name means, also where it is a path into `models/`; else the name itself.

    A path that leads nowhere from here may be from another folder, or from before the workspace was moved: where it
    ends as a version's does, it means that one.
    """
    path, models = Path(model).expanduser(), workspace.models.resolve()
    with suppress(OSError, RuntimeError):  # a link in a circle leads nowhere
        if not path.exists() and path.parent.name == models.name and (models / path.name).is_dir():
            return path.name
        if path.exists() and (path := path.resolve()) != models and path.is_relative_to(models):
            return path.relative_to(models).parts[0]
    return model


def latest(workspace: Workspace, kind: VersionKind) -> str:
    """Return the newest version of a kind; raises MannersError saying which command makes one."""
    found = names(workspace, kind)
    if not found:
        command = "ppo" if kind is VersionKind.POLICY else str(kind)
        raise MannersError(f"there is no {kind} version in {workspace.root} yet; run `manners {command}` first")
    return found[-1]


def grew_elsewhere(workspace: Workspace, version: Version, model: str) -> bool:
    """Return whether names alone say that a version grew on another model: one of the two is of this workspace."""
    named = (workspace.models / name / "version.json" for name in (version.base, model))
    return version.base != model and any(file.is_file() for file in named)
