"""The commands on model versions, and those that ask a reward model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from manners.cli.common import Common, Result
from manners.errors import UsageError
from manners.store import Store, audit
from manners.store.files.mapping import mapping_of

Version = Annotated[Positional[str], arg(metavar="VERSION")]


@dataclass(frozen=True, kw_only=True)
class Score(Common):
    """Score the responses in a file with a reward model, with the spread of its members."""

    version: Version
    """A reward model, as `manners models list` names it."""
    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Prompts and responses, or `messages` that end with the response, in .jsonl, .csv or .parquet."""
    output: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the scores go, as JSON lines; FILE's name with `.scores.jsonl` in the current folder if left out."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD: prompt, response, messages or finish_reason."""
    skip_bad: bool = False
    """Leave bad lines out, and count them by reason."""
    fast: bool = False
    """Round factors to bfloat16 (on a GPU to TF32) before they are multiplied, where that is faster; how far scores are
    off is measured on the first 32 rows, and said."""

    def run(self) -> Result:
        """Score, and write a line a response."""
        from manners.loop import stages

        output = self.output or Path(f"{self.file.name}.scores.jsonl")
        mapping = mapping_of(self.mapping)
        return stages.score(
            self.open(),
            self.settings(),
            self.version,
            self.file,
            output,
            mapping=mapping,
            skip_bad=self.skip_bad,
            fast=self.fast,
        )


@dataclass(frozen=True, kw_only=True)
class ModelsList(Common):
    """List the model versions, and say which policy is the current one."""

    def run(self) -> Result:
        """List."""
        from manners.loop import standing

        return standing.models_list(self.open())


@dataclass(frozen=True, kw_only=True)
class ModelsShow(Common):
    """Show how a version came to be: what it grew on, what it had learned from, by which settings."""

    version: Version
    """As `manners models list` names it."""

    def run(self) -> Result:
        """Show."""
        from manners.loop import stages

        return stages.models_show(self.open(), self.version)


@dataclass(frozen=True, kw_only=True)
class ModelsPrune(Common):
    """Say which old versions nothing needs, and how much they take; with --yes, remove them."""

    keep: int = 5
    """How many of the newest of each kind stay, beside those that are needed."""
    yes: bool = False
    """Remove them. They cannot be had back but from a backup."""

    def run(self) -> Result:
        """Look, or remove."""
        from manners.loop import stages

        return stages.models_prune(self.open(), self.keep, self.yes)


@dataclass(frozen=True, kw_only=True)
class ModelsPromote(Common):
    """Make a version the current policy."""

    version: Version
    """A policy, as `manners models list` names it."""
    override: Annotated[str | None, arg(metavar="REASON")] = None
    """Promote it although the gate says no, for this reason: it is kept, and printed on the version's card."""

    def run(self) -> Result:
        """Promote."""
        from manners.loop import standing

        workspace = self.open()
        with closing(Store.open(workspace.database)) as store:
            promoted = standing.models_promote(workspace, self.version, self.override)
            _note(store, audit.Event.PROMOTED, self.version)
        return promoted


@dataclass(frozen=True, kw_only=True)
class ModelsRollback(Common):
    """Go back to the policy that was the current one before."""

    def run(self) -> Result:
        """Roll back."""
        from manners.loop import standing

        workspace = self.open()
        with closing(Store.open(workspace.database)) as store:
            was = workspace.current_policy()
            back = standing.models_rollback(workspace)
            _note(store, audit.Event.ROLLED_BACK, was)
        return back


@dataclass(frozen=True, kw_only=True)
class ModelsExport(Common):
    """Write a version for other programs: transformers, peft, or llama.cpp."""

    version: Version
    """A policy or a reward model, as `manners models list` names it."""
    directory: Annotated[Positional[Path | None], arg(metavar="DIR")] = None
    """A new folder; `exported/VERSION` if left out, with the form behind it where that is no folder."""
    form: Annotated[Literal["folder", "lora", "gguf"], arg(name="as")] = "folder"
    """A folder that plain transformers loads, the adapter that was trained (model.lora_rank), or one GGUF file."""
    kind: Annotated[Literal["f32", "f16", "bf16", "q8_0"] | None, arg(name="type")] = None
    """Number format of the weights; that of the initial model's files if left out. q8_0 is for GGUF."""
    member: Annotated[str | None, arg(metavar="N|average")] = None
    """Which member of a reward model, from 0, or one with the mean of their weights; the first if left out."""

    def run(self) -> Result:
        """Merge and write."""
        from manners.loop import stages

        changing = (one for one in self.overrides if one.startswith(("model.", "sample.")))
        if other := [one for one in changing if not one.startswith("model.device=")]:
            raise UsageError(
                f"--set {other[0]} has no part in an export, which goes by the settings that {self.version} was trained"
                " with: only model.device is this machine's; leave it out."
            )
        workspace, device = self.open(), self.settings().model.device
        with closing(Store.open(workspace.database)) as store:
            written = stages.models_export(
                workspace,
                self.version,
                self.directory,
                member=self.member,
                form=self.form,
                kind=self.kind,
                device=device,
            )
            _note(store, audit.Event.EXPORTED, self.version)
        return written


def _note(store: Store, event: audit.Event, version: str) -> None:
    """Put on record what was done to a version on this machine."""
    audit.record(store, audit.Deed(event, about=f"version {version}"))


Models = (
    Annotated[ModelsList, subcommand("list")]
    | Annotated[ModelsShow, subcommand("show")]
    | Annotated[ModelsPromote, subcommand("promote")]
    | Annotated[ModelsRollback, subcommand("rollback")]
    | Annotated[ModelsExport, subcommand("export")]
    | Annotated[ModelsPrune, subcommand("prune")]
)
