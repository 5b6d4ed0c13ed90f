"""Whoever writes answers: the model in a process of its own, or another server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from manners.models.requests import EngineState, Event, GenerationRequest


class Generator(Protocol):
    """What the chat and the interface for programs ask of it."""

    @property
    def state(self) -> EngineState:
        """Whether requests are being answered, by which policy, and if not, why."""
        ...

    def start(self) -> None:
        """Begin; requests may come at once, and wait."""
        ...

    def stop(self) -> None:
        """End; requests that run fail."""
        ...

    def load(self, version: str) -> None:
        """Change to another policy, if it is ours to change."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Yield what is written as it is written, up to a `Done` for each answer or one `Failed`."""
        ...
