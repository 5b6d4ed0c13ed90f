"""I have 800 labelled pairs and a laptop: which method should I use? All of them at the same verdicts, in one table.

Fine-tuning on the answers that were chosen, DPO, best-of-n by a reward model, and PPO against it.

    python examples/own-pairs/compare.py WORKSPACE                  pairs of a simulated crowd, whose taste then judges
    python examples/own-pairs/compare.py WORKSPACE --pairs FILE     your own pairs; people judge

PPO gets as many updates as fit into the time that the slower of the first two took, its reward model included;
`--set ppo.updates=N` says otherwise.

Every step is a command of manners; the workspace stays, and holds everything: `manners status --workspace WORKSPACE`.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from manners.data import demo_prompts
from manners.loop import stages
from manners.loop.session import Session
from manners.settings import Settings
from manners.settings_load import load, to_toml
from manners.store.files.prompts import prompts_of
from manners.store.files.transfer import import_comparisons
from manners.types import Dialogue, PromptUse
from manners.workspace import INITIAL, Workspace, atomic_write

Facts = dict[str, Any]
SHORT = ("sample.max_new_tokens=32",)
"""Short answers and a run of minutes, as the demo has them; `--set` says otherwise."""
UPDATES = range(4, 61)
"""Of PPO: no fewer, since the first learn next to nothing, and no more, for there are only so many prompts."""
TRIED = 2
"""Updates by which PPO's speed is measured, in a copy of the workspace that is thrown away."""


@dataclass(frozen=True)
class Options:
    """What to compare with what."""

    workspace: Annotated[Positional[Path], arg(metavar="WORKSPACE")]
    """A folder for the project; made anew."""
    pairs: Path | None = None
    """Your comparisons, in any form that `manners comparisons import` reads; without, a simulated crowd labels some."""
    prompts: Path | None = None
    """A folder with `prompts_train.jsonl`, `prompts_validate.jsonl` and `prompts_evaluate.jsonl` for the crowd;
    the demo's if left out."""
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
    """Of an answer, in tokens; of what is compared as a whole model, which is measured in characters, None."""
    win_rate: tuple[float, float, float] | None
    """Over the initial model, with its interval; None where people are still to judge."""


def main(options: Options) -> None:
    """Compare, print the table, and keep it in the workspace as `own-pairs.json`."""
    settings = load(None, [*SHORT, *options.overrides]).settings
    workspace = Workspace.create(options.workspace)
    atomic_write(workspace.toml, _toml([*SHORT, *options.overrides]))
    if options.pairs is None:
        label_by_crowd(workspace, settings, options.count, _prompts(options.prompts))
    else:
        import_comparisons(Session(workspace, settings).store, options.pairs, mapping={}, skip_bad=False)
    fixed = any(override.startswith("ppo.updates") for override in options.overrides)
    found = compare(workspace, settings, equal_time=not fixed)
    atomic_write(workspace.root / "own-pairs.json", json.dumps(found, indent=1) + "\n")
    print(found["table"])


def _toml(overrides: list[str]) -> str:
    """Write settings down as the workspace's own, so that later commands have them too."""
    rows = [override.partition("=")[::2] for override in overrides]
    return "".join(f"{name.strip()} = {_value(value.strip())}\n" for name, value in dict(rows).items())


def _value(text: str) -> str:
    """Return a value as TOML has it: numbers, flags and tables as they are, anything else a text."""
    bare = text in ("true", "false") or text.startswith(("{", "[")) or text.replace(".", "").replace("e-", "").isdigit()
    return text if bare else to_toml(text)


def _prompts(folder: Path | None) -> dict[PromptUse, list[Dialogue]]:
    """Return the prompts of a folder, by use, or else the demo's."""
    if folder is None:
        return demo_prompts()
    return {use: [one for _, one in prompts_of(folder / f"prompts_{use}.jsonl", {})] for use in PromptUse}


