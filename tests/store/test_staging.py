"""A large import lets others write meanwhile, and is there as a whole or not at all, whenever it is killed."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select, update

from manners.errors import MannersError, Unavailable
from manners.store import Store, staging
from manners.store.files import prompts as prompt_files
from manners.store.files.formats import COLUMNS, IMPORTED, Format, parse
from manners.store.files.prompts import import_prompts, parse_split, side
from manners.store.files.rows import BadRow
from manners.store.files.transfer import import_comparisons
from manners.store.staging import AT_ONCE
from manners.store.tables import ImportRow, StagedRow
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    DrawnHow,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
    opening,
)
from tests.conftest import some

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


@pytest.mark.long
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
            time.sleep(0.005)  # people are not so fast that nobody else gets in
        importing.join()
        assert written >= 10, "an import in one transaction lets in one at most"
        assert len(store.comparisons()) == MANY + 1


@pytest.mark.parametrize("count", some([30, 3, MANY], 1))
def test_long_rows_are_few_in_a_slice(count: int, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty of them at once would be a slice of seconds."""
    held: list[int] = []
    add = staging._add

    def adding(connection: Connection, some: Sequence[Comparison]) -> staging.Merged:
        held.append(sum(len(one.left.text) for one in some))
        return add(connection, some)

    monkeypatch.setattr(staging, "_add", adding)
    monkeypatch.setattr(staging, "SLICE_TEXT", 10_000)
    monkeypatch.setattr(staging._Pace, "rest", lambda _: None)
    pairs = [replace(pair(n), left=Response(f"{n} " + "x" * (6000 if n % 7 else 60_000), "me")) for n in range(count)]
    with closing(Store.create(database)) as store:
        assert store.merge_comparisons(pairs).comparisons == count
        assert [one.left.text for one in store.comparisons()] == [one.left.text for one in pairs]
    assert max(held) < 10_000 + 60_010 and sum(held) == sum(len(one.left.text) for one in pairs)
    assert len(held) >= count // 3, "and so each is soon over"


class Killed(BaseException):
    """As when the power goes: nothing is tidied up."""


@pytest.mark.parametrize("rest", some(range(1, 40, 3), 3))
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


def test_who_had_stood_still_for_too_long_is_told_and_has_added_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a laptop that slept: what was staged before is gone, and the rest alone would read as all of it."""
    with closing(Store.create(database)) as store:

        def asleep() -> Iterator[Comparison]:
            yield from map(pair, range(AT_ONCE + 150))
            with monkeypatch.context() as later:
                later.setattr(staging, "ABANDONED", timedelta(0))
                Store.open(database).close()
            yield from map(pair, range(AT_ONCE + 150, MANY))

        with pytest.raises(MannersError, match=r"stood still for an hour.*import the file again"):
            store.merge_comparisons(asleep())
        assert store.comparisons() == [] and staged(store) == 0
        assert store.merge_comparisons(map(pair, range(MANY))).comparisons == MANY


@pytest.mark.parametrize("decides", [False, True])
def test_who_goes_on_while_others_look_is_not_thrown_away(database: str, decides: bool) -> None:
    """Between the look at what is old, and the write that would throw it away."""
    with closing(Store.create(database)) as store:
        key = staging._stage(store.write, map(pair, range(MANY)))
        with store.write() as connection:
            connection.execute(update(ImportRow).values(touched_at=datetime.now(UTC) - 2 * staging.ABANDONED))

        @contextmanager
        def late() -> Iterator[Connection]:
            with store.write() as connection:
                staging._touch(connection, key, decided=decides)
            with store.write() as connection:
                yield connection

        staging.recover(store.read, late)
        assert staged(store) == MANY
        assert staging._decide(store.write, key, lambda _: True)
        assert staging._finish(store.write, key).comparisons == MANY


IMPORT = """
import sys
from manners.store import Store
from tests.conftest import some
from tests.store.test_staging import pair
store = Store.open(sys.argv[1])
print("open", flush=True)
store.merge_comparisons(pair(number) for number in range(4000))
print("done", flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.1, 0.8, 1.8])
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


