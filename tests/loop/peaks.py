"""Runs the stages on a model of a few million random weights; prints what each planned to take, and what it took."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from manners.feedback import crowd
from manners.loop import dpo, evaluate, ppo, reward, sample, sft
from manners.loop.plan import Plan
from manners.loop.session import Session
from manners.settings import DPOSettings, SFTSettings
from manners.types import PromptUse
from tests.loop import calls, tiny
from tests.worlds import save_tiny

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Memory of this process, in bytes: `VmRSS` now, `VmHWM` at its highest since that was last forgotten."""
    [line] = [line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def main(root: Path) -> None:
    """Run every stage once, in a project of its own."""
    crowd.TASTES[tiny.FIGURES.name] = tiny.FIGURES
    model = save_tiny(root / "model", hidden_size=384, intermediate_size=1024, head_dim=96)
    dialogues = {use: tiny.prompts(12, f"please {use} bread and butter " * 6) for use in PromptUse}
    session = tiny.project(root / "project", model, dialogues)
    proximal = replace(session.settings.ppo, updates=1, epochs=1, batch=24, minibatch=24)
    chosen = replace(session.settings.reward, epochs=1)
    # So wide a model hardly ever says anything else at 1; 16 tokens, for weights to be laid out after six of one batch.
    wide = replace(session.settings.sample, temperature=5.0, max_new_tokens=16)
    talks = [{"prompt": f"please {n} bread " * 8, "response": f"yes {n} butter " * 8} for n in range(40)]
    (root / "talks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talks), encoding="utf-8")
    examples = SFTSettings(examples=str(root / "talks.jsonl"), epochs=1)
    direct = DPOSettings(passes=1, kl_stop=1000.0, validation_prompts=12)
    settings = replace(session.settings, ppo=proximal, reward=chosen, sample=wide, sft=examples, dpo=direct)
    session = replace(session, settings=settings)
    assert session.pretrained.parameters > 6_000_000
    stages: dict[str, tuple[Callable[[Session], Plan], Callable[[], object]]] = {
        "sample": (sample.plan, lambda: calls.sample(session, crowd=True)),
        "reward": (reward.plan, lambda: calls.train_reward(session)),
        "ppo": (ppo.plan, lambda: calls.train_policy(session)),
        "evaluate": (evaluate.plan, lambda: calls.evaluate(session)),
        "sft": (sft.plan, lambda: calls.learn_from_examples(session)),
        "dpo": (dpo.plan, lambda: calls.learn_directly(session)),
    }
    trim: Callable[..., object] = ctypes.CDLL(None).malloc_trim
    found = {}
    for name, (plan, run) in stages.items():
        needed = plan(session).needed
        gc.collect()
        trim(0)
        CLEAR.write_text("5", encoding="ascii")
        before = resident("VmRSS")
        run()
        found[name] = (needed, resident("VmHWM") - before)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