def label_by_crowd(
    workspace: Workspace, settings: Settings, count: int, prompts: dict[PromptUse, list[Dialogue]]
) -> None:
    """Have the initial model answer prompts, and the simulated crowd give its verdicts on about `count` pairs."""
    store = Session(workspace, settings).store
    for use, dialogues in prompts.items():
        store.add_prompts(dialogues, use, "example")
    each = math.comb(settings.sample.answers, 2)
    stages.sample(workspace, settings, crowd=True, plan=False, limit=-(-count // each))


def compare(workspace: Workspace, settings: Settings, *, equal_time: bool = True) -> Facts:
    """Run every method on the verdicts of a workspace, one after the other, and say which is best."""
    # 1. Fine-tuning on the answers that were chosen: a version that is a whole model, beside the initial one.
    tuned = stages.train_on_examples(workspace, settings, plan=False)
    sft = str(tuned["version"])
    by_example = stages.compare_phases(workspace, settings, sft, INITIAL)
    # 2. DPO: the policy from the verdicts themselves.
    direct = stages.train_directly(workspace, settings, plan=False)
    # 3. A reward model from the same verdicts. It can choose among n answers of the initial model without any training.
    reward = stages.train_reward(workspace, settings, plan=False)
    # 4. How DPO does, against the initial model and against best-of-n.
    dpo = stages.evaluate(workspace, settings, ask=None, plan=False, against=_unless_current(workspace, INITIAL))
    # 5. PPO against the reward model, in the time that is left; how it does, and everybody against everybody.
    if equal_time:
        left = max(tuned["seconds"], direct["seconds"]) - reward["seconds"]
        settings = replace(settings, ppo=replace(settings.ppo, updates=_updates(workspace, settings, left)))
    trained = stages.train_policy(workspace, settings, plan=False)
    ppo = stages.evaluate(workspace, settings, ask=None, plan=False, against=INITIAL)
    first, second = str(direct["version"]), str(trained["version"])
    duels = [
        Duel("PPO", "DPO", second, first, stages.evaluate(workspace, settings, ask=None, plan=False, against=first)),
        Duel("DPO", "SFT", first, sft, stages.compare_phases(workspace, settings, first, sft)),
        Duel("PPO", "SFT", second, sft, stages.compare_phases(workspace, settings, second, sft)),
    ]
    both = reward["seconds"] + trained["seconds"]
    rows = [
        Row("SFT", sft, tuned["seconds"], None, None, _rate(by_example)),
        Row("DPO", first, direct["seconds"], dpo["kl"], dpo["length_after"], _rate(dpo)),
        _best_of_n(dpo, reward["seconds"]),
        Row("PPO", second, both, ppo["kl"], ppo["length_after"], _rate(ppo)),
    ]
    verdicts = direct["trained_on"]
    judged = dpo["source"] == "simulated"
    verdict = " ".join([*(duel.sentence(judged) for duel in duels), *_rivals(dpo, ppo, judged)])
    return {
        "pairs": verdicts,
        "judge": "the hidden taste of the simulated crowd" if judged else "people",
        "rows": [vars(row) for row in rows],
        "duels": {f"{duel.one} over {duel.other}": _rate(duel.found) for duel in duels},
        "ppo_updates": settings.ppo.updates,
        "verdict": verdict,
        "table": _table(rows, verdicts, verdict),
    }


def _updates(workspace: Workspace, settings: Settings, seconds: float) -> int:
    """Return how many updates of PPO take so long on this machine, within `UPDATES`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Workspace.open(shutil.copytree(workspace.root, Path(folder) / "trial"))
        few = replace(settings, ppo=replace(settings.ppo, updates=TRIED))
        each = stages.train_policy(copy, few, plan=False)["seconds"] / TRIED
    return min(max(round(seconds / each), UPDATES[0]), UPDATES[-1])


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
    if isinstance(rate, dict):
        return rate["estimate"], rate["low"], rate["high"]
    return None if rate is None else (rate, *evaluation["interval"])


@dataclass(frozen=True)
class Duel:
    """Two methods head to head: never by two rates over a third."""

    one: str
    other: str
    version: str
    against: str
    found: Facts

    def sentence(self, judged: bool) -> str:
        """Say who wins; where nobody has judged, what asks people."""
        if not judged:
            named = "" if self.one == "PPO" and self.other == "DPO" else f" {self.version}"
            return (
                f"Nobody has judged {self.one} and {self.other} yet: `manners evaluate{named} --ask 200 --against"
                f" {self.against}` opens blind comparisons of {self.version} with {self.against}, `manners serve` puts"
                f" them before people, and then `manners evaluate{named} --against {self.against}` says who wins."
            )
        estimate, low, high = _rate(self.found) or (0.5, 0.0, 1.0)
        said = f"{100 * estimate:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        if low > 0.5:
            return f"{self.one} wins over {self.other}: {said} head to head."
        if high < 0.5:
            return f"{self.other} wins over {self.one}, which gets {said} head to head."
        return f"{self.one} and {self.other} cannot be told apart: {self.one} gets {said} head to head."


def _rivals(dpo: Facts, ppo: Facts, judged: bool) -> list[str]:
    """Say how the two policies do against best-of-n, where it was judged."""
    return [dpo["best_of_n"]["sentence"], ppo["best_of_n"]["sentence"]] if judged else []


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
