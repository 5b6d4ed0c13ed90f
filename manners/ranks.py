"""Several processes that train as one: each takes a share of every batch, their gradients are added up, all step alike.

    for micro-batch in ranks.share(batch):      its own
        training.learn(...)
    training.step(...)                          the sum of all gradients, the same step everywhere
    ranks.leave()                               the first goes on alone, the others end

The first of them (number 0) is the run: it alone writes, to the store, to checkpoints, to curves. The others do the
same work on what is theirs and hold the same parameters, which is looked at on the way. Where nobody else is there,
nothing here does anything. Between processes go tensors, numbers and names, never code: what comes is read as data.
Source: synchronous data parallelism, as PyTorch's DistributedDataParallel has it; here gradients are added up once a
step and not during the backward, since a step may go back several times.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from manners.errors import MannersError
from manners.launched import Place

Item = TypeVar("Item")
Shared = TypeVar("Shared", list[int], Tensor)

PATIENCE = timedelta(hours=12)
"""For which a process waits for the others, one of which may read a text for hours; one that has died is noticed."""
LOOK_EVERY = 20
"""Steps between two looks at whether all hold the same parameters; the first step is looked at too."""


class Lost(MannersError):
    """Another process has gone while this one needed it."""


ALONE = Place(0, 1)
ANYWHERE = "env://"
"""Where those meet whom torchrun has started: it tells them by their environment."""


@dataclass(frozen=True)
class Joined:
    """How a process stands to the others."""

    at: Place
    met_here: bool = False
    """Whether they met by `join`, so that parting is ours too."""
    threads: int = 0
    """With how many it computed before, where that was changed."""


_joined = [Joined(ALONE)]
_left = list[Place]()
"""Where this process has been among others."""
_missed = list[str]()
"""Where it waited for others who did not come; one who does still waits, in a thread."""


def place() -> Place:
    """Say which process this is; `ALONE` where there are no others."""
    return _joined[-1].at


def number() -> int:
    """Return the number of this process: 0 for the one that is the run."""
    return place().number


def count() -> int:
    """Return how many train as one."""
    return place().count


def join(at: Place, meeting: str = ANYWHERE, device: str = "cpu", come: Callable[[], None] = lambda: None) -> None:
    """Meet the others, and take a GPU of one's own where the model is on one.

    `meeting` is where: `file://...` for processes of one machine, which need no port for it; what torchrun says
    otherwise; empty where they have met already (Ray Train). `device` is the model's. `come` is called when there is
    nothing left but to meet. Raises MannersError where a machine has fewer GPUs than processes, or a device whose
    numbers cannot be added up, for a second time under torchrun, and after others did not come: torch counts meetings,
    and those who count otherwise never meet.
    """
    if _missed:
        raise MannersError(
            "processes that were to train along did not come before, and this process can meet no others: start it anew"
        )
    if _left and meeting == ANYWHERE:
        raise MannersError("this process has trained along once: where torchrun starts it, it can run one stage")
    if device not in ("cpu", "cuda"):
        raise MannersError(f"model.device is {device}, on which one process trains: set it to cpu for several")
    if device == "cuda":
        if at.beside > torch.cuda.device_count():
            raise MannersError(
                f"{at.beside} processes train on this machine, and it has {torch.cuda.device_count()} GPUs; ask for no"
                " more processes than that"
            )
        torch.cuda.set_device(at.here)
    if meeting:
        come()
        _missed.append(meeting)
        with _heard():
            distributed.init_process_group(
                backend(device), init_method=meeting, rank=at.number, world_size=at.count, timeout=PATIENCE
            )
        _missed.clear()
    _joined.append(Joined(at, bool(meeting)))


def backend(device: str) -> str:
    """Return by what processes talk whose model is on a device: numbers and names always go by the CPU."""
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


def compute_with(threads: int) -> None:
    """Compute with so many threads in this thread, which is all that torch can be told, until all part."""
    _joined[-1] = replace(_joined[-1], threads=torch.get_num_threads())
    torch.set_num_threads(threads)


def share(items: Shared) -> Shared:
    """Return what of a batch is this process's: every `count`-th item, or row of a tensor."""
    at = place()
    return items[at.number :: at.count]


