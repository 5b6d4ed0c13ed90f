"""What is measured of a reward model, as the facts that the report holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manners.facts import Facts, to_facts
from manners.results import RewardResult
from manners.reward import measure as measuring
from manners.reward.baselines import CurvePoint


def measure(*given: Any, **named: Any) -> Facts:
    """Measure margins on held-out pairs."""
    return to_facts(measuring.measure(*given, **named))


def curve_facts(points: Sequence[CurvePoint], shares: Sequence[float]) -> Facts:
    """Return the learning curve, and what doubling buys."""
    return to_facts(RewardResult(**measuring.curve_facts(points, shares)))
