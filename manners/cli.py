"""The command line: one subcommand a stage; each parses its options and calls one function.

The stages are imported when they run, so that reading, importing and labelling never wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import EnumChoicesFromValues, FlagCreatePairsOff, Positional, UseAppendAction, arg, subcommand

import manners
from manners.cli_common import Common, Result, show
from manners.cli_serve import Accounts, Serve
from manners.cli_store import Comparisons, Prompts, Responses, column_and_field
from manners.errors import MannersError, UsageError
from manners.settings_load import describe, load
from manners.store import Store, to_server_url
from manners.store.formats import Format
from manners.workspace import Workspace

Version = Annotated[Positional[str], arg(metavar="VERSION")]
Resume = Annotated[bool, arg(help="Go on with the run that was stopped; it ends as if it had never been.")]


@dataclass(frozen=True, kw_only=True)
class Demo(Common):
    """Run the whole loop once on the embedded model with a simulated crowd, in minutes, and write the report."""

    workspace: Annotated[Path, arg(metavar="DIR")] = Path("demo")
    """The folder that stays for inspection; a finished demo in it is moved to DIR.previous."""
    seed: int | None = None
    """Every random choice follows from it; the same as `--set seed=N`."""
    resume: Annotated[bool, arg(help="Go on with the first stage that is not done.")] = False

    def run(self) -> Result:
        """Run every stage in order."""
        from manners.loop.round import demo

        chosen = () if self.seed is None else (f"seed={self.seed}",)
        settings = load(Workspace(self.workspace).toml, (*self.overrides, *chosen)).settings
        return demo(self.workspace, settings, resume=self.resume)


@dataclass(frozen=True, kw_only=True)
class Init(Common):
    """Make a workspace: the folder that holds settings, database, model versions, runs and reports."""

    directory: Annotated[Positional[Path | None], arg(metavar="DIR")] = None
    """A new or empty folder; --workspace if left out."""
    database: Annotated[str | None, arg(metavar="URL")] = None
    """A team's PostgreSQL database, postgresql://user@host/name, in place of a file in the folder."""

    def run(self) -> Result:
        """Make the folder and an empty store."""
        root = self.directory or self.workspace
        url = None if self.database is None else to_server_url(self.database)
        if url is not None:
            # Before the folder remembers it: a database that cannot be used is not written down.
            with closing(Store.open_or_create(url)) as store:
                _refuse_versions_elsewhere(store, root, url)
        workspace = Workspace.create(root, url)
        Store.open_or_create(workspace.database).close()
        return {"workspace": workspace.root, "database": workspace.database}


@dataclass(frozen=True, kw_only=True)
class Sample(Common):
    """The current policy answers the prompts, and opens comparisons."""

    crowd: bool = False
    """Have the simulated crowd give its verdicts at once; they are recorded as simulated."""
    resume: Resume = False
    plan: bool = False
    """Say what it will need, in memory, and stop."""

    def run(self) -> Result:
        """Draw the responses."""
        from manners.loop import stages

        return stages.sample(self.open(), self.settings(), crowd=self.crowd, plan=self.plan, resume=self.resume)


@dataclass(frozen=True, kw_only=True)
class Reward(Common):
    """Train a reward model on the verdicts, and measure it on comparisons set aside."""

    plan: bool = False
    """Say what it will need, in memory and time, and stop."""
    resume: Resume = False

    def run(self) -> Result:
        """Train, or plan."""
        from manners.loop import stages

        return stages.train_reward(self.open(), self.settings(), plan=self.plan, resume=self.resume)


@dataclass(frozen=True, kw_only=True)
class Score(Common):
    """Score the responses in a file with a reward model, with the spread of its members."""

    version: Version
    """A reward model, as `manners models list` names it."""
    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """JSON lines of prompts and responses."""
    output: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the scores go, as JSON lines; FILE's name with `.scores.jsonl` in the current folder if left out."""

    def run(self) -> Result:
        """Score, and write a line a response."""
        from manners.loop import stages

        output = self.output or Path(f"{self.file.name}.scores.jsonl")
        return stages.score(self.open(), self.settings(), self.version, self.file, output)


