"""A server under attack: `python -m benchmarks.attack`, and what twenty annotators and five chats notice of it.

The real server, the real engine, and a pool of hostile clients (`benchmarks.hostile`) in a process of its own, on the
same machine. Measured in turns: quiet, attacked, and again.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import tyro

from benchmarks.label import percentile
from benchmarks.publish import ROOT, here, replace_between

PAGE = ROOT / "docs" / "security.md"
THINKING = 1.0
"""Seconds that an annotator thinks, a tenth of what people take; half as long or half as long again."""


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
    publish: bool = True
    """Write the table into the documentation."""


@dataclass
class Noticed:
    """What the honest noticed."""

    pages: list[float] = field(default_factory=list)
    """Seconds that each page, pair and verdict took."""
    first: list[float] = field(default_factory=list)
    """Seconds until each answer's first piece."""
    failed: list[str] = field(default_factory=list)


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
        lines = f'[model]\nname = "{name}"\ndevice = "cpu"\n{tiny}[serve]\nrepeat_share = 0.0\nshortest_view = 0\n'
        (workspace.root / "manners.toml").write_text(lines, encoding="utf-8")
        store = opened.enter_context(closing(Store.open_or_create(workspace.database)))
        place = Place(workspace.root, store, Accounts(store))
        place.accounts.add("olga", AccountRole.OWNER, None)
        place.store.add_comparisons(
            pair(number) for number in range(options.annotators * int(options.seconds) * 2 * options.rounds)
        )
        keys = {kind: [place.key(f"{kind}{n}") for n in range(count)] for kind, count in _people(options).items()}
        log = opened.enter_context((folder / "log").open("w+"))
        with serve(place.folder, stderr=log) as server:
            host = server.url.removeprefix("http://")
            _wait_for_the_model(host, keys["chat"][0])
            calm, worst, told = [_memory(server.process.pid)], list[int](), Counter[str]()
            quiet, attacked = Noticed(), Noticed()
            command = [sys.executable, "-m", "benchmarks.hostile", host.rpartition(":")[2], str(options.seconds + 8)]
            command += [str(options.size), *keys["hostile"]]
            for _ in range(options.rounds):
                _use(host, keys, options, quiet, lambda: calm.append(_memory(server.process.pid)))
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacking:
                    time.sleep(3)  # until they have all begun
                    _use(host, keys, options, attacked, lambda: worst.append(_memory(server.process.pid)))
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
    people = [threading.Thread(target=_label, args=(host, key, end, noticed)) for key in keys["labeller"]]
    people += [threading.Thread(target=_chat, args=(host, key, end, noticed)) for key in keys["chat"]]
    for one in people:
        one.start()
    while any(one.is_alive() for one in people):
        look()
        time.sleep(0.25)


def _label(host: str, key: str, end: float, noticed: Noticed) -> None:
    """Open the page, and judge one pair after another."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(connection: HTTPConnection, method: str, path: str, body: object = None) -> bytes:
        begun = time.monotonic()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.read()
        noticed.pages.append(time.monotonic() - begun)
        if answer.status != 200:
            noticed.failed.append(f"{path}: {answer.status} {found[:80].decode(errors='replace')}")
        return found

    while time.monotonic() < end:
        try:
            with closing(HTTPConnection(host, timeout=60)) as connection:
                for _ in range(5):
                    ask(connection, "GET", "/label")
                    shown = json.loads(ask(connection, "POST", "/label/next", {}))["pair"]
                    if shown is None or time.monotonic() > end:
                        return
                    time.sleep(THINKING * random.uniform(0.5, 1.5))
                    ask(connection, "POST", "/label/verdict", {"view": shown["view"], "choice": "left", "seconds": 1.0})
        except (OSError, HTTPException, ValueError, KeyError) as error:
            noticed.failed.append(f"label: {type(error).__name__} {error}")


def _chat(host: str, key: str, end: float, noticed: Noticed) -> None:
    """Ask for one answer after another, and note when each begins."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    asked = {"model": "manners", "messages": [{"role": "user", "content": "How do I bake bread?"}], "stream": True}
    while time.monotonic() < end:
        try:
            with closing(HTTPConnection(host, timeout=60)) as connection:
                begun = time.monotonic()
                body = json.dumps(asked | {"max_tokens": 30, "seed": random.randrange(2**31)})
                connection.request("POST", "/v1/chat/completions", body, headers)
                answer, first, ended = connection.getresponse(), 0.0, False
                for line in answer:
                    if not first and re.search(rb'"content": "[^"]', line):
                        first = time.monotonic() - begun
                    ended |= line.strip() == b"data: [DONE]"
                if answer.status != 200 or not ended:
                    noticed.failed.append(f"chat: {answer.status}, {'whole' if ended else 'broken off'}")
                elif first:
                    noticed.first.append(first)
        except (OSError, HTTPException) as error:
            noticed.failed.append(f"chat: {type(error).__name__} {error}")
        time.sleep(0.5 * random.uniform(0.5, 1.5))


def _wait_for_the_model(host: str, key: str) -> None:
    for _ in range(1200):
        with closing(HTTPConnection(host, timeout=60)) as connection:
            connection.request("GET", "/v1/health", headers={"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            said = answer.read().decode()
            if answer.status == 200:
                return
            if "Loading model" not in said:
                raise SystemExit(said)
        time.sleep(0.25)
    raise SystemExit("the model does not load")


def _memory(pid: int) -> int:
    """Return the resident bytes of a process and of those that it started."""
    total = 0
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            text = file.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(file.parent.name) == pid or f"PPid:\t{pid}\n" in text:
            found = re.search(r"VmRSS:\s+(\d+) kB", text)
            total += int(found[1]) * 1024 if found else 0
    return total


def table(outcome: Outcome, options: Options) -> str:
    """Return the outcome as Markdown."""
    quiet, attacked = outcome.quiet, outcome.attacked

    def times(seconds: list[float]) -> str:
        return f"{1000 * percentile(seconds, 50):.0f} ms (p95 **{1000 * percentile(seconds, 95):.0f} ms**)"

    started, calm, worst = (f"{size / 1e6:.0f} MB" for size in outcome.memory)
    rows = [
        "| what the honest notice | quiet | attacked |",
        "|---|---|---|",
        f"| a page, a pair, a verdict | {times(quiet.pages)} | {times(attacked.pages)} |",
        f"| first piece of an answer | {times(quiet.first)} | {times(attacked.first)} |",
        f"| requests answered | {len(quiet.pages) + len(quiet.first)} | {len(attacked.pages) + len(attacked.first)} |",
        f"| requests that failed | {len(quiet.failed)} | {len(attacked.failed)} |",
        f"| most memory, server and model ({started} at the start) | {calm} | {worst} |",
        "",
        "| what the hostile were answered | times |",
        "|---|---|",
        *(f"| {what} | {count} |" for what, count in outcome.told.items()),
    ]
    who = f"{options.annotators} annotators, {options.chats} chats, {options.hostile} hostile accounts"
    model = options.model or "a tiny model of random numbers"
    how = f"{options.rounds} times {options.seconds:.0f} s each, in turns; {model}"
    log = f"the server's log grew to {outcome.log / 1000:.0f} kB"
    return "\n".join([*rows, "", f"{who}; {how}; {log}. {here()}"])


if __name__ == "__main__":
    main(tyro.cli(Options))
