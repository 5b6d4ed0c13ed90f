"""From nothing to manners by one command: a model that writes, then answers, then does what a crowd likes.

    python examples/from-nothing/from_nothing.py FOLDER            or: make from-nothing

Every step is a stage of manners on an ordinary workspace, and every text comes from `stories.py`. In FOLDER stand

    text/           stories, pairs of request and story, prompts, stories of no other use
    workspace/      versions, store, runs: `manners status --workspace FOLDER/workspace`
    answers/        what each phase answers to the same prompts
    report.html, report.json

Whatever stops it, the same command goes on: each piece is there whole, or goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import after_each
import page
import stories
import tyro
from tyro.conf import Positional, UseAppendAction, arg

from manners.checkpoint import unfinished
from manners.errors import MannersError, UsageError
from manners.facts import Facts, to_facts
from manners.feedback.crowd import find_taste
from manners.loop.options import SampleOptions
from manners.loop.round import PRETRAIN, SAMPLE, SFT, STAGES
from manners.loop.session import Session, machine
from manners.loop.stage import Finished, Options, Stage, execute, finished
from manners.settings import Settings
from manners.settings_load import Loaded, describe, differing, load, to_toml
from manners.types import Dialogue, PromptUse, Role, Turn
from manners.workspace import Workspace, atomic_folder, atomic_write

SETTINGS = Path(__file__).parent / "settings.toml"
OWN = ("model.name", "pretrain.text", "pretrain.start", "sft.examples", "data.prose")
"""Settings that hold the steps together, and are no choice."""
LEAST = {"megabytes": 0.1, "pairs": 20, "train": 10, "validate": 5, "evaluate": 10}
PROSE = 80
"""Stories that nothing is trained on: by them it is seen what PPO makes a policy forget."""
APART = 2**32
"""Added to the seed for them."""


@dataclass(frozen=True)
class Chosen:
    """How much of everything."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Where all of it goes; a folder in which this was begun is gone on with."""
    seed: int = 0
    """Every random choice follows from it."""
    megabytes: float = 16.0
    """Of stories to learn to write from."""
    pairs: int = 12_000
    """Of request and story, to learn to answer from."""
    train: int = 128
    """Requests that are answered three times each, for the crowd to compare; PPO's too."""
    validate: int = 24
    """Requests by which PPO chooses what it keeps."""
    evaluate: int = 96
    """Requests that measure every phase."""
    overrides: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="STAGE.FIELD=VALUE")] = ()
    """Change a setting."""

    @property
    def sizes(self) -> dict[str, float]:
        """How much of each kind of text."""
        return {name: getattr(self, name) for name in LEAST}


@dataclass(frozen=True)
class Begun:
    """A folder in which this was begun, and what with."""

    folder: Path
    workspace: Workspace
    settings: Settings
    sizes: Mapping[str, float]


def play(chosen: Chosen) -> Path:
    """Do what is not done yet, and write the report; return where it is."""
    begun = begin(chosen)
    # 1. Texts of which everything is known.
    seconds = {"text": texts(begun)}
    # 2. From nothing: a tokenizer, and a model that learns to write.
    wrote = piece(PRETRAIN, Session(begun.workspace, begun.settings))
    # 3. All of its layers learn from pairs that a request is answered, and how.
    on_top = replace(begun.settings.model, name=wrote.result.version, trainable_layers="all")
    taught = piece(SFT, Session(begun.workspace, replace(begun.settings, model=on_top)))
    # 4. An ordinary round: it answers requests, a crowd compares, a reward model learns from them, PPO from that.
    session = Session(begun.workspace, begun.settings)
    for use in PromptUse:
        session.store.add_prompts(list(requests(begun, use)), use, "stories")
    stages = {stage.name: piece(stage, session, _options(stage)) for stage in STAGES}
    # 5. The same requests to each phase.
    done = {PRETRAIN.name: wrote, SFT.name: taught, **stages}
    asked = requests(begun, PromptUse.EVALUATE)
    versions = [done[name].result.version for name in after_each.PHASES]
    found = [after_each.answered(session, name, list(asked), begun.folder / "answers") for name in versions]
    # 6. What each of them taught, on one page.
    measured = after_each.facts(
        after_each.measured(asked, found, begun.settings), done, find_taste(begun.settings.crowd.taste)
    )
    seconds |= {name: one.costs.seconds for name, one in done.items()}
    seconds |= {f"answers of {one.version}": one.seconds for one in found}
    facts = _facts(begun, measured, seconds, after_each.shown(asked, found))
    return page.write(begun.folder, facts, wrote.result, stages["ppo"].result)


