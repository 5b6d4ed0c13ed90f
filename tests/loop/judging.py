"""A real server that judges, well or ill, and a project whose comparisons have a better side that is known."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manners.loop.session import Session
from manners.settings import JudgeSettings, Settings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from manners.workspace import Workspace
from tests import servers
from tests.servers import serving as serving

ANSWERS = re.compile(r"(\[\[\w{16}\]\]) ANSWER A[^\n]*\n(.*)\n\1 ANSWER B[^\n]*\n(.*)\n\1 END", re.DOTALL)


@dataclass
class Server(servers.Server):
    """Judges by `prefers`: the probability that answer A is better, of the texts of both."""

    prefers: Callable[[str, str], float] = lambda a, b: 0.95 if "good" in a and "good" not in b else 0.05
    logprobs: bool = True

    def says(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return a chat completion."""
        found = ANSWERS.search(asked["messages"][-1]["content"])
        assert found, "the fences are whole"
        p = min(max(self.prefers(found.group(2), found.group(3)), 1e-6), 1 - 1e-6)
        rng = random.Random(f"{asked['seed']} {found.group(0)}")
        told = None
        letter = "A" if p > 0.5 else "B"
        if self.logprobs and asked.get("logprobs"):
            top = [{"token": x, "logprob": math.log(q * 0.9)} for x, q in (("A", p), (" B", 1 - p))]
            told = {"content": [{"token": letter, "logprob": 0.0, "top_logprobs": top}]}
        else:
            letter = "A" if rng.random() < p else "B"
        choice = {"index": 0, "message": {"role": "assistant", "content": letter}, "finish_reason": "stop"}
        return {"choices": [{**choice, "logprobs": told}], "usage": {"total_tokens": 100}}


def comparisons(count: int, people: int = 2, right: float = 0.9, start: int = 0) -> list[Comparison]:
    """Make comparisons of a good and another answer, of any length, judged by so many people who are often right."""
    found = []
    for number in range(start, start + count):
        rng = random.Random(number)
        more = [" And so on." * rng.randrange(6) for _ in range(2)]
        texts = [f"A {what} answer, {rng.randrange(10**6)}.{m}" for what, m in zip(("good", "poor"), more, strict=True)]
        better = Choice.LEFT if rng.random() < 0.5 else Choice.RIGHT
        left, right_text = texts if better is Choice.LEFT else texts[::-1]
        verdicts = tuple(
            Verdict(better if rng.random() < right else better.swapped(), Annotator(f"person {n}", AnnotatorKind.HUMAN))
            for n in range(people)
        )
        prompt = (Turn(Role.USER, f"What of {number}?"),)
        found.append(
            Comparison(
                prompt, Response(left, "policy-1"), Response(right_text, "initial"), AskedHow.RANDOM, verdicts=verdicts
            )
        )
    return found


def project(root: Path, empty: Path, address: str, some: list[Comparison], **chosen: Any) -> Session:
    """Make a workspace with comparisons, whose judge is a server."""
    workspace = Workspace.create(root)
    shutil.copyfile(empty, workspace.database)
    usual: dict[str, Any] = {"url": address, "model": "m", "retries": 0, "timeout": 5.0}
    settings = Settings(judge=JudgeSettings(**(usual | chosen)))
    session = Session(workspace, settings)
    session.store.add_comparisons(some)
    return session
