"""The commands on a workspace as a whole: made, looked at, reported on, and the demo."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from manners.cli.common import Common, Result
from manners.errors import Blocked, MannersError, UsageError
from manners.settings_load import describe, load
from manners.store import Store, to_server_url
from manners.store.files.mapping import mapping_of
from manners.workspace import NO_SETTINGS, Workspace


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
        from manners.data import DEMO_TOML
        from manners.loop.round import demo

        chosen = () if self.seed is None else (f"seed={self.seed}",)
        kept = Workspace(self.workspace).toml
        toml = kept if self.resume and kept.exists() else DEMO_TOML
        settings = load(toml, (*self.overrides, *chosen)).settings
        return demo(self.workspace, settings, resume=self.resume)


@dataclass(frozen=True, kw_only=True)
class Init(Common):
    """Make a workspace: the folder that holds settings, database, model versions, runs and reports."""

    directory: Annotated[Positional[Path | None], arg(metavar="DIR")] = None
    """A new or empty folder; --workspace if left out."""
    database: Annotated[str | None, arg(metavar="URL")] = None
    """A team's PostgreSQL database, postgresql://user@host/name, in place of a file in the folder."""

    model: Annotated[str | None, arg(metavar="NAME")] = None
    """Write a manners.toml for this model, the data and this machine, with the reason for each value."""
    comparisons: Annotated[Path | None, arg(metavar="FILE")] = None
    """The comparisons that will be imported: context and length of answers are taken from them."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD."""

    def run(self) -> Result:
        """Make the folder and an empty store."""
        root = self.directory or self.workspace
        chosen = self._chosen(root)
        url = None if self.database is None else to_server_url(self.database)
        if url is not None:
            # Before the folder remembers it: a database that cannot be used is not written down.
            with closing(Store.open_or_create(url)) as store:
                _refuse_versions_elsewhere(store, root, url)
        workspace = Workspace.create(root, url, chosen["toml"] if chosen else NO_SETTINGS)
        Store.open_or_create(workspace.database).close()
        made = {"workspace": workspace.root, "database": workspace.database}
        if chosen is None:
            return made
        return made | {"toml": workspace.toml, "settings": chosen["settings"]}

    def _chosen(self, root: Path) -> dict[str, Any] | None:
        """Choose settings, before anything is made; None where none are asked for."""
        if self.comparisons is None and self.mapping:
            raise UsageError("--map says how to read the FILE of --comparisons: name one.")
        if self.model is None and self.comparisons is None:
            return None
        if Workspace.is_at(root):
            raise UsageError(
                f"{root} is a workspace already, whose settings stay as they are: `manners settings --suggest` shows"
                " what would be chosen for it."
            )
        from manners.loop import suggest

        there = None if self.model is None else Path(self.model).expanduser()
        # Whoever goes into the new folder next must still find a model that is on the disk.
        name = str(there.absolute()) if there is not None and there.exists() else self.model
        named = () if name is None else (f"model.name={name}",)
        settings = load(None, (*self.overrides, *named)).settings
        found = suggest.for_file(settings, root, self.comparisons, mapping_of(self.mapping))
        return {"toml": suggest.as_toml(settings.model.name, found), "settings": found}


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Write report.html and report.json from what the workspace holds."""

    def run(self) -> Result:
        """Write both."""
        from manners.loop import stages

        return stages.report(self.open(), self.settings())


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Common):
    """Print each setting's value, where it comes from, its default, what it may be and what it means."""

    field: Annotated[Positional[str | None], arg(metavar="FIELD")] = None
    """One setting (`ppo.clip`) or those of one stage (`ppo`); all if left out."""
    suggest: Annotated[bool, arg(help="Show what fits the model, the data at hand and this machine, and why.")] = False

    def run(self) -> Result:
        """List the settings."""
        if self.suggest:
            from manners.loop import suggest

            now = {row.field: row.value for row in describe(self.loaded())}
            found = suggest.for_workspace(self.open(), self.settings())
            chosen = [one for one in found if self.field in (None, one.field, one.field.partition(".")[0])]
            return {
                "settings": [
                    {"field": s.field, "now": now[s.field], "suggested": s.value, "reason": s.reason} for s in chosen
                ]
            }
        return {"settings": describe(self.loaded(), self.field)}


@dataclass(frozen=True, kw_only=True)
class Status(Common):
    """Say where the workspace stands."""

    def run(self) -> Result:
        """Count what there is."""
        from manners.loop import standing

        return standing.status(self.open())


@dataclass(frozen=True, kw_only=True)
class Doctor(Common):
    """Say whether the workspace is sound: room, model, record, versions, rights, clock, backup; nothing is changed."""

    def run(self) -> Result:
        """Look it over; exit code 1 where a check fails."""
        from manners.upkeep import checks, doctor

        found = doctor.examine(self.workspace, self.overrides)
        if failed := checks.failed(found):
            raise Blocked(f"not sound: {', '.join(failed)}; the sentence of each says what to do.", doctor.facts(found))
        return doctor.facts(found)


def _refuse_versions_elsewhere(store: Store, root: Path, url: str) -> None:
    """Refuse a second folder on one database: versions of one name would be different models."""
    if elsewhere := [version.name for version in store.versions() if not (root / version.path).is_dir()]:
        raise MannersError(
            f"{url} is the store of another workspace, which holds {elsewhere[0]}: work in that folder, on a disk that"
            " all share, or name an empty database."
        )
