"""Workers that fail once, each in its own way: the first that comes to the place does, and no other after it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manners.scale.handover import Held, Parcel, held
from manners.scale.workers import Share, Worker
from manners.text import Rendered


class Faulty(Worker):
    """A worker that asks whether it is its turn to fail."""

    def first(self) -> bool:
        """Whether nobody has failed before; of several that ask at once, one."""
        try:
            (self.parts.root / "a worker has failed").mkdir()
        except FileExistsError:
            return False
        return True


class Dies(Faulty):
    """Is killed when it has drawn, before it can say what."""

    def draw(self, prompts: Sequence[tuple[int, ...]], uniform: Tensor) -> Share:
        share = super().draw(prompts, uniform)
        if self.number == 2 and self.first():
            os.kill(os.getpid(), signal.SIGKILL)
        return share


class Hangs(Faulty):
    """Never comes back from a hand-over."""

    def take(self, number: int, contents: Parcel, probe: Rendered) -> Held:
        while number == 2 and self.first():
            time.sleep(3600)
        return super().take(number, contents, probe)


class Stale(Faulty):
    """Keeps the weights that it had, and says so."""

    def take(self, number: int, contents: Parcel, probe: Rendered) -> Held:
        if number == 2 and self.first():
            return held(self.number, self.policy, self.pretrained, probe)
        return super().take(number, contents, probe)


class Lies(Faulty):
    """Keeps the weights that it had, and says that they are the new ones."""

    def take(self, number: int, contents: Parcel, probe: Rendered) -> Held:
        if number == 2 and self.first():
            return held(number, self.policy, self.pretrained, probe)
        return super().take(number, contents, probe)


class Corrupts(Faulty):
    """Has one bit wrong."""

    def take(self, number: int, contents: Parcel, probe: Rendered) -> Held:
        if number == 2 and self.first():
            name = sorted(contents)[0]
            wrong = contents[name].copy()
            wrong.flat[5] ^= 1
            contents = {**contents, name: wrong}
        return super().take(number, contents, probe)


class Miscomputes(Faulty):
    """Has the right branch on a trunk that is not the trainer's."""

    def take(self, number: int, contents: Parcel, probe: Rendered) -> Held:
        if number == 2 and self.first():
            with torch.no_grad():
                for parameter in self.pretrained.trunk.whole.get_input_embeddings().parameters():
                    parameter.mul_(1.5)
        return super().take(number, contents, probe)


class Drifts(Faulty):
    """Proves that it has the right weights, and draws with others."""

    def draw(self, prompts: Sequence[tuple[int, ...]], uniform: Tensor) -> Share:
        if self.number == 2 and self.first():
            with torch.no_grad():
                for parameter in self.policy.parameters():
                    parameter.mul_(1.1)
        return super().draw(prompts, uniform)


class Breaks(Worker):
    """Never draws anything."""

    def draw(self, *_: Any) -> Share:
        raise ZeroDivisionError("nothing to draw with")