# What cannot be kept


def hot(number: int) -> Comparison:
    """A comparison with a number that JSON has no word for."""
    return replace(pair(number), right=Response("right", "me", sampling=Sampling(math.inf, 20, 1)))


def test_what_cannot_be_read_back_is_refused_before_it_is_decided(database: str) -> None:
    with closing(Store.create(database)) as store:
        with pytest.raises(MannersError, match=f"number {AT_ONCE + 7} of what is to be added holds a value"):
            store.merge_comparisons([*map(pair, range(AT_ONCE + 6)), hot(AT_ONCE + 6)])
        assert (store.comparisons(), staged(store)) == ([], 0)
    with closing(Store.open(database)) as store:
        assert store.merge_comparisons(map(pair, range(MANY))).comparisons == MANY


def test_one_row_of_a_large_file_locks_nobody_out(database: str, tmp_path: Path) -> None:
    row = {"prompt": "Hi", "left": "Hello!", "right": "What?", "verdict": "left"}
    lines = [json.dumps(row | {"prompt": f"Hi {number}"}) for number in range(AT_ONCE)]
    lines.append(json.dumps(row | {"left_sampling": {"temperature": math.inf, "max_new_tokens": 8, "seed": 3}}))
    path = tmp_path / "hot.jsonl"
    path.write_text("\n".join(lines).replace("Infinity", "1e999"))
    with closing(Store.create(database)) as store, pytest.raises(MannersError, match=f"line {AT_ONCE + 1}, field"):
        import_comparisons(store, path, {}, skip_bad=False)
    with closing(Store.open(database)) as store:
        assert store.comparisons() == []


def test_what_an_older_manners_had_decided_to_add_and_cannot_be_read_opens_all_the_same(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Store.create(database)) as store, monkeypatch.context() as older:
        older.setattr(staging, "_written", lambda one, _: staging._staged.dump_json(one).decode())
        key = staging._stage(store.write, [*map(pair, range(AT_ONCE)), hot(AT_ONCE)])
        assert staging._decide(store.write, key, lambda _: True)
    capsys.readouterr()
    with closing(Store.open(database)) as store:
        assert "holds a value that cannot be kept: correct its file and import it again" in capsys.readouterr().err
        assert staged(store) == 0 and len(store.comparisons()) <= AT_ONCE
    with closing(Store.open(database)) as store:
        assert capsys.readouterr().err == "", "it is said once"
        store.merge_comparisons(map(pair, range(MANY)))
        assert len(store.comparisons()) == MANY


@pytest.mark.parametrize("fault", [Unavailable("the disk is full"), ZeroDivisionError("a mistake of ours")])
def test_an_import_that_cannot_be_finished_now_keeps_nobody_out(
    database: str, fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Store.create(database)) as store:
        key = staging._stage(store.write, map(pair, range(MANY)))
        assert staging._decide(store.write, key, lambda _: True)

    def fails(*_: object) -> None:
        raise fault

    with monkeypatch.context() as broken:
        broken.setattr(staging, "_add", fails)
        with closing(Store.open(database)) as store:
            assert store.comparisons() == [] and staged(store) == MANY, "it waits"
    assert "is not finished" in capsys.readouterr().err
    with closing(Store.open(database)) as store:
        assert len(store.comparisons()) == MANY


def test_a_name_too_long_for_an_index_locks_nobody_out(database: str) -> None:
    """PostgreSQL finds out when the import was decided, and calls it an error of operation."""
    letters = "".join(random.Random(0).choices(string.ascii_letters, k=3000))
    said = Verdict(Choice.LEFT, Annotator(letters, AnnotatorKind.HUMAN))
    with closing(Store.create(database)) as store, suppress(MannersError):
        store.merge_comparisons([*map(pair, range(AT_ONCE)), replace(pair(AT_ONCE), verdicts=(said,))])
    with closing(Store.open(database)) as store:
        assert staged(store) == 0


numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 2**64, 1e12, 1e999, "1e999", "-inf", "nan"])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
sampled = st.fixed_dictionaries({"temperature": numbers, "max_new_tokens": numbers, "seed": numbers})
odd = st.dictionaries(st.sampled_from([*COLUMNS[Format.ROWS]]), values | sampled.map(json.dumps), max_size=3)
drawn = st.fixed_dictionaries({"drawn": st.just("random"), "draw_probability": st.just(0.5), "draw_pool": numbers})
sampled_sides = st.fixed_dictionaries({"left_sampling": sampled, "right_sampling": sampled})


@given(st.one_of(odd, drawn, sampled_sides, st.builds(lambda one, other: one | other, odd, sampled_sides)))
def test_whatever_a_row_says_is_refused_or_read_back_from_what_is_written_down(fields: dict[str, Any]) -> None:
    row = {"prompt": "Hi", "left": "Hello!", "right": "What?", "verdict": "left"} | fields
    with suppress(BadRow):
        comparison = parse(row, Format.ROWS, IMPORTED)
        assert staging._staged.validate_json(staging._staged.dump_json(comparison)) == comparison
        pools = [verdict.draw_pool or 0 for verdict in comparison.verdicts]
        assert all(pool < 2**31 for pool in pools), "as far as an integer of PostgreSQL goes"


# Prompts


SPLIT = parse_split("train=0.5,validate=0.2,evaluate=0.3")


def asked(number: int) -> Dialogue:
    return (Turn(Role.USER, f"prompt {number}?"),)


def file_of_prompts(folder: Path, count: int = MANY) -> Path:
    path = folder / "prompts.txt"
    path.write_text("".join(f"prompt {number}?\n" for number in range(count)), encoding="utf-8")
    return path


def sides(store: Store) -> dict[str, PromptUse]:
    return {prompt.dialogue[-1].text: prompt.use for prompt in store.prompts()}


def wanted(count: int = MANY) -> dict[str, PromptUse]:
    """Where the split puts each prompt of the file."""
    return {asked(number)[-1].text: side(asked(number), SPLIT) for number in range(count)}


@pytest.mark.parametrize("there", [0, 100, MANY])
def test_many_prompts_go_where_the_split_puts_them_whatever_was_there(
    there: int, database: str, tmp_path: Path
) -> None:
    with closing(Store.create(database)) as store:
        store.add_prompts(map(asked, range(there)), PromptUse.TRAIN, "earlier")
        found = import_prompts(store, file_of_prompts(tmp_path), SPLIT)
        assert sides(store) == wanted() and staged(store) == 0
        moved = sum(use is not PromptUse.TRAIN for use in wanted(there).values())
        assert (found.new, found.known, found.moved) == (MANY - there, there, moved)
        again = import_prompts(store, file_of_prompts(tmp_path), SPLIT)
        assert (again.new, again.known, again.moved) == (0, MANY, 0) and sides(store) == wanted()


