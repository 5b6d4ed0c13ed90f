"""Imports point one way: read from the source, inside functions too, and held against the order of the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import manners

ROOT = Path(manners.__file__).parent
LAYERS = (
    "manners errors types docstrings facts results settings_values settings_rounds settings_upkeep settings"
    " settings_load maths logs shorten sandbox templates template_files spelling turns text restored partials holder"
    " workspace unfinished launched ranks checkpoint muon training memory metrics terminal markup progress data"
    " connecting",
    "store models",
    "pretrain sft feedback reward ppo direct backup",
    "scale",
    "evaluate audit",
    "report",
    "loop",
    "upkeep",
    "web",
    "cli",
)
"""What is in a line may import what stands in its own line or above."""
APART = ("store", "models")
"""Of one layer, and yet they know nothing of each other."""
MOST_LINES = 400
HEAVY = {"torch", "transformers", "safetensors"}
LIGHT = ("manners.web.label", "manners.web.desk", "manners.store", "manners.loop.standing", "manners.cli.main")
"""What runs without torch."""
SQL = {"sqlalchemy", "alembic", "manners.store.tables"}

Graph = Mapping[str, frozenset[str]]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(tree: ast.AST, modules: Iterable[str], *, deep: bool = True) -> Iterator[str]:
    """Yield what a file imports, each by its longest name that is a module of ours; without `deep`, at its top only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not deep and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports name the whole path"
            named = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else node.module for name in named)
        yield from imports(node, modules, deep=deep)


@cache
def graph(deep: bool) -> Graph:
    found = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = frozenset(imports(tree, MODULES, deep=deep)) - {name}
    return found


def cycle(edges: Graph) -> list[str] | None:
    """Return the members of one circle, if there is any."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def part_of(module: str) -> str:
    """Return the part of `manners`, a folder or a file, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def layer_of(part: str) -> int:
    return next(place for place, line in enumerate(LAYERS) if part in line.split())


def against_the_order(edges: Graph) -> set[tuple[str, str]]:
    """Return the imports of a higher layer, and those between parts that are to stay apart."""
    found = set()
    for module, names in edges.items():
        for name in names & edges.keys():
            here, there = part_of(module), part_of(name)
            upwards = layer_of(there) > layer_of(here)
            if upwards or (here != there and {here, there} <= set(APART)):
                found.add((module, name))
    return found


def loaded_by(modules: Iterable[str]) -> set[str]:
    """Return what is imported when these modules are, packages included."""
    edges = graph(deep=False)
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += edges.get(name, ())
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert cycle(graph(deep=True)) is None


def test_no_folder_imports_itself_by_way_of_others() -> None:
    parts: dict[str, set[str]] = {}
    for module, names in graph(deep=True).items():
        for name in names & MODULES.keys():
            if part_of(name) != part_of(module):
                parts.setdefault(part_of(module), set()).add(part_of(name))
    assert cycle({part: frozenset(names) for part, names in parts.items()}) is None


def test_every_part_has_its_layer() -> None:
    placed = [part for line in LAYERS for part in line.split()]
    assert {part_of(module) for module in MODULES} <= set(placed), "say in LAYERS where it belongs"
    assert len(set(placed)) == len(placed)


def test_imports_point_one_way() -> None:
    assert against_the_order(graph(deep=True)) == set()


def test_the_record_and_its_pages_are_loaded_without_torch() -> None:
    light = [name for name in MODULES if name.startswith(LIGHT)]
    assert len(light) > 15
    assert not {name.partition(".")[0] for name in loaded_by(light)} & HEAVY


def test_tables_are_known_to_the_store_alone() -> None:
    elsewhere = {module: names for module, names in graph(deep=True).items() if part_of(module) != "store"}
    found = {m for m, names in elsewhere.items() if any(n in SQL or n.partition(".")[0] in SQL for n in names)}
    assert found == set()


def test_no_file_is_longer_than_one_reads_at_once() -> None:
    lengths = {name: len(path.read_bytes().splitlines()) for name, path in MODULES.items()}
    found = {str(MODULES[name].relative_to(ROOT)) for name, length in lengths.items() if length > MOST_LINES}
    assert found == set()


SOURCE = """
import a.b
from a import b, c
if TYPE_CHECKING:
    import never
class K:
    import at_top
def f():
    from a.c import d
    def g():
        import e
"""


@pytest.mark.parametrize(
    ("deep", "found"), [(True, ["a.b", "a.b", "a", "at_top", "a.c", "e"]), (False, ["a.b", "a.b", "a", "at_top"])]
)
def test_imports_are_found_wherever_they_stand(deep: bool, found: list[str]) -> None:
    assert list(imports(ast.parse(SOURCE), {"a", "a.b"}, deep=deep)) == found


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        ("manners.store.store", "manners.types", False),
        ("manners.types", "manners.store.store", True),
        ("manners.models.trunk", "manners.store.store", True),
        ("manners.loop.round", "manners.cli", True),
        ("manners.ppo.train", "manners.reward.loss", False),
        ("manners.reward.loss", "manners.evaluate.ask", True),
    ],
)
def test_what_is_against_the_order_is_found(module: str, name: str, wrong: bool) -> None:
    edges: dict[str, frozenset[str]] = {module: frozenset({name, "numpy"}), name: frozenset()}
    assert against_the_order(edges) == ({(module, name)} if wrong else set())


def test_circles_are_found() -> None:
    ring: dict[str, frozenset[str]] = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a")}
    assert set(cycle(ring) or ()) == set("abc") and cycle(ring | {"c": frozenset()}) is None
