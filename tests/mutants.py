"""Changes of a module's source, one at a time, that its tests ought to notice; see `tests/mutate.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    """As `TESTS` names it."""
    line: int
    start: int
    """Byte of the source from which `old` is replaced by `new`."""
    old: str
    new: str
    text: str
    """The line as it was, and where in it the change begins: for as long as it is there they name the mutant."""
    column: int

    @property
    def change(self) -> str:
        """What became of what."""
        return f"{self.old} -> {self.new}"

    def applied(self, source: bytes) -> bytes:
        """Return the source with the change."""
        return source[: self.start] + self.new.encode() + source[self.start + len(self.old.encode()) :]


def mutants(module: str, source: bytes) -> list[Mutant]:
    """Return all changes of a module, in order; annotations and decorators, which compute nothing, stay as they are."""
    lines = source.decode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    found = []
    for node, replacements in _places(ast.parse(source)):
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        old = source[start : starts[node.end_lineno - 1] + node.end_col_offset].decode()
        text = lines[node.lineno - 1].strip()
        column = node.col_offset - len(lines[node.lineno - 1]) + len(lines[node.lineno - 1].lstrip())
        for new in dict.fromkeys(replacements):
            found.append(Mutant(module, node.lineno, start, old, new, text, column))
    return sorted(found, key=lambda one: (one.start, len(one.old), one.new))


def _places(node: ast.AST) -> Iterator[tuple[ast.expr, list[str]]]:
    """Yield each expression that can be changed, with what may stand in its place."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list") or (field == "msg" and isinstance(node, ast.Assert)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.expr) and (new := [*_changed(child), *_negated(node, field, child)]):
                yield child, new
            yield from _places(child)


def _changed(node: ast.expr) -> Iterator[str]:
    """Write an expression with its own operator or constant changed."""

    def written(new: ast.expr) -> str:
        return f"({ast.unparse(new)})"

    match node:
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            yield written(ast.BinOp(left, BINARY[type(op)](), right))
        case ast.Compare(left, [op], [right]):
            yield from (written(ast.Compare(left, [new()], [right])) for new in COMPARED[type(op)])
        case ast.Compare(left, ops, rights):
            for place, op in enumerate(ops):
                new = COMPARED[type(op)][0]()
                yield written(ast.Compare(left, [*ops[:place], new, *ops[place + 1 :]], rights))
        case ast.BoolOp(op, values):
            yield written(ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield written(operand)
        case ast.Constant(bool(value)):
            yield str(not value)
        case ast.Constant(int(value)):
            yield str(value + 1)
            yield from [] if value == 0 else [str(value - 1)]
        case ast.Constant(float(value)):
            yield repr(value * 2 if value else 1.0)
            yield from [] if value == 0 else [repr(value / 2)]


def _negated(parent: ast.AST, field: str, node: ast.expr) -> list[str]:
    """Write a condition turned round, where its own change does not do that already."""
    condition = field == "test" and isinstance(parent, ast.If | ast.IfExp | ast.While)
    filters = field == "ifs" and isinstance(parent, ast.comprehension)
    if (condition or filters) and not isinstance(node, ast.Compare | ast.UnaryOp | ast.Constant):
        return [f"(not ({ast.unparse(node)}))"]
    return []
