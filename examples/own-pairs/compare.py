"""I have 800 labelled pairs and a laptop: which method should I use? All of them at the same verdicts, in one table.

DPO, best-of-n by a reward model, and PPO against it.

    python examples/own-pairs/compare.py WORKSPACE                  pairs of a simulated crowd, whose taste then judges
    python examples/own-pairs/compare.py WORKSPACE --pairs FILE     your own pairs; people judge

Every step is a command of manners; the workspace stays, and holds everything: `manners status --workspace WORKSPACE`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from manners.data import demo_prompts
from manners.loop import stages
from manners.loop.session import Session
from manners.settings import Settings
from manners.settings_load import load
from manners.store.files.transfer import import_comparisons
from manners.types import Dialogue, PromptUse
from manners.workspace import INITIAL, Workspace, atomic_write

Facts = dict[str, Any]
SHORT = ("sample.max_new_tokens=32", "ppo.updates=12")
"""Short answers and a run of minutes, as the demo has them; `--set` says otherwise."""


@dataclass(frozen=True)
class Options:
    """What to compare with what."""

    workspace: Annotated[Positional[Path], arg(metavar="WORKSPACE")]
    """A folder for the project; made anew."""
    pairs: Path | None = None
    """Your comparisons, in any form that `manners comparisons import` reads; without, a simulated crowd labels some."""
    count: int = 800
    """Pairs that the crowd labels, about."""
    overrides: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="STAGE.FIELD=VALUE")] = ()
    """Change a setting."""


@dataclass(frozen=True)
class Row:
    """A method at the same verdicts."""

    method: str
    version: str | None
    seconds: float
    """Of training: reward model and PPO together; drawing and evaluating apart."""
    kl: float | None
    """To the initial model, in nats per response; of best-of-n at most log n - (n - 1) / n."""
    length: float | None
    """Of an answer, in tokens."""
    win_rate: tuple[float, float, float] | None
    """Over the initial model, with its interval; None where people are still to judge."""


def main(options: Options) -> None:
    """Compare, print the table, and keep it in the workspace as `own-pairs.json`."""
    settings = load(None, [*SHORT, *options.overrides]).settings
    workspace = Workspace.create(options.workspace)
    atomic_write(workspace.toml, _toml([*SHORT, *options.overrides]))
    if options.pairs is None:
        label_by_crowd(workspace, settings, options.count, demo_prompts())
    else:
        import_comparisons(Session(workspace, settings).store, options.pairs, mapping={}, skip_bad=False)
    found = compare(workspace, settings)
    atomic_write(workspace.root / "own-pairs.json", json.dumps(found, indent=1) + "\n")
    print(found["table"])


def _toml(overrides: list[str]) -> str:
    """Write settings down as the workspace's own, so that later commands have them too."""
    rows = [override.partition("=")[::2] for override in overrides]
    return "".join(f"{name.strip()} = {_value(value.strip())}\n" for name, value in dict(rows).items())


def _value(text: str) -> str:
    """Return a value as TOML has it: numbers, flags and tables as they are, anything else a text."""
    bare = text in ("true", "false") or text.startswith(("{", "[")) or text.replace(".", "").replace("e-", "").isdigit()
    return text if bare else json.dumps(text)


