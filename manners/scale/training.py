"""Training under Ray Train: a stage on several machines of a cluster, whose processes train as one (`ranks`)."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manners import ranks
from manners.errors import MannersError
from manners.launched import told
from manners.ranks import Lost
from manners.scale.cluster import divided_among, first_line, running

RETRIES = 3
"""How often a run goes on, from its last checkpoint, after a process was lost."""


def fit(address: str, processes: int, folder: Path, on_gpu: bool, work: Callable[[int], None]) -> None:
    """Have so many processes of a Ray cluster do some work as one, again from its last checkpoint where one is lost.

    `work` is told how often it was tried before. Ray Train's own files go to `folder` and are of no further use. Raises
    what the work raises, and MannersError where there is no cluster or too small a one, or processes are lost again and
    again.
    """
    with running(address, processes, 0) as ray, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray warns of what Ray does
        each = divided_among(ray, processes, "processes", on_gpu)
        print(f"{processes} processes, {each} threads each, train on the Ray cluster", file=sys.stderr)
        for tried in range(RETRIES + 1):
            try:
                _fit(processes, each, folder, on_gpu, work, tried)
                return
            except Lost as lost:
                if tried == RETRIES:
                    raise MannersError(
                        f"processes were lost {RETRIES + 1} times, at last because {lost}; see to that and go on with"
                        " --resume"
                    ) from lost
                print(f"all begin again from the last checkpoint: {lost}", file=sys.stderr)


def _fit(processes: int, each: int, folder: Path, on_gpu: bool, work: Callable[[int], None], tried: int) -> None:
    """Try once; raises Lost where that may be tried again."""
    device = "cuda" if on_gpu else "cpu"
    train: Any = importlib.import_module("ray.train")
    torch_part: Any = importlib.import_module("ray.train.torch")
    trainer = torch_part.TorchTrainer(
        _one,
        train_loop_config={"work": work, "tried": tried, "device": device, "processes": processes},
        torch_config=torch_part.TorchConfig(ranks.backend(device), timeout_s=int(ranks.PATIENCE.total_seconds())),
        scaling_config=train.ScalingConfig(
            num_workers=processes, use_gpu=on_gpu, resources_per_worker={"CPU": each, **({"GPU": 1} if on_gpu else {})}
        ),
        run_config=train.RunConfig(name=f"train-{tried}", storage_path=str(folder.resolve())),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as failed:
        errors = [_cause(one) for one in getattr(failed, "worker_failures", {}).values()] or [_cause(failed)]
        raise _worst(errors) from None


def _worst(errors: Sequence[BaseException]) -> MannersError:
    """Return what is to be said of what processes have raised: what would come again, or else that one was lost."""
    for error in errors:
        if isinstance(error, MannersError) and not isinstance(error, Lost):
            return error
    for error in errors:
        if not isinstance(error, Lost) and not type(error).__module__.startswith("ray."):
            return MannersError(f"a process of the run failed with {type(error).__name__}: {first_line(error)}")
    return Lost(f"a process was lost ({first_line(errors[0])})")


def _cause(error: BaseException) -> BaseException:
    """Return what a process itself raised, from under what Ray has put around it."""
    for name in ("cause", "_base_exc", "__cause__"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _cause(inner)
    return error


def _one(config: dict[str, Any]) -> None:
    """Be one of the processes."""
    place = told() or ranks.ALONE
    if place.count != config["processes"]:
        raise MannersError(f"Ray Train has started {config['processes']} processes, and says {place.count}")
    ranks.join(place, meeting="", device=config["device"])
    try:
        config["work"](config["tried"])
    except SystemExit:
        pass  # those that trained along are done
    finally:
        ranks.forsake()
