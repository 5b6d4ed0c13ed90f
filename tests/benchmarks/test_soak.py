"""An hour of everything at once (`benchmarks.soak`) in a minute, and what it calls wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.honest import Noticed
from benchmarks.soak import Options, Outcome, Trained, faults, measure, table


@pytest.mark.long
def test_a_minute_of_everything_at_once_loses_nothing() -> None:
    options = Options(minutes=0.75, labellers=3, chats=2, thinking=1.0, publish=False)
    outcome = measure(options)
    assert not outcome.noticed.failed and not outcome.trained.failed
    assert outcome.trained.ended["promote"] >= 1, "a policy that was trained on the way serves"
    assert len(outcome.noticed.first) > 2 and outcome.stored == len(outcome.noticed.acknowledged) > 10
    assert "| what failed: requests, commands | 0, 0 |" in table(outcome, options)


def test_what_is_not_as_it_should_be_is_said() -> None:
    sound = Outcome(
        Noticed(pages=[0.1], first=[0.2], acknowledged=["a", "b"]), Trained(Counter(promote=1)), [100] * 40, 2, 0
    )
    assert faults(sound) == []
    assert faults(replace(sound, stored=1)) == ["1 verdicts that were acknowledged are not there"]
    grown = replace(sound, memory=[300] * 4 + [100] * 32 + [106] * 4)
    assert faults(grown) == ["memory grew by 6.0 %"], "the first tenth is not looked at"
    assert faults(replace(sound, trained=Trained(Counter(promote=1), ["ppo: no"]))) == [
        "1 requests and commands failed"
    ]
