"""Which column of somebody's file is which field of ours."""

from __future__ import annotations

from manners.errors import UsageError


def column_and_field(text: str) -> tuple[str, str]:
    """Return the two sides of `COLUMN=FIELD`, as `--map` takes it."""
    column, equals, field = text.partition("=")
    if not (column and equals and field):
        raise UsageError(f"--map {text}: write it as COLUMN=FIELD, for example --map question=prompt.")
    return column, field
