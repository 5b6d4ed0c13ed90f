"""Deletion in files: what the workspace keeps of words that are gone from its store.

A report that shows them is removed, and made anew by `manners report`; so is a store that was too damaged to be read
when another was put in its place, for nobody can tell what it holds, and a copy from before its tables were changed. Of
the facts of a run the examples with them are taken out; where a reason quotes them that somebody gave for promoting,
approving or rejecting a version, a tombstone stands in its place. An unfinished run that holds them is dropped: with
other words it would be another run, and refuse to go on. So is one that is damaged, for nobody can tell what it holds.

Files are swept twice: before the store loses the words, or a kill in between would leave them there and nobody who
knows them; and after, for what was written meanwhile.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from manners.audit import gate
from manners.errors import MannersError
from manners.errors import described as in_kinds
from manners.facts import Facts
from manners.loop import stepping
from manners.loop.judging import JOURNAL
from manners.loop.round import PPO
from manners.models import described
from manners.store import Store, cases, deletions
from manners.store.forget import forget, keys_of, words_of
from manners.store.quoting import quoting
from manners.store.saying import UNREADABLE, pruned, says, without_examples, without_lines
from manners.types import DELETED
from manners.unfinished import says_version
from manners.workspace import Workspace, discard

DAMAGED, BEFORE = "store.db.damaged", "store.db.revision-*"
"""What `manners restore` calls a store that it could not read, and copies from before tables were changed."""
UNPICKLED = b"X"
"""What stands before the length and the bytes of a text in a checkpoint."""


@dataclass(frozen=True)
class Swept:
    """What was found in files, and is gone."""

    files: tuple[str, ...]
    """Removed, or with examples taken out."""
    runs: tuple[str, ...]
    """Unfinished, and dropped."""
    failed: tuple[str, ...] = ()
    """Where words may still be, each with what kept them from being taken out."""

    def then(self, later: Swept) -> Swept:
        """Return what was found in both; what failed the first time and not the second has not."""
        files, runs = (tuple(dict.fromkeys(both)) for both in (self.files + later.files, self.runs + later.runs))
        return Swept(files, runs, later.failed)


def sweep(workspace: Workspace, texts: Collection[str], account: str | None = None) -> Swept:
    """Take some texts out of all files that the workspace keeps beside its store; versions are numbers, and stay.

    With them go the reasons that an account has given. What cannot be done keeps nothing else from being done: the
    store has lost the words already, and with it whoever could say what is to be looked for.
    """
    runs, changed, failed = _folders(workspace.runs), list[Path](), list[str]()
    for where, take_out in _steps(workspace, texts, account, runs):
        try:
            changed += take_out()
        except Exception as fault:
            failed.append(f"{where} ({fault if isinstance(fault, MannersError) else in_kinds(fault)})")
    files, dropped = ([one.name for one in changed if (one in runs) is run] for run in (False, True))
    return Swept(tuple(files), tuple(dropped), tuple(failed))


def _steps(
    workspace: Workspace, texts: Collection[str], account: str | None, runs: Iterable[Path]
) -> Iterator[tuple[str, Callable[[], list[Path]]]]:
    """Yield where words may be, and what takes them out there and returns what it has changed."""
    for folder in runs:
        yield f"runs/{folder.name}", partial(_without_run, folder, texts)
    for file in sorted(workspace.runs.glob("*.json")):
        yield f"runs/{file.name}", partial(_without_examples, file, texts)
    yield f"runs/{JOURNAL}", partial(_without_answers, workspace, texts)
    yield "runs/step", partial(_without_log, workspace, texts)
    yield "the report", partial(_without_report, workspace, texts)
    yield str(cases.FILE), partial(_without_cases, workspace, texts)
    yield "older stores", partial(_without_older, workspace)
    quotes = cache(partial(quoting, texts))
    for name in described.every(workspace) if texts or account else ():
        yield f"models/{name}/{gate.RECORD}", partial(_without_reasons, workspace, name, quotes, account)


def forget_person(workspace: Workspace, store: Store, name: str, user: str | None = None) -> Facts:
    """Forget an account, or one user of its programs, in store and files; see `store.forget`."""
    account, conversations = keys_of(store, name, user)
    accounts = [deletions.of_account(account)] if user is None else []
    for key in (*accounts, *conversations):
        deletions.note(workspace.root, key)  # so that no backup of before brings them back
    whose = f"account {account.split()[0]}" if user is None else None
    first = sweep(workspace, words_of(store, name, user), whose)
    gone = forget(store, name, user)
    swept = first.then(sweep(workspace, gone.texts, whose))
    done = store.clear_traces(always=True)
    facts: dict[str, Any] = {
        "forgotten": f"account {gone.account}" if user is None else f"a user of account {gone.account}",
        "names": gone.users,
        "conversations": gone.conversations,
        "comparisons": len(gone.comparisons),
        "learned_by": gone.versions,
        "files": swept.files,
        "runs_dropped": swept.runs,
        "database_written_anew": done,
    }
    if gone.unnamed:
        facts["unnamed"] = gone.unnamed
    if swept.failed:
        facts["failed"] = swept.failed
        facts["remedy"] = "words may still be in what `failed` names, and nobody knows them any more: remove it"
    if workspace.url is not None:
        facts["out_of_reach"] = "the server's write-ahead log, its archives, replicas, dumps and what it logs"
    elif not done:
        facts["next"] = "another program holds the database: `manners serve` writes it anew when it begins and ends"
    return facts


def _folders(runs: Path) -> list[Path]:
    return sorted(folder for folder in runs.glob("*") if any(folder.glob("checkpoint-*")))


def _without_run(run: Path, texts: Collection[str]) -> list[Path]:
    """Drop an unfinished run that holds one of these texts, or of which nobody can tell."""
    if not texts or not _holds(run, texts):
        return []
    discard(run)
    return [run]


def _holds(run: Path, texts: Collection[str]) -> bool:
    """Return whether a checkpoint holds one of these texts, or is damaged; by bytes, for nothing is unpickled.

    Before checkpoints said which version is made, PPO's held prompts as tokens, and nobody can tell which.
    """
    if run.name == PPO.name and not says_version(run):
        return True
    wanted = [UNPICKLED + len(text).to_bytes(4, "little") + text for text in _encoded(texts)]
    return any(state is None or any(text in state for text in wanted) for state in _states(run))


def _states(run: Path) -> Iterator[bytes | None]:
    """Yield what the checkpoints of a run hold, None for what cannot be read."""
    for file in run.glob("checkpoint-*/state.pt"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                yield from map(archive.read, names)
                if not names:
                    yield None
        except FileNotFoundError:
            continue  # the run goes on, and has put another one in its place
        except Exception:  # a damaged archive raises half a dozen kinds
            yield None


def _encoded(texts: Iterable[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def _without_examples(file: Path, texts: Collection[str]) -> list[Path]:
    return [file] if without_examples(file, texts) else []


def _without_answers(workspace: Workspace, texts: Collection[str]) -> list[Path]:
    """Remove what a run of `judge` was answered that was stopped: a short question can be guessed by its hash."""
    file = workspace.runs / JOURNAL
    if not texts or not file.exists():
        return []
    file.unlink()
    return [file]


def _without_log(workspace: Workspace, texts: Collection[str]) -> list[Path]:
    """Empty what a step of the loop has said, where it says or quotes one of these texts."""
    file = stepping.log(workspace)
    said = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if not says(said, texts) and not quoting(texts)(said):
        return []
    stepping.clear(workspace)
    return [file]


def _without_reasons(
    workspace: Workspace, version: str, quotes: Callable[[], Callable[[str], bool]], account: str | None
) -> list[Path]:
    """Put a tombstone in the place of reasons that an account has given or that quote texts, and on their card."""
    says = quotes()
    changed = gate.take_out(workspace, version, lambda by, why: DELETED if by == account or says(why) else why)
    return [workspace.models / version / gate.RECORD] if changed else []


def _without_cases(workspace: Workspace, texts: Collection[str]) -> list[Path]:
    """Take the cases with these texts out of their file; the store has lost them already."""
    file = workspace.root / cases.FILE
    with cases.writing(workspace.root):  # whoever has read the store before they were deleted has written by then
        return [file] if file.exists() and without_lines(file, texts) else []


def _without_older(workspace: Workspace) -> list[Path]:
    """Remove the store that a restore has put aside, and those that were kept before their tables were changed."""
    found = [*workspace.root.glob(DAMAGED), *workspace.root.glob(BEFORE)]
    for one in found:
        one.unlink()
    return found


def _without_report(workspace: Workspace, texts: Collection[str]) -> list[Path]:
    """Remove a report that says one of these texts, or of which nobody can tell."""
    both = [file for file in (workspace.report_html, workspace.report_json) if file.exists()]
    if not both:
        return []
    try:
        facts = json.loads(workspace.report_json.read_text(encoding="utf-8"))
        quoted = pruned(facts, texts) != facts
    except UNREADABLE:
        quoted = bool(texts)
    if not quoted:
        return []
    for file in both:
        file.unlink()
    return both
