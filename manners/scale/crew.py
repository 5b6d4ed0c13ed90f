"""Workers on Ray that draw the responses of PPO: up to date before they draw, looked at after, replaced when they fail.

    crew(...) -> draw(policy, prompts, uniform)
                   1. weights through the object store, put once; each worker proves what it holds (scale.handover)
                   2. every worker draws and scores its share of the rows
                   3. the trainer reads a few of each share: of weights that are not its own nothing is taken

Whatever goes wrong, one thing is done: the worker is ended, another one takes its place and is handed the weights, and
what the first had drawn is thrown away and drawn again. It draws the same, for each row brings its own random numbers.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manners import ranks
from manners.errors import MannersError
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.ppo.guard import DRIFT_TOLERANCE, FAR_OFF, tolerated
from manners.ppo.rollout import Drawn, micro_batches, sliced
from manners.scale.cluster import divided_among, first_line, running
from manners.scale.handover import Held, apart, fault, held, parcel, probe_of
from manners.scale.workers import Kin, Parts, Share, Worker
from manners.text import Rendered

START_SECONDS = 1800.0
"""For which a worker may load its model."""
HANDOVER_SECONDS = 60.0
"""For which a hand-over may take, and so long again for what `SLOWEST` takes to carry it."""
SLOWEST = 20e6
"""Bytes a second."""
PATIENCE = 3
"""Failures of workers at one place, in one rollout, that end the run: a fourth would fail as well."""
ROOM = 100_000_000
"""Bytes of the object store beside weights and shares; Ray takes no less than 79 million in all."""


class Failed(Exception):
    """Why a worker is to be replaced, and the exception that it ran into, if any."""

    def __init__(self, why: str, error: BaseException | None = None) -> None:
        """Take both."""
        super().__init__(why)
        self.error = error


@dataclass(frozen=True)
class Terms:
    """How many workers there are, and where."""

    workers: int
    address: str | None = None
    """Of a Ray cluster that runs already; None starts one on this machine."""


@dataclass
class Tally:
    """What has happened since the command began."""

    handovers: int = 0
    handover_seconds: float = 0.0
    handover_bytes: int = 0
    """Put into the object store, each time once for all workers."""
    replaced: int = 0
    thrown_away: int = 0
    """Responses that were drawn with other weights than the trainer's."""
    apart: float = 0.0
    """Largest mean difference of log-probabilities that was let pass, in nats a token."""

    def metrics(self, workers: int) -> dict[str, float]:
        """Return its part of the curves."""
        return {"workers/count": workers, **{f"workers/{name}": value for name, value in vars(self).items()}}


@contextmanager
def crew(
    terms: Terms, parts: Parts, pretrained: Pretrained, prompt: tuple[int, ...], store: int, kind: type = Worker
) -> Iterator[Crew]:
    """Have workers at hand; they end with the context, and with this process.

    `prompt` is the one whose greedy answer tells weights apart, `store` what the object store may have to hold at a
    time. `kind` is the worker's class. Raises MannersError where there is no Ray, no cluster, or no room for as many.
    """
    with running(terms.address, max(terms.workers, torch.get_num_threads()), store + ROOM) as ray:
        on_gpu = pretrained.trunk.device.type == "cuda"
        each = divided_among(ray, terms.workers, "workers", on_gpu)
        remote = ray.remote(num_cpus=each, num_gpus=int(on_gpu), max_restarts=0, max_task_retries=0)(kind)
        print(f"{terms.workers} workers, {each} threads each, draw and score the responses", file=sys.stderr)
        found = Crew(ray, lambda: remote.remote(parts, each), pretrained, parts, prompt)
        found.begin(terms.workers)
        yield found