def begin(chosen: Chosen) -> Begun:
    """Make the folder, or open the one in which this was begun.

    Raises MannersError where it was begun with something else or holds other things, UsageError for what cannot be.
    """
    for name, least in LEAST.items():
        if not chosen.sizes[name] >= least:
            raise UsageError(f"--{name} {chosen.sizes[name]:g} is too little to learn from: it takes {least:g} or more")
    for override in chosen.overrides:
        if (name := override.partition("=")[0].strip()) in OWN:
            raise UsageError(f"--set {name}: this setting holds the steps together and is no choice; leave it out")
    loaded = load(SETTINGS, (f"seed={chosen.seed}", *chosen.overrides))
    find_taste(loaded.settings.crowd.taste)
    depth, layers = loaded.settings.pretrain.depth, loaded.settings.model.trainable_layers
    if layers != "all" and depth <= layers:
        raise UsageError(
            f"pretrain.depth = {depth} makes too few layers for model.trainable_layers = {layers}, for one must be left"
            " below those that are trained: raise the one, lower the other, or set it to all"
        )
    _claim(chosen, {row.field: row.value for row in describe(loaded)} | chosen.sizes)
    workspace = Workspace.create(chosen.folder / "workspace")
    text = (chosen.folder / "text").resolve()
    paths = (f"pretrain.text={text}/stories.txt", f"sft.examples={text}/pairs.jsonl", f"data.prose={text}/prose.txt")
    settings = load(SETTINGS, (f"seed={chosen.seed}", *chosen.overrides, *paths))
    atomic_write(workspace.toml, _toml(settings))
    return Begun(chosen.folder, workspace, settings.settings, chosen.sizes)


def _claim(chosen: Chosen, how: dict[str, Any]) -> None:
    """Write down in the folder how this was begun, or make sure that it was begun so."""
    folder, record = chosen.folder, chosen.folder / "begun.json"
    if not record.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MannersError(f"{folder} already holds other things: name a new or an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(record, json.dumps(how, indent=1) + "\n")
        return
    try:
        was = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MannersError(f"{record} is damaged ({error}): remove {folder} to begin anew") from error
    for name, then, now in differing(was, json.loads(json.dumps(how))):
        raise MannersError(
            f"{folder} was begun with {name} = {then}, and now it is {now}: set it as it was, name another folder, or"
            f" remove {folder} to begin anew"
        )


def _toml(loaded: Loaded) -> str:
    """Write down what differs from the defaults, for commands in the workspace to have it too."""
    changed = [row for row in describe(loaded) if row.value not in (row.default, None)]
    stages = dict.fromkeys(row.field.rpartition(".")[0] for row in changed)
    lines = []
    for stage in stages:
        lines += [f"[{stage}]"] if stage else []
        rows = [row for row in changed if row.field.rpartition(".")[0] == stage]
        lines += [f"{row.field.rpartition('.')[2]} = {to_toml(row.value)}" for row in rows]
    return "\n".join(lines) + "\n"


def texts(begun: Begun) -> float:
    """Tell stories, requests and prompts, once; return how long it took, in seconds."""
    folder = begun.folder / "text"
    if not folder.exists():
        started = time.monotonic()
        print(f"telling {begun.sizes['megabytes']:g} MB of stories", file=sys.stderr)
        uses = {str(use): int(begun.sizes[use]) for use in PromptUse}
        seed = begun.settings.seed
        with atomic_folder(folder) as draft:
            stories.write(draft, begun.sizes["megabytes"], seed, int(begun.sizes["pairs"]), uses)
            unread = islice(stories.stories(seed + APART), PROSE)
            (draft / "prose.txt").write_text("\n\n".join(one.text for one in unread) + "\n", encoding="utf-8")
            (draft / "seconds.json").write_text(json.dumps(time.monotonic() - started), encoding="utf-8")
    return float(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))


def requests(begun: Begun, use: PromptUse) -> dict[Dialogue, Mapping[str, str]]:
    """Return the requests of a use, each with the parameters that it names."""
    lines = (begun.folder / "text" / f"prompts_{use}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {(Turn(Role.USER, row["prompt"]),): row["parameters"] for row in rows}


def piece(stage: Stage, session: Session, options: Options | None = None) -> Finished:
    """Run a stage, go on with its run, or return what it came to where it is done."""
    done = finished(stage, session.workspace)
    if done is not None and not unfinished(session.workspace.runs / stage.name):
        return done
    return execute(stage, session, options, resume=True)


def _options(stage: Stage) -> Options | None:
    return SampleOptions(crowd=True) if stage is SAMPLE else None


def _facts(
    begun: Begun, measured: dict[str, Facts], seconds: Mapping[str, float], prompts: Sequence[Facts]
) -> dict[str, Any]:
    return {
        "phases": measured,
        "seconds": sum(seconds.values()),
        "seconds_of": dict(seconds),
        "seed": begun.settings.seed,
        "sizes": dict(begun.sizes),
        "machine": to_facts(machine()),
        "prompts": prompts,
    }


def main() -> int:
    """Run it, and say in one line what went wrong; 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    chosen = tyro.cli(Chosen, prog="from-nothing", description=__doc__)
    try:
        print(play(chosen))
    except MannersError as error:
        print(f"from-nothing: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        what = f"{error.filename} cannot be used" if error.filename else "the system refused what this needs"
        print(f"from-nothing: {what} ({error.strerror or error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("from-nothing: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
