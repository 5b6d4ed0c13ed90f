"""A server under attack: `python -m benchmarks.attack`, and what twenty annotators and five chats notice of it.

The real server, the real engine, and a pool of hostile clients (`benchmarks.hostile`) in a process of its own, on the
same machine. Measured in turns: quiet, attacked, and again. What the attackers' own processor time takes from the
server is nothing that a server could mend, for they would have machines of their own: they give way to it, and what
everybody took is in the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.honest import Noticed, chat, label, memory, started_by, times, wait_for_the_model
from benchmarks.publish import ROOT, here, replace_between

PAGE = ROOT / "docs" / "security.md"


@dataclass(frozen=True)
class Options:
    """What to run."""

    model: str | None = None
    """What the server is to serve; a tiny one made of random numbers if not said."""
    annotators: int = 20
    chats: int = 5
    hostile: int = 3
    """Accounts that the attackers have."""
    seconds: float = 15.0
    """Quiet, and then attacked."""
    rounds: int = 2
    """How often each: what else the machine does meanwhile then falls on both."""
    size: float = 1.0
    """1 is 700 connections that wait, and some 40 requests a second."""
    hostile_niceness: int = 19
    """What the attackers give way by, since they would have machines of their own; 0 is by nothing."""
    publish: bool = True
    """Write the table into the documentation."""


@dataclass(frozen=True)
class Outcome:
    """Quiet and attacked, side by side."""

    quiet: Noticed
    attacked: Noticed
    memory: tuple[int, int, int]
    """Most bytes of the server's processes before anybody came, quiet and attacked."""
    told: Mapping[str, int]
    """What the hostile were answered."""
    log: int
    """Bytes that the server wrote to its log."""


def main(options: Options) -> None:
    """Measure, and publish the table."""
    outcome = measure(options)
    text = table(outcome, options)
    print(text)
    if options.publish:
        replace_between(PAGE, "attack", text)


def measure(options: Options) -> Outcome:
    """Serve a workspace, and use it: quietly, and then under attack."""
    # The servers of the tests: the same real parts.
    from manners.store import Store
    from manners.store.accounts import Accounts
    from manners.types import AccountRole
    from manners.workspace import Workspace
    from tests.web.conftest import Place, serve
    from tests.web.test_label import pair
    from tests.worlds import save_tiny

    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        name = options.model or str(save_tiny(folder / "model"))
        tiny = "" if options.model else "trainable_layers = 2\ncontext = 256\n"
        workspace = Workspace.create(folder / "workspace")
        served = "[serve]\nmax_new_tokens = 64\nrepeat_share = 0.0\nshortest_view = 0\n"
        lines = f'[model]\nname = "{name}"\ndevice = "cpu"\n{tiny}{served}'
        (workspace.root / "manners.toml").write_text(lines, encoding="utf-8")
        store = opened.enter_context(closing(Store.open_or_create(workspace.database)))
        place = Place(workspace.root, store, Accounts(store))
        place.accounts.add("olga", AccountRole.OWNER, None)
        place.store.add_comparisons(
            pair(number) for number in range(options.annotators * int(options.seconds) * 2 * options.rounds)
        )
        keys = {kind: [place.key(f"{kind}{n}") for n in range(count)] for kind, count in _people(options).items()}
        place.accounts.set_role("hostile0", AccountRole.REVIEWER)  # who may look at the dashboard beside a long chat
        log = opened.enter_context((folder / "log").open("w+"))
        with serve(place.folder, stderr=log) as server:
            host = server.url.removeprefix("http://")
            wait_for_the_model(host, keys["chat"][0])
            calm, worst, told = [memory(server.process.pid)], list[int](), Counter[str]()
            quiet, attacked = Noticed(), Noticed()
            command = ["nice", "-n", str(options.hostile_niceness), sys.executable, "-m", "benchmarks.hostile"]
            command += [host.rpartition(":")[2], str(options.seconds + 8), str(options.size), *keys["hostile"]]
            for _ in range(options.rounds):
                with _taken(server.process.pid, os.getpid(), None, quiet.took):
                    _use(host, keys, options, quiet, lambda: calm.append(memory(server.process.pid)))
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacking:
                    time.sleep(3)  # until they have all begun
                    with _taken(server.process.pid, os.getpid(), attacking.pid, attacked.took):
                        _use(host, keys, options, attacked, lambda: worst.append(memory(server.process.pid)))
                    told.update(json.loads(attacking.communicate()[0]))
        written = (folder / "log").stat().st_size
    return Outcome(quiet, attacked, (calm[0], max(calm), max(worst)), dict(sorted(told.items())), written)


