"""The strings under the fields of a record, which are their documentation: Python keeps them in the source only."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import is_dataclass


def docstrings(record: type) -> dict[str, str]:
    """Return the string under each field of a record and of those that it extends, as one line; empty where none is."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        if is_dataclass(kind):
            found |= _own(kind)
    return found


def _own(record: type) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, [*definition.body[1:], ast.Pass()], strict=True):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                found[name] = ""
    return found