@pytest.mark.parametrize("rest", some(range(1, 40, 3), 3))
def test_prompts_killed_at_any_moment_are_there_and_moved_as_a_whole_or_not_at_all(
    rest: int, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "FIRST_SLICE", 50)
    monkeypatch.setattr(staging, "MOST_IN_SLICE", 50)
    monkeypatch.setattr(staging, "SLICE_SECONDS", 1e9)
    path, left = file_of_prompts(tmp_path), rest
    with closing(Store.create(database)) as store:
        store.add_prompts(map(asked, range(100)), PromptUse.TRAIN, "earlier")
        before = sides(store)

        def resting(self: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        with monkeypatch.context() as power:
            power.setattr(staging._Pace, "rest", resting)
            power.setattr(staging, "_discard", lambda *_: None)
            with suppress(Killed):
                import_prompts(store, path, SPLIT)
        written = MANY + sum(use is not PromptUse.TRAIN for use in wanted(100).values())  # those that move, once more
        is_decided = left > 0 or rest > -(-written // 50)
    monkeypatch.setattr(staging, "ABANDONED", timedelta(0))
    monkeypatch.setattr(staging._Pace, "rest", lambda _: None)
    with closing(Store.open(database)) as store:
        assert sides(store) == (wanted() if is_decided else before) and staged(store) == 0
        import_prompts(store, path, SPLIT)
        assert sides(store) == wanted()


@pytest.mark.long
def test_verdicts_come_in_while_prompts_do(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "FIRST_SLICE", 10)
    monkeypatch.setattr(staging, "MOST_IN_SLICE", 10)
    with closing(Store.create(database)) as store:
        (key,) = store.add_comparisons([pair(10_000)])
        importing = threading.Thread(target=import_prompts, args=[store, file_of_prompts(tmp_path), SPLIT])
        importing.start()
        written = 0
        while importing.is_alive():
            store.add_verdicts([(key, Verdict(Choice.TIE, Annotator("bo", AnnotatorKind.HUMAN)))])
            written += importing.is_alive()
            time.sleep(0.005)
        importing.join()
        assert written >= 10, "an import in one transaction lets in one at most"
        assert sides(store).items() >= wanted().items()


@pytest.mark.parametrize("count", [50, MANY])
@pytest.mark.parametrize("moves", [False, True])
def test_what_others_bring_in_meanwhile_is_on_one_side_with_it(
    count: int, moves: bool, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and the decision others train on a prompt of the file, or on one that begins as one of it."""
    path, first = file_of_prompts(tmp_path, count), 1
    kept = next(n for n in range(count) if side(asked(n), SPLIT) is PromptUse.EVALUATE)
    plan = prompt_files._plan
    with closing(Store.create(database)) as store:
        if moves:
            store.add_prompts(map(asked, range(10)), PromptUse.TRAIN, "earlier")

        def slowly(*given: object) -> object:
            nonlocal first
            found = plan(*given)  # type: ignore[arg-type]
            if first:
                first = 0
                longer = (Turn(Role.USER, f"PROMPT  {kept}?"), Turn(Role.ASSISTANT, "Yes."), Turn(Role.USER, "So?"))
                store.add_prompts([asked(kept), longer, asked(5000)], PromptUse.TRAIN, "meanwhile")
            return found

        monkeypatch.setattr(prompt_files, "_plan", slowly)
        found = import_prompts(store, path, SPLIT)
        assert found.known == (10 if moves else 0) + (kept >= 10 or not moves)
        by_opening: dict[str, set[PromptUse]] = {}
        for prompt in store.prompts():
            by_opening.setdefault(opening(prompt.dialogue), set()).add(prompt.use)
        assert all(len(uses) == 1 for uses in by_opening.values())
        assert by_opening[opening(asked(kept))] == {PromptUse.EVALUATE}, "nothing was trained on it yet"
        assert sides(store)["prompt 5000?"] is PromptUse.TRAIN and staged(store) == 0


def test_two_imports_at_once_put_nothing_on_two_sides(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one's plan is of before the first has decided: it is made anew, and refused."""
    plan, path = prompt_files._plan, file_of_prompts(tmp_path)
    with closing(Store.create(database)) as store:

        def slowly(*given: object) -> object:
            found = plan(*given)  # type: ignore[arg-type]
            monkeypatch.setattr(prompt_files, "_plan", plan)
            import_prompts(store, path, {PromptUse.VALIDATE: 1.0})
            return found

        monkeypatch.setattr(prompt_files, "_plan", slowly)
        with pytest.raises(MannersError, match="is in the store for `validate` and cannot be added for `evaluate`"):
            import_prompts(store, path, {PromptUse.EVALUATE: 1.0})
        assert set(sides(store).values()) == {PromptUse.VALIDATE} and staged(store) == 0


def test_an_import_that_others_are_always_ahead_of_gives_up_in_one_sentence(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "place_prompts", lambda *_: False)
    with closing(Store.create(database)) as store, pytest.raises(Unavailable, match="5 times: run it again"):
        import_prompts(store, file_of_prompts(tmp_path), SPLIT)


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
