"""What is never trained on, whatever was said of it: told by the record of a comparison alone."""

from __future__ import annotations

from enum import StrEnum

from manners.types import DELETED, AskedHow, Comparison


class Never(StrEnum):
    """Why nothing is ever trained on a comparison; the values are what people read."""

    EVALUATION = "asked for an evaluation"
    CANDIDATE = "asked to compare a candidate with the promoted version"
    GOLD = "a known verdict, asked to measure annotators"
    DELETED = "deleted by the person whose words they were"
    REPORTED = "reported, and kept away by a reviewer"
    KEPT = "about a prompt kept for evaluation or validation"


_MEASURES = {
    AskedHow.EVALUATION: Never.EVALUATION,
    AskedHow.CANDIDATE: Never.CANDIDATE,
    AskedHow.GOLD: Never.GOLD,
}


def never_trained_on(comparison: Comparison) -> Never | None:
    """Return why a comparison is never trained on; None where it may be."""
    if DELETED in (comparison.left.text.strip(), comparison.right.text.strip()):
        return Never.DELETED
    if why := _MEASURES.get(comparison.asked_how):
        return why
    if comparison.reported:
        return Never.REPORTED
    return Never.KEPT if comparison.kept else None