class Crew:
    """The workers of a run, with what they were handed last."""

    def __init__(
        self,
        ray: Any,
        hire: Callable[[], Any],
        pretrained: Pretrained,
        parts: Parts,
        prompt: tuple[int, ...],
    ) -> None:
        """Begin without workers; `hire` starts one."""
        self.ray = ray
        self.hire = hire
        self.pretrained = pretrained
        self.parts = parts
        self.prompt = prompt
        self.tally = Tally()
        self.tolerance = FAR_OFF * tolerated(DRIFT_TOLERANCE, pretrained.trunk.whole.dtype)
        self.deadline = HANDOVER_SECONDS
        self._actors: list[Any] = []
        self._probe: Rendered | None = None
        self._own = Held(0, "", ())
        self._failures = Counter[int]()

    def begin(self, count: int) -> None:
        """Start so many workers, and wait until they have loaded the model."""
        self._actors = [self.hire() for _ in range(count)]
        begun = [actor.begin.remote() for actor in self._actors]
        for place, ref in enumerate(begun):
            if (why := self._why_not_begun(ref)) is not None:
                self._replace(place, why)

    def draw(
        self,
        policy: Branch,
        prompts: Sequence[tuple[int, ...]],
        uniform: Float[Tensor, "B T"],
        on_step: Callable[[int], None],
    ) -> Drawn:
        """Draw a response to each prompt, and score it, in shares: the `Drawer` of a run."""
        self._failures.clear()
        self._hand_over_anew(policy)
        rows = ranks.divided(len(prompts), len(self._actors))

        def ask(place: int) -> Any:
            of = rows[place]
            return self._actors[place].draw.remote(prompts[of.start : of.stop], uniform[of.start : of.stop])

        shares: dict[int, Drawn] = {}
        waiting = {ask(place): place for place in range(len(rows))}
        while waiting:
            [ready], _ = self.ray.wait(list(waiting), num_returns=1)
            place = waiting.pop(ready)
            try:
                shares[place] = self._looked_at(self._answer(ready), policy)
                on_step(len(rows[place]))
            except Failed as failed:
                self._replace(place, str(failed))
                self._hand_over(policy, [place])
                waiting[ask(place)] = place
        parts = [shares[place] for place in sorted(shares)]
        return Drawn.together(parts, self.pretrained, self.tally.metrics(len(self._actors)))

    def _hand_over_anew(self, policy: Branch) -> None:
        """Hand the weights over where they have changed since the last time."""
        if self._probe is None:
            self._probe = probe_of(policy, self.pretrained, self.prompt)
        now = held(self._own.number + 1, policy, self.pretrained, self._probe)
        if now.digest == self._own.digest:
            return
        self._own = now
        self.tally.handovers += 1
        begun = time.monotonic()
        self._hand_over(policy, range(len(self._actors)))
        self.tally.handover_seconds += time.monotonic() - begun

    def _hand_over(self, policy: Branch, places: Sequence[int]) -> None:
        """Put the weights into the object store and have workers take them, until each of them proves that it has."""
        while places:
            contents = parcel(policy)
            size = sum(data.nbytes for data in contents.values())
            self.tally.handover_bytes += size
            weights = self.ray.put(contents)
            takes = [self._actors[place].take.remote(self._own.number, weights, self._probe) for place in places]
            seconds = self.deadline + size / SLOWEST
            ready, _ = self.ray.wait(takes, num_returns=len(takes), timeout=seconds)
            again = []
            for place, take in zip(places, takes, strict=True):
                late = None if take in ready else f"a hand-over of weights took more than {seconds:.0f} seconds"
                if (why := late or self._why_not_taken(take)) is not None:
                    self._replace(place, why)
                    again.append(place)
            places = again

    def _why_not_taken(self, take: Any) -> str | None:
        try:
            theirs: Held = self._answer(take)
        except Failed as failed:
            return str(failed)
        if (why := fault(self._own, theirs, self.tolerance)) is None:
            self.tally.apart = max(self.tally.apart, apart(self._own, theirs))
        return why

    @torch.no_grad()
    def _looked_at(self, share: Share, policy: Branch) -> Drawn:
        """Return what was drawn; raises Failed where the trainer's policy gives it other log-probabilities."""
        draws = share.drawn.draws
        assert draws.states is not None
        rows = micro_batches(draws.batch, range(len(draws.finish)))[0]
        states, batch = sliced(draws.states, draws.batch, rows)
        device = self.pretrained.trunk.device
        batch = batch.to(device)
        found = policy.logprobs(policy.hidden(states.to(device), batch), batch, self.parts.sample.temperature)
        drawn = draws.logprobs[rows, : batch.keep.shape[1]].to(device)
        off = float((found - drawn)[batch.keep].abs().mean())
        if share.number != self._own.number or not off <= self.tolerance:
            self.tally.thrown_away += len(draws.finish)
            raise Failed(
                f"{len(draws.finish)} responses of hand-over {share.number} are thrown away: at hand-over"
                f" {self._own.number} their log-probabilities are off by {off:.2g} nats a token"
            )
        self.tally.apart = max(self.tally.apart, off)
        return share.drawn

    def _replace(self, place: int, why: str) -> None:
        """End a worker and have another one in its place; raises MannersError where one after another fails."""
        reason: str | None = why
        while reason is not None:
            self._failures[place] += 1
            self.tally.replaced += 1
            self.ray.kill(self._actors[place])
            if self._failures[place] > PATIENCE:
                raise MannersError(
                    f"worker {place + 1} failed {PATIENCE + 1} times in one rollout, at last because {reason}; see to"
                    " that and go on with --resume, with fewer --workers or none"
                )
            print(f"worker {place + 1} is replaced: {reason}", file=sys.stderr)
            self._actors[place] = self.hire()
            reason = self._why_not_begun(self._actors[place].begin.remote())

    def _why_not_begun(self, ref: Any) -> str | None:
        """Wait until a worker has loaded the model; raises MannersError for one that can never draw."""
        ours = Kin.of(self.pretrained, self.parts)
        try:
            theirs: Kin = self._answer(ref, START_SECONDS)
        except Failed as failed:
            if isinstance(failed.error, MannersError):
                raise failed.error from None
            return str(failed)
        if unlike := ours.unlike(theirs):
            raise MannersError(
                f"a worker has another program or model than the trainer ({unlike}); install the same versions on every"
                " machine of the cluster, and give all of them the workspace's own folder"
            )
        return None

    def _answer(self, ref: Any, seconds: float | None = None) -> Any:
        """Return what a worker answers; raises Failed where it does not."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref, timeout=seconds)
        except errors.GetTimeoutError:
            raise Failed(f"it did not answer within {seconds:.0f} seconds") from None
        except errors.RayTaskError as error:
            raise Failed(
                f"it failed with {type(error.cause).__name__}: {first_line(error.cause)}", error.cause
            ) from None
        except errors.RayError as error:
            raise Failed(f"it was lost ({type(error).__name__})", error) from None