def label_by_crowd(
    workspace: Workspace, settings: Settings, count: int, prompts: dict[PromptUse, list[Dialogue]]
) -> None:
    """Have the initial model answer prompts, and the simulated crowd give its verdicts on about `count` pairs."""
    store = Session(workspace, settings).store
    for use, dialogues in prompts.items():
        store.add_prompts(dialogues, use, "example")
    each = math.comb(settings.sample.answers, 2)
    stages.sample(workspace, settings, crowd=True, plan=False, limit=-(-count // each))


def compare(workspace: Workspace, settings: Settings) -> Facts:
    """Run every method on the verdicts of a workspace, one after the other, and say which is best."""
    # 1. DPO: the policy from the verdicts themselves.
    direct = stages.train_directly(workspace, settings, plan=False)
    # 2. A reward model from the same verdicts. It can choose among n answers of the initial model without any training.
    reward = stages.train_reward(workspace, settings, plan=False)
    # 3. How DPO does, against the initial model and against best-of-n.
    dpo = stages.evaluate(workspace, settings, ask=None, plan=False, against=_unless_current(workspace, INITIAL))
    # 4. PPO against the reward model, and how it does against the initial model and against DPO.
    trained = stages.train_policy(workspace, settings, plan=False)
    ppo = stages.evaluate(workspace, settings, ask=None, plan=False, against=INITIAL)
    duel = stages.evaluate(workspace, settings, ask=None, plan=False, against=str(direct["version"]))
    both = reward["seconds"] + trained["seconds"]
    rows = [
        Row("DPO", direct["version"], direct["seconds"], dpo["kl"], dpo["length_after"], _rate(dpo)),
        _best_of_n(dpo, reward["seconds"]),
        Row("PPO", trained["version"], both, ppo["kl"], ppo["length_after"], _rate(ppo)),
    ]
    verdicts = direct["trained_on"]
    judged = dpo["source"] == "simulated"
    verdict = _verdict(duel, dpo, ppo, judged)
    return {
        "pairs": verdicts,
        "judge": "the hidden taste of the simulated crowd" if judged else "people",
        "rows": [vars(row) for row in rows],
        "ppo_over_dpo": _rate(duel),
        "verdict": verdict,
        "table": _table(rows, verdicts, verdict),
    }


def _unless_current(workspace: Workspace, version: str) -> str | None:
    """Return a version to compare with, or None where that is what would be compared with anyway."""
    return None if workspace.current_policy() == version else version


def _best_of_n(evaluation: Facts, seconds: float) -> Row:
    """The reward model chooses among n answers: no policy is trained, and each answer costs n."""
    best = evaluation.get("best_of_n") or {}
    n, rate = best.get("win_rate_n"), best.get("win_rate")
    kl = None if n is None else math.log(n) - (n - 1) / n
    shown = None if rate is None else (rate["estimate"], rate["low"], rate["high"])
    return Row(f"best of {n or 'n'}", None, seconds, kl, None, shown)


def _rate(evaluation: Facts) -> tuple[float, float, float] | None:
    """Return a win rate with its interval, where somebody has judged."""
    rate = evaluation.get("win_rate")
    return None if rate is None else (rate, *evaluation["interval"])


def _verdict(duel: Facts, dpo: Facts, ppo: Facts, judged: bool) -> str:
    """Say who wins: head to head, never by two rates over a third."""
    if not judged:
        return (
            f"Nobody has judged yet: `manners evaluate --ask 200 --against {dpo['version']}` opens blind comparisons of"
            f" {ppo['version']} (PPO) with {dpo['version']} (DPO), `manners serve` puts them before people, and then"
            f" `manners evaluate --against {dpo['version']}` says who wins."
        )
    estimate, low, high = _rate(duel) or (0.5, 0.0, 1.0)
    said = f"{100 * estimate:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    if low > 0.5:
        outcome = f"PPO wins over DPO: {said} head to head."
    elif high < 0.5:
        outcome = f"DPO wins over PPO, which gets {said} head to head."
    else:
        outcome = f"PPO and DPO cannot be told apart: PPO gets {said} head to head."
    return " ".join([outcome, dpo["best_of_n"]["sentence"], ppo["best_of_n"]["sentence"]])


def _table(rows: list[Row], verdicts: int, verdict: str) -> str:
    """Write the rows down, and under them who wins."""
    lines = [
        f"{verdicts} pairs learned from",
        f"{'method':<12}{'wins over the initial model':<34}{'KL':>8}{'tokens':>8}{'seconds':>9}",
    ]
    for row in rows:
        won = "nobody has judged"
        if row.win_rate is not None:
            estimate, low, high = (100 * x for x in row.win_rate)
            won = f"{estimate:.1f} % (95 %: {low:.1f} to {high:.1f})"
        kl, length = (f"{x:.1f}" if x is not None else "-" for x in (row.kl, row.length))
        lines.append(f"{row.method:<12}{won:<34}{kl:>8}{length:>8}{row.seconds:>9.0f}")
    return "\n".join([*lines, "", verdict])


if __name__ == "__main__":
    main(tyro.cli(Options))
