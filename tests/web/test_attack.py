"""The benchmark's attack in small: by counts and ratios, since the clock of a busy machine proves nothing."""

from __future__ import annotations

import pytest

from benchmarks.attack import Options, measure, table


@pytest.mark.long
def test_the_honest_are_served_while_the_hostile_are_told_off() -> None:
    options = Options(annotators=6, chats=3, hostile=2, seconds=8.0, rounds=1, size=0.2, publish=False)
    outcome = measure(options)
    assert not outcome.quiet.failed and not outcome.attacked.failed
    assert len(outcome.attacked.pages) > options.annotators and len(outcome.attacked.first) >= options.chats
    statuses = {what.rpartition(": ")[2] for what in outcome.told}
    assert not statuses & {"500", "502"} and {"401", "408", "422"} <= statuses
    started, _, worst = outcome.memory
    assert worst < started + 400_000_000
    assert outcome.log < 20_000
    assert "| requests that failed | 0 | 0 |" in table(outcome, options)
