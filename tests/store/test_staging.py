"""A large import lets others write meanwhile, and is there as a whole or not at all, whenever it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from manners.store import Store, staging
from manners.store.staging import AT_ONCE
from manners.store.tables import StagedRow
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    FinishReason,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
)

MANY = 3 * AT_ONCE


def pair(number: int) -> Comparison:
    """A comparison with everything that a comparison may have."""
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    at = datetime(2030, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=number)
    drawn = {"drawn": DrawnHow.RANDOM, "draw_probability": 0.5, "draw_pool": 9} if number % 3 == 0 else {}
    verdict = Verdict(Choice.LEFT, anna, 2, at, 1.5, ("clear",), "“é 🥖”", exchanged=number % 2 == 0, **drawn)  # type: ignore[arg-type]
    left = Response(f"left {number}", "initial", FinishReason.LENGTH, Sampling(0.7, 20, number))
    prompt = (Turn(Role.SYSTEM, "s"), Turn(Role.USER, f"prompt {number // 2}"))
    return Comparison(prompt, left, Response("right", "me"), AskedHow.IMPORTED, 0.25, (verdict,) * (number % 4 != 1))


def staged(store: Store) -> int:
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(StagedRow)).scalar_one()


def plain(found: list[Comparison]) -> list[str]:
    return [repr(one) for one in found]


def test_many_are_what_few_at_a_time_are(database: str) -> None:
    pairs = [pair(number) for number in [*range(MANY), *range(100)]]
    with closing(Store.create(database)) as store:
        merged = store.merge_comparisons(pairs)
        again = store.merge_comparisons(pairs)
        assert (merged.comparisons, again.comparisons, again.verdicts) == (MANY, 0, 0)
        assert staged(store) == 0
        found = store.comparisons()
    assert [one.left.text for one in found] == [f"left {number}" for number in range(MANY)]
    for number, one in enumerate(found):
        wanted = pair(number)
        assert (one.prompt, one.left, one.right, one.verdicts) == (
            wanted.prompt,
            wanted.left,
            wanted.right,
            wanted.verdicts,
        )


def test_others_write_while_an_import_runs(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "FIRST_SLICE", 10)
    monkeypatch.setattr(staging, "MOST_IN_SLICE", 10)
    with closing(Store.create(database)) as store:
        (asked,) = store.add_comparisons([pair(10_000)])
        began, written = threading.Event(), 0

        def watched() -> Iterator[Comparison]:
            for number in range(MANY):
                began.set()
                yield pair(number)

        importing = threading.Thread(target=store.merge_comparisons, args=[watched()])
        importing.start()
        began.wait()
        while importing.is_alive():
            at = datetime(2031, 1, 1, tzinfo=UTC) + timedelta(seconds=written)
            store.add_verdicts([(asked, Verdict(Choice.TIE, Annotator("bo", AnnotatorKind.HUMAN), created_at=at))])
            written += importing.is_alive()
        importing.join()
        assert written >= 10, "an import in one transaction lets in one at most"
        assert len(store.comparisons()) == MANY + 1


class Killed(BaseException):
    """As when the power goes: nothing is tidied up."""


@pytest.mark.parametrize("rest", range(1, 40, 3))
def test_killed_at_any_moment_it_is_there_as_a_whole_or_not_at_all(
    rest: int, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "FIRST_SLICE", 50)
    monkeypatch.setattr(staging, "MOST_IN_SLICE", 50)
    monkeypatch.setattr(staging, "SLICE_SECONDS", 1e9)
    discard = staging._discard
    with closing(Store.create(database)) as store:
        left = rest

        def resting(self: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        with monkeypatch.context() as power:
            power.setattr(staging._Pace, "rest", resting)
            power.setattr(staging, "_discard", lambda *_: None)
            with suppress(Killed):
                store.merge_comparisons(map(pair, range(MANY)))
        decided = left <= 0 and rest > MANY // 50
    monkeypatch.setattr(staging, "_discard", discard)
    monkeypatch.setattr(staging, "ABANDONED", timedelta(0))
    monkeypatch.setattr(staging._Pace, "rest", lambda _: None)
    with closing(Store.open(database)) as store:
        found = len(store.comparisons())
        assert found == (MANY if decided or left > 0 else 0)
        assert staged(store) == 0
        assert store.merge_comparisons(map(pair, range(MANY))).comparisons == MANY - found


def test_what_somebody_still_writes_is_not_thrown_away(database: str) -> None:
    with closing(Store.create(database)) as store:

        def slowly() -> Iterator[Comparison]:
            yield from map(pair, range(AT_ONCE + 50))
            with closing(Store.open(database)) as other:
                assert other.comparisons() == []
            yield from map(pair, range(AT_ONCE + 50, MANY))

        assert store.merge_comparisons(slowly()).comparisons == MANY


IMPORT = """
import sys
from manners.store import Store
from tests.store.test_staging import pair
store = Store.open(sys.argv[1])
print("open", flush=True)
store.merge_comparisons(pair(number) for number in range(4000))
print("done", flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.8, 1.2, 1.8, 2.6])
def test_a_process_killed_in_the_middle_has_added_all_or_nothing(
    seconds: float, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.create(database).close()
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        [sys.executable, "-c", IMPORT, database],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(staging, "ABANDONED", timedelta(0))
    with closing(Store.open(database)) as store:
        assert len(store.comparisons()) in (0, 4000) and staged(store) == 0


@given(st.integers(0, 10_000), st.floats(1e-6, 100))
def test_a_slice_grows_and_shrinks_with_the_time_it_takes(seed: int, seconds: float) -> None:
    pace, now = staging._Pace(), [0.0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("manners.store.staging.time.monotonic", lambda: now[0])
        for _ in range(12):
            size = pace.size
            with pace.measured():
                now[0] += seconds / 1000 * size
            assert 1 <= pace.size <= min(staging.MOST_IN_SLICE, 2 * size)
        took = seconds / 1000 * pace.size
        assert took <= 1.1 * staging.SLICE_SECONDS or pace.size == 1
