"""The whole command line: parse, run one command, print its result, and say in one line what went wrong.

The stages are imported when they run, so that reading, importing and labelling never wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, subcommand

import manners
from manners.cli import backup, forget, loop, models, project, serve, stages, store
from manners.cli.common import show
from manners.errors import Blocked, MannersError, UsageError
from manners.launched import told
from manners.logs import fail, written
from manners.loop.round import COMMANDS
from manners.settings_load import load
from manners.terminal import in_one_line, shown_errors

Command = reduce(
    or_,
    (
        Annotated[project.Demo, subcommand("demo")],
        Annotated[project.Init, subcommand("init")],
        Annotated[store.Prompts, subcommand("prompts", description="Import, export or list prompts.")],
        Annotated[store.Responses, subcommand("responses", description="Export or list responses.")],
        Annotated[store.Comparisons, subcommand("comparisons", description="Import, export or list comparisons.")],
        *(stages.command(stage) for stage in COMMANDS),
        Annotated[loop.Loop, subcommand("loop")],
        Annotated[serve.Serve, subcommand("serve")],
        Annotated[
            serve.Accounts, subcommand("accounts", description="Who may sign in to the pages, and with which keys.")
        ],
        Annotated[forget.Forget, subcommand("forget")],
        Annotated[forget.Log, subcommand("log")],
        Annotated[models.Score, subcommand("score")],
        Annotated[project.Report, subcommand("report")],
        Annotated[
            models.Models, subcommand("models", description="List, promote, roll back or export model versions.")
        ],
        Annotated[project.ShowSettings, subcommand("settings")],
        Annotated[project.Status, subcommand("status")],
        Annotated[project.Doctor, subcommand("doctor")],
        Annotated[backup.Backup, subcommand("backup")],
        Annotated[backup.Restore, subcommand("restore")],
    ),
)
"""Every command, those of the stages from their list."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    with shown_errors():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parsed: Any = tyro.cli(
        Command, prog="manners", description=manners.__doc__, args=argv, config=(FlagCreatePairsOff,)
    )
    with written(parsed.log_format):
        return _done(parsed)


def _done(parsed: Any) -> int:
    """Do what was asked for, print what came of it, and return the exit code."""
    try:
        load(None, parsed.overrides)
        _shared(parsed)
        with redirect_stdout(sys.stderr):
            # Libraries print where they like; stdout is for the result alone.
            result = parsed.run()
        show(result, parsed.as_json)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(error, 2)
    except Blocked as error:
        show(error.facts, parsed.as_json)
        return _fail(error, 1)
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


def _shared(parsed: Any) -> None:
    """Raise UsageError for what several processes that torchrun has started cannot do together."""
    if told() is None:
        return
    alone = [name for name in ("plan", "workers", "processes", "ray_address") if getattr(parsed, name, None)]
    if alone:
        raise UsageError(f"--{alone[0].replace('_', '-')} is for one process: run it without torchrun.")
    if not (isinstance(parsed, stages.StageCommand) and parsed.stage.shared):
        raise UsageError(
            "torchrun is for the stages that train (pretrain, sft, reward, dpo, ppo): run this without it; `manners"
            " loop --processes N` starts others for those stages by itself."
        )


def _refused(error: OSError) -> str:
    """Say what the system refused, and about which file."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"the system refused what this command needs ({reason})."
    return f"{error.filename} cannot be used ({reason}): check its name, its folder and its rights."


def _fail(reason: MannersError | str, code: int) -> int:
    """Tell the reason in one line on stderr."""
    fail(f"manners: {in_one_line(' '.join(str(reason).split()))}")
    return code
