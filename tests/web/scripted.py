"""A generator that says what it was told to say: for what is tested about pages, not about models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from manners.models.requests import Done, EngineState, Event, GenerationRequest, Phase, Token
from manners.types import FinishReason


@dataclass
class Scripted:
    """Says its lines one after another, each word by word; of several answers each begins with its number.

    A candidate of its state signs the answer that is asked of it.
    """

    lines: tuple[str, ...] = ("Gladly.",)
    state: EngineState = field(default_factory=lambda: EngineState(Phase.READY, "initial"))
    pause: float = 0.0
    """Seconds before each word."""
    asked: list[GenerationRequest] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    """What happens while an answer is being written."""

    def start(self) -> None:
        """Be ready already."""

    def stop(self) -> None:
        """End."""

    def load(self, version: str) -> None:
        """Change to another policy at once."""
        self.state = EngineState(Phase.READY, version)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Answer."""
        line = self.lines[len(self.asked) % len(self.lines)]
        self.asked.append(request)
        self.meanwhile()
        for index in range(request.count):
            words = f"{index}: {line}".split(" ")
            for word in words:
                await asyncio.sleep(self.pause)
                yield Token(index, f"{word} ")
            version = self.state.candidate if index == request.candidate else None
            yield Done(index, FinishReason.STOP, 3, len(words), version or self.state.version)