@dataclass(frozen=True, kw_only=True)
class Ppo(Common):
    """Train the policy against the newest reward model."""

    plan: bool = False
    """Say what it will need, in memory and time, and stop."""
    resume: Resume = False

    def run(self) -> Result:
        """Train, or plan."""
        from manners.loop import stages

        return stages.train_policy(self.open(), self.settings(), plan=self.plan, resume=self.resume)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Common):
    """Compare the newest policy with the initial model on unused prompts, or measure a reward model on a file."""

    ask: Annotated[int | None, arg(metavar="N")] = None
    """Open N blind comparisons of the two for people, and say what they can show, instead of asking the crowd."""
    reward: Annotated[str | None, arg(metavar="VERSION")] = None
    """A reward model to measure; goes with --comparisons."""
    comparisons: Annotated[Path | None, arg(metavar="FILE")] = None
    """A file of comparisons from outside, in any form that `manners comparisons import` reads."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD."""
    format: EnumChoicesFromValues[Format | None] = None
    """How the file writes comparisons down; told by its fields if left out."""
    skip_bad: bool = False
    """Leave the file's bad lines out, and count them by reason."""
    resume: Resume = False
    plan: bool = False
    """Say what comparing the two will need, in memory, and stop."""

    def run(self) -> Result:
        """Evaluate."""
        if (self.reward is None) != (self.comparisons is None):
            raise UsageError("--reward VERSION and --comparisons FILE go together: name both, or neither.")
        if self.comparisons is None and (self.mapping or self.format or self.skip_bad):
            raise UsageError("--map, --format and --skip-bad say how to read the FILE of --comparisons: name one.")
        if self.ask is not None and (self.reward is not None or self.ask < 1):
            raise UsageError("--ask N takes a number from 1 on, and does not go with --reward.")
        if self.resume and (self.ask is not None or self.reward is not None):
            raise UsageError("--resume goes on with the evaluation of a policy: leave out --ask and --reward.")
        if self.plan and (self.ask is not None or self.reward is not None):
            raise UsageError("--plan is about comparing the two policies: it goes with neither --ask nor --reward.")
        from manners.loop import stages

        if self.reward is not None and self.comparisons is not None:
            return stages.evaluate_reward(
                self.open(),
                self.settings(),
                self.reward,
                self.comparisons,
                mapping=dict(column_and_field(text) for text in self.mapping),
                fmt=self.format,
                skip_bad=self.skip_bad,
            )
        return stages.evaluate(self.open(), self.settings(), ask=self.ask, plan=self.plan, resume=self.resume)


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Write report.html and report.json from what the workspace holds."""

    def run(self) -> Result:
        """Write both."""
        from manners.loop import stages

        return stages.report(self.open(), self.settings())


@dataclass(frozen=True, kw_only=True)
class ModelsList(Common):
    """List the model versions, and say which policy is the current one."""

    def run(self) -> Result:
        """List."""
        from manners.loop import stages

        return stages.models_list(self.open())


@dataclass(frozen=True, kw_only=True)
class ModelsPromote(Common):
    """Make a version the current policy."""

    version: Version
    """A policy, as `manners models list` names it."""

    def run(self) -> Result:
        """Promote."""
        from manners.loop import stages

        return stages.models_promote(self.open(), self.version)


@dataclass(frozen=True, kw_only=True)
class ModelsRollback(Common):
    """Go back to the policy that was the current one before."""

    def run(self) -> Result:
        """Roll back."""
        from manners.loop import stages

        return stages.models_rollback(self.open())


@dataclass(frozen=True, kw_only=True)
class ModelsExport(Common):
    """Write a version as a folder that plain transformers loads."""

    version: Version
    """A policy or a reward model, as `manners models list` names it."""
    directory: Annotated[Positional[Path], arg(metavar="DIR")]
    """A new folder."""
    member: Annotated[str | None, arg(metavar="N|average")] = None
    """Which member of a reward model, from 0, or one with the mean of their weights; the first if left out."""

    def run(self) -> Result:
        """Merge and write."""
        from manners.loop import stages

        chosen = () if self.member is None else (self.member,)
        return stages.models_export(self.open(), self.version, self.directory, *chosen)


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Common):
    """Print each setting's value, where it comes from, its default, what it may be and what it means."""

    field: Annotated[Positional[str | None], arg(metavar="FIELD")] = None
    """One setting (`ppo.clip`) or those of one stage (`ppo`); all if left out."""

    def run(self) -> Result:
        """List the settings."""
        return {"settings": describe(self.loaded(), self.field)}


@dataclass(frozen=True, kw_only=True)
class Status(Common):
    """Say where the workspace stands."""

    def run(self) -> Result:
        """Count what there is."""
        from manners.loop import stages

        return stages.status(self.open())


Models = (
    Annotated[ModelsList, subcommand("list")]
    | Annotated[ModelsPromote, subcommand("promote")]
    | Annotated[ModelsRollback, subcommand("rollback")]
    | Annotated[ModelsExport, subcommand("export")]
)
Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Init, subcommand("init")]
    | Annotated[Prompts, subcommand("prompts", description="Import, export or list prompts.")]
    | Annotated[Responses, subcommand("responses", description="Export or list responses.")]
    | Annotated[Comparisons, subcommand("comparisons", description="Import, export or list comparisons.")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Accounts, subcommand("accounts", description="Who may sign in to the pages, and with which keys.")]
    | Annotated[Reward, subcommand("reward")]
    | Annotated[Score, subcommand("score")]
    | Annotated[Ppo, subcommand("ppo")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Models, subcommand("models", description="List, promote, roll back or export model versions.")]
    | Annotated[ShowSettings, subcommand("settings")]
    | Annotated[Status, subcommand("status")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parsed: Any = tyro.cli(
        Command, prog="manners", description=manners.__doc__, args=argv, config=(FlagCreatePairsOff,)
    )
    try:
        load(None, parsed.overrides)
        with redirect_stdout(sys.stderr):
            # Libraries print where they like; stdout is for the result alone.
            result = parsed.run()
        show(result, parsed.as_json)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(error, 2)
    except MannersError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter must not try to write the rest to it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(_refused(error), 1)
    return 0


def _refused(error: OSError) -> str:
    """Say what the system refused, and about which file."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"the system refused what this command needs ({reason})."
    return f"{error.filename} cannot be used ({reason}): check its name, its folder and its rights."


def _refuse_versions_elsewhere(store: Store, root: Path, url: str) -> None:
    """Refuse a second folder on one database: versions of one name would be different models."""
    if elsewhere := [version.name for version in store.versions() if not (root / version.path).is_dir()]:
        raise MannersError(
            f"{url} is the store of another workspace, which holds {elsewhere[0]}: work in that folder, on a disk that"
            " all share, or name an empty database."
        )


def _fail(reason: MannersError | str, code: int) -> int:
    """Tell the reason in one line on stderr."""
    print(f"manners: {' '.join(str(reason).split())}", file=sys.stderr)
    return code
