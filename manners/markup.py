"""Pages out of texts that may be anybody's: every text is escaped, and none of them turns another round."""

from __future__ import annotations

import re

from jinja2 import BaseLoader, Environment, Undefined

from manners.terminal import by_number

TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that say from which side what follows is read. Marks (200e, 200f) stay: letters beside them need them."""


def unturned(text: str) -> str:
    """Return a text in which what would turn its letters round is shown, as `\\u202e`: in one order, and the writer's.

    Source: Boucher and Anderson, "Trojan Source: Invisible Vulnerabilities" (2023), section VII.
    """
    return TURNING.sub(by_number, text)


def environment(loader: BaseLoader, undefined: type[Undefined] = Undefined) -> Environment:
    """Return where the templates of pages come from: whatever they are called, they escape, and turn nothing round."""

    def shown(value: object) -> object:
        return unturned(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    return Environment(
        loader=loader, autoescape=True, undefined=undefined, finalize=shown, trim_blocks=True, lstrip_blocks=True
    )
