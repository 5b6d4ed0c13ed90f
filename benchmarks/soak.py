"""An hour of serving, labelling and training on one workspace: `python -m benchmarks.soak`.

People label and chat, while reward models and policies are trained from what they say, each policy takes its place in
the server without a stop, and nothing else is done. What is looked at: whether anything failed, whether each verdict
that was acknowledged is there, whether memory grows, and how long chats wait for their first piece.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import httpx
import tyro

from benchmarks.honest import Noticed, chat, label, memory, times, wait_for_the_model
from benchmarks.publish import PAGE, ROOT, here, replace_between

GROWTH = 0.05
"""Most that memory may grow, as a share."""
ENOUGH = 40
"""Verdicts before the first reward model is trained on them."""
TAKEN_OVER = 120.0
"""Seconds within which a policy that was promoted must answer."""
IDLE = 60.0
"""Seconds without a verdict after which labelling has stopped."""
COMMAND = "import sys; from manners.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Options:
    """What to run."""

    minutes: float = 60.0
    labellers: int = 5
    chats: int = 3
    thinking: float = 5.0
    """Seconds that a labeller thinks, on average."""
    publish: bool = True
    """Write the table into the documentation."""


@dataclass
class Trained:
    """What the training beside it came to."""

    ended: Counter[str] = field(default_factory=Counter)
    """How often each command did what it should."""
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What was seen in the whole time."""

    noticed: Noticed
    trained: Trained
    memory: Sequence[int]
    """Resident bytes of the server and its model, every few seconds."""
    stored: int
    """Verdicts of labellers in the store at the end."""
    log: int
    """Bytes that the server wrote to its log."""
    idle: float = 0.0
    """Seconds between the last verdict and the end."""

    @property
    def before(self) -> float:
        """Memory once all has been used: the median of the second tenth of the time."""
        tenth = max(1, len(self.memory) // 10)
        return median(self.memory[tenth : 2 * tenth] or self.memory)

    @property
    def after(self) -> float:
        """Memory at the end: the median of the last tenth."""
        return median(self.memory[-max(1, len(self.memory) // 10) :])

    @property
    def growth(self) -> float:
        """By how much memory grew, as a share."""
        return self.after / self.before - 1


def main(options: Options) -> None:
    """Measure, publish the table, and exit with 1 where something is not as it should be."""
    outcome = measure(options)
    text = table(outcome, options)
    print(text)
    for line in [*outcome.noticed.failed, *outcome.trained.failed][:20]:
        print(line, file=sys.stderr)
    if options.publish:
        replace_between(PAGE, "soak", text)
    if found := faults(outcome):
        raise SystemExit("; ".join(found))


def faults(outcome: Outcome) -> list[str]:
    """Say what is not as it should be."""
    found = []
    if failed := len(outcome.noticed.failed) + len(outcome.trained.failed):
        found.append(f"{failed} requests and commands failed")
    if outcome.stored < (said := len(outcome.noticed.acknowledged)):
        found.append(f"{said - outcome.stored} verdicts that were acknowledged are not there")
    for what, count in (
        ("verdict was given", len(outcome.noticed.acknowledged)),
        ("answer was begun", len(outcome.noticed.first)),
        ("policy took its place", outcome.trained.ended["promote"]),
    ):
        if not count:
            found.append(f"no {what}")
    if outcome.idle > IDLE:
        found.append(f"nobody labelled in the last {outcome.idle:.0f} s")
    if outcome.growth > GROWTH:
        found.append(f"memory grew by {100 * outcome.growth:.1f} %")
    return found


def measure(options: Options) -> Outcome:
    """Serve the workspace of a tiny demo, use it, and train on what is said."""
    # The servers of the tests: the same real parts.
    from manners.store import Store
    from manners.store.accounts import Accounts
    from manners.types import AccountRole
    from tests.loop import tiny
    from tests.web.conftest import Place, serve
    from tests.web.test_label import pair
    from tests.worlds import save_tiny

    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        chosen = tiny.settings(save_tiny(folder / "model"))
        root = folder / "workspace"
        tiny.demo(root, chosen)
        serving = "[serve]\nrepeat_share = 0.0\nshortest_view = 0\nchat_ask = 0.0\n"
        said_by_people = replace(chosen, reward=replace(chosen.reward, annotators="human"))  # the demo asked a crowd
        (root / "manners.toml").write_text(tiny.toml(said_by_people) + serving, encoding="utf-8")
        store = opened.enter_context(closing(Store.open_or_create(root / "store.db")))
        place = Place(root, store, Accounts(store))
        place.accounts.add("olga", AccountRole.OWNER, None)
        wanted = 2 * round(options.minutes * 60 * options.labellers / options.thinking)
        store.add_comparisons(pair(number) for number in range(wanted))
        labellers = [place.key(f"labeller{number}") for number in range(options.labellers)]
        chats = [place.key(f"chat{number}") for number in range(options.chats)]
        log = opened.enter_context((folder / "log").open("w+"))
        noticed, trained, seen = Noticed(), Trained(), list[int]()
        with serve(root, stderr=log) as server:
            host = server.url.removeprefix("http://")
            wait_for_the_model(host, chats[0])
            end = time.monotonic() + 60 * options.minutes
            people = [
                *(threading.Thread(target=label, args=(host, k, end, noticed, options.thinking)) for k in labellers),
                *(threading.Thread(target=chat, args=(host, k, end, noticed)) for k in chats),
                threading.Thread(target=train, args=(root, server.url, chats[0], end, noticed, trained)),
            ]
            for one in people:
                one.start()
            while any(one.is_alive() for one in people):
                if time.monotonic() < end:
                    seen.append(memory(server.process.pid))
                time.sleep(2.0)
        stored = sum(
            verdict.annotator.name.startswith("labeller") for one in store.comparisons() for verdict in one.verdicts
        )
        return Outcome(noticed, trained, seen, stored, (folder / "log").stat().st_size, end - noticed.last)


def train(root: Path, url: str, key: str, end: float, noticed: Noticed, trained: Trained) -> None:
    """Train a reward model and a policy on what was said so far, and see that the policy serves; again and again."""
    while len(noticed.acknowledged) < ENOUGH and time.monotonic() < end:
        time.sleep(1.0)
    while time.monotonic() < end:
        try:
            for stage in ("reward", "ppo"):
                _run(root, stage)
                trained.ended[stage] += 1
            policies = (root / "models").glob("policy-*")
            newest = max(policies, key=lambda found: int(found.name.partition("-")[2])).name
            _run(root, "models", "promote", newest, "--override", "whoever is the newest serves")
            _wait_for(url, key, newest)
            trained.ended["promote"] += 1
        except Exception as error:  # whatever it is, the table says so
            trained.failed.append(f"{type(error).__name__}: {error}")
            return


def _wait_for(url: str, key: str, version: str) -> None:
    """Wait until the server answers by a version."""
    until = time.monotonic() + TAKEN_OVER
    while time.monotonic() < until:
        models = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).raise_for_status()
        if f'"{version}"' in models.text:
            return
        time.sleep(0.5)
    raise TimeoutError(f"{version} was promoted, and does not answer after {TAKEN_OVER:g} s")


def _run(root: Path, *words: str) -> None:
    """Run a command on the workspace, giving way to the server; raises where it fails."""
    command = ["nice", "-n", "15", sys.executable, "-c", COMMAND, *words, "--workspace", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise RuntimeError(f"{words[0]}: {said[-1]}")


def table(outcome: Outcome, options: Options) -> str:
    """Return the outcome as Markdown."""
    noticed, trained = outcome.noticed, outcome.trained

    ended = ", ".join(f"{count} {name}" for name, count in trained.ended.items()) or "none"
    return "\n".join(
        [
            f"| in {options.minutes:g} minutes | |",
            "|---|---|",
            f"| requests of labellers | {len(noticed.pages)}: {times(noticed.pages)} |",
            f"| verdicts acknowledged, and there | {len(noticed.acknowledged)}, {outcome.stored} |",
            f"| answers in chats, until their first piece | {len(noticed.first)}: {times(noticed.first)} |",
            f"| commands beside it | {ended} |",
            f"| what failed: requests, commands | {len(noticed.failed)}, {len(trained.failed)} |",
            f"| memory of server and model, early and at the end | {outcome.before / 1e6:.0f} MB,"
            f" {outcome.after / 1e6:.0f} MB ({100 * outcome.growth:+.1f} %) |",
            f"| the server's log | {outcome.log / 1000:.0f} kB |",
            "",
            f"{options.labellers} labellers who think {options.thinking:g} s, {options.chats} chats, a tiny model of"
            f" random numbers; every policy is promoted when it is trained. {here()}",
        ]
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