def divided(rows: int, workers: int) -> list[range]:
    """Divide rows into shares that follow one another, as large as each other up to one row, and none of them empty."""
    edges = [rows * worker // workers for worker in range(workers + 1)]
    return [range(start, stop) for start, stop in pairwise(edges) if stop > start]


@torch.no_grad()
def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Put the sum over all processes in the place of each gradient; one that nobody has stays None."""
    if count() == 1 or not parameters:
        return
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    with _heard():
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
    for parameter, somebodys in zip(parameters, there.tolist(), strict=True):
        if somebodys:
            own = parameter.grad
            alike = torch.contiguous_format
            gradient = torch.zeros_like(parameter, memory_format=alike) if own is None else own.contiguous()
            add([gradient])
            parameter.grad = gradient


def add(tensors: Iterable[Tensor]) -> None:
    """Put the sum over all processes in the place of each tensor; all have them in the same shapes and order."""
    if count() > 1:
        for tensor in tensors:
            with _heard():
                distributed.all_reduce(tensor)


@torch.no_grad()
def look(parameters: Sequence[nn.Parameter]) -> None:
    """Raise MannersError where the processes do not hold the same parameters."""
    if count() == 1:
        return
    sums = torch.stack([p.detach().double().sum().cpu() for p in parameters])
    theirs = gathered(sums)
    if apart := [other for other, found in enumerate(theirs) if not torch.equal(found, theirs[0])]:
        raise MannersError(
            f"process {apart[0] + 1} of {count()} holds other parameters than the first: nothing more is learnt; the"
            " machines may have other processors or versions, so go on with --resume on machines that are alike"
        )


def gathered(value: Any) -> list[Any]:
    """Return what every process has brought, in their order: tensors, Python's own types, and these nested.

    Tensors of the others are on the CPU.
    """
    if count() == 1:
        return [value]
    written = io.BytesIO()
    torch.save(value, written)
    mine = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
    with _heard():
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
        distributed.all_gather(sizes, torch.tensor([len(mine)]))
        most = max(int(size) for size in sizes)
        parts = [torch.empty(most, dtype=torch.uint8) for _ in sizes]
        distributed.all_gather(parts, torch.cat((mine, mine.new_zeros(most - len(mine)))))
    return [
        torch.load(io.BytesIO(part[: int(size)].numpy().tobytes()), map_location="cpu", weights_only=True)
        for part, size in zip(parts, sizes, strict=True)
    ]


def agreed(value: Item) -> Item:
    """Return what the first process has: by what is decided must be the same to the bit for all."""
    found: Item = gathered(value)[0]
    return found


def all_of(mine: Sequence[Item]) -> list[Item]:
    """Return what every process has of something, one behind the other."""
    return list(chain.from_iterable(gathered(list(mine))))


def summed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return numbers by their names, each the sum over all processes."""
    if count() == 1:
        return dict(found)
    total: dict[str, Tensor] = {}
    for part in gathered(dict(found)):
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def wait() -> None:
    """Wait until all have come so far."""
    add([torch.zeros(1)])


def leave() -> None:
    """Part: the first goes on as if it had been alone; the others end here, with exit code 0."""
    at = place()
    if at.count == 1:
        return
    wait()
    forsake()
    _left.append(at)
    if at.number:
        raise SystemExit(0)


def forsake() -> None:
    """Be alone from now on, whatever the others do."""
    if count() > 1:
        joined = _joined.pop()
        if joined.threads:
            torch.set_num_threads(joined.threads)
        if joined.met_here:
            distributed.destroy_process_group()


@contextmanager
def first_before() -> Iterator[None]:
    """Have the first process do the block, which may write what all read, before the others do it."""
    if number():
        wait()
    yield
    if not number():
        wait()


@contextmanager
def _heard() -> Iterator[None]:
    """Say in a sentence that another process is gone."""
    try:
        yield
    except RuntimeError as error:  # that of gloo and NCCL
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Lost(
            f"another process that trains along was lost ({reason[:200]}); go on with --resume, from the last"
            " checkpoint"
        ) from error