def _people(options: Options) -> dict[str, int]:
    return {"labeller": options.annotators, "chat": options.chats, "hostile": options.hostile}


def _use(
    host: str, keys: Mapping[str, Sequence[str]], options: Options, noticed: Noticed, look: Callable[[], None]
) -> None:
    """Let the honest work for some seconds; each has a thread, and comes back after a mistake."""
    end = time.monotonic() + options.seconds
    people = [threading.Thread(target=label, args=(host, key, end, noticed)) for key in keys["labeller"]]
    people += [threading.Thread(target=chat, args=(host, key, end, noticed)) for key in keys["chat"]]
    for one in people:
        one.start()
    while any(one.is_alive() for one in people):
        look()
        time.sleep(0.25)


@contextmanager
def _taken(server: int, honest: int, hostile: int | None, took: dict[str, float]) -> Iterator[None]:
    """Add the seconds on a processor that each took meanwhile, and those that pages waited for one."""

    def now() -> dict[str, float]:
        whose = {"pages": [server], "model and hashing": started_by(server), "the honest": [honest]}
        whose |= {} if hostile is None else {"the hostile": [hostile]}
        seconds = {name: sum(map(_processor_seconds, pids)) for name, pids in whose.items()}
        # Of the thread that serves them: how long it could have run and had no core (Linux, sched-stats).
        return seconds | {"waited": int(Path(f"/proc/{server}/schedstat").read_text().split()[1]) / 1e9}

    begun, before = time.monotonic(), now()
    yield
    for name, seconds in now().items():
        took[name] += seconds - before[name]
    took["passed"] += time.monotonic() - begun


def _processor_seconds(pid: int) -> float:
    """Return how long a process has run on a processor, all of its threads together."""
    with suppress(OSError):  # it has ended meanwhile
        taken = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, taken)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def table(outcome: Outcome, options: Options) -> str:
    """Return the outcome as Markdown."""
    quiet, attacked = outcome.quiet, outcome.attacked

    def share(noticed: Noticed, *names: str) -> str:
        shares = (100 * noticed.took.get(name, 0.0) / noticed.took["passed"] for name in names)
        return ", ".join(f"{of:.0f} %" for of in shares)

    started, calm, worst = (f"{size / 1e6:.0f} MB" for size in outcome.memory)
    ours, theirs = ("pages", "model and hashing"), ("the honest", "the hostile")
    rows = [
        "| what the honest notice | quiet | attacked |",
        "|---|---|---|",
        f"| a page, a pair, a verdict | {times(quiet.pages)} | {times(attacked.pages)} |",
        f"| first piece of an answer | {times(quiet.first)} | {times(attacked.first)} |",
        f"| requests answered | {len(quiet.pages) + len(quiet.first)} | {len(attacked.pages) + len(attacked.first)} |",
        f"| requests that failed | {len(quiet.failed)} | {len(attacked.failed)} |",
        f"| most memory, server and model ({started} at the start) | {calm} | {worst} |",
        f"| of one core: pages, model and hashing | {share(quiet, *ours)} | {share(attacked, *ours)} |",
        f"| of one core: the honest, the hostile | {share(quiet, *theirs)} | {share(attacked, *theirs)} |",
        f"| of the time, the thread of pages could run and had no core | {share(quiet, 'waited')} |"
        f" {share(attacked, 'waited')} |",
        "",
        "| what the hostile were answered | times |",
        "|---|---|",
        *(f"| {what} | {count} |" for what, count in outcome.told.items()),
    ]
    who = f"{options.annotators} annotators, {options.chats} chats, {options.hostile} hostile accounts"
    model = options.model or "a tiny model of random numbers"
    how = f"{options.rounds} times {options.seconds:.0f} s each, in turns; {model}"
    log = f"the server's log grew to {outcome.log / 1000:.0f} kB"
    way = f"the attackers give way by a niceness of {options.hostile_niceness}"
    return "\n".join([*rows, "", f"{who}; {how}; {way}; {log}. {here()}"])


if __name__ == "__main__":
    main(tyro.cli(Options))
