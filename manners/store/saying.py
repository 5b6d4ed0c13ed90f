"""Whether a file says what was deleted, and the file without it: looked at alike where somebody deletes in a workspace
and where a backup from before comes back, or the one would leave what the other takes out."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from manners.workspace import atomic_write

LISTS = ("examples", "samples", "worst")
"""Fields of facts that hold texts of the store."""
SHORTEST = 4
"""Characters of the shortest text that is looked for inside of others; a shorter one only as a whole."""
UNREADABLE = (OSError, ValueError, RecursionError)
"""What reading a file of JSON raises that is damaged."""


def says(value: Any, texts: Collection[str]) -> bool:
    """Return whether one of these texts stands in something that JSON holds."""
    if isinstance(value, str):
        return value in texts or any(len(text) >= SHORTEST and text in value for text in texts)
    if isinstance(value, dict):
        return any(says(one, texts) for one in value.values())
    return isinstance(value, list) and any(says(one, texts) for one in value)


def pruned(value: Any, texts: Collection[str]) -> Any:
    """Return facts without the examples in which one of these texts stands."""
    if isinstance(value, dict):
        return {
            name: [one for one in inner if not says(one, texts)]
            if name in LISTS and isinstance(inner, list)
            else pruned(inner, texts)
            for name, inner in value.items()
        }
    return [pruned(one, texts) for one in value] if isinstance(value, list) else value


def without_examples(file: Path, texts: Collection[str]) -> bool:
    """Take the examples with these texts out of a file of facts, and return whether there were any; a damaged file goes
    as a whole where it says one."""
    content = file.read_text(encoding="utf-8", errors="replace")
    try:
        facts = json.loads(content)
        kept = pruned(facts, texts)
    except UNREADABLE:
        if not says(content, _spelled(texts)):
            return False  # whoever reads it is told
        file.unlink()
        return True
    if kept == facts:
        return False
    atomic_write(file, json.dumps(kept, indent=1) + "\n")
    return True


def without_lines(file: Path, texts: Collection[str]) -> bool:
    """Take the lines with these texts out of a file of JSON lines, and those that nobody can read; return whether there
    were any."""
    content = file.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in content.split("\n") if line]  # `splitlines` cuts inside of texts, as at U+2028
    kept = [line for line in lines if not _in_line(line, texts)]
    if kept == lines:
        return False
    atomic_write(file, "".join(line + "\n" for line in kept))
    return True


def _spelled(texts: Collection[str]) -> set[str]:
    """Return texts as they are, and as JSON writes them with and without letters beyond ASCII."""
    return {*texts, *(json.dumps(text, ensure_ascii=plain)[1:-1] for text in texts for plain in (True, False))}


def _in_line(line: str, texts: Collection[str]) -> bool:
    try:
        return says(json.loads(line), texts)
    except UNREADABLE:
        return True  # nobody can tell what it holds
