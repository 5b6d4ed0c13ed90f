"""False decisions of an evaluation by people, over simulated studies that are looked at after every verdict."""

from __future__ import annotations

import pytest

from manners.feedback.statistics import Decision
from tests.evaluate.studies import EQUAL, WORLDS, World, shares


@pytest.mark.long
def test_equal_versions_are_seldom_called_different() -> None:
    found = shares(WORLDS["equal, alike within a pair, five verdicts"], 100)
    said = {rule: 1 - found[rule][Decision.CANNOT_TELL] for rule in found}
    assert said["bets"] <= 0.05
    # The planted fault: people who see the same in a pair are not so many witnesses.
    assert said["every verdict bets"] > 0.05


def test_more_is_found_than_by_the_first_verdict_alone() -> None:
    found = shares(World(gain=1.5, of_pair=1.0), 100)
    better = {rule: found[rule][Decision.BETTER] for rule in found}
    assert better["bets"] > better["the first verdict bets"] + 0.1
    assert found["bets"][Decision.WORSE] == 0


@pytest.mark.long
@pytest.mark.parametrize("name", EQUAL)
def test_at_most_one_of_twenty_decisions_is_false(name: str, times: int) -> None:
    found = shares(WORLDS[name], 200 * times)
    assert 1 - found["bets"][Decision.CANNOT_TELL] <= 0.05
