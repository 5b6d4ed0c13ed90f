"""The pages say what is there: layout, commands, settings and links are those of the package."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import tyro
from tyro.conf import FlagCreatePairsOff

from manners import cli
from manners.feedback.crowd import TASTES, Weights
from manners.settings import Settings
from manners.settings_load import WITHDRAWN, describe, known_fields, load
from tests.loop.test_noop import FILE, LINE

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
PUBLIC = ("arxiv.org", "doi.org", "github.com", "huggingface.co")
"""Sites that a page may link to: anybody can open them, and they stay."""
EXAMPLES = ("127.0.0.1:8000", "127.0.0.1:8001", "192.168.1.20:8000", "labels.example.org", "app.example.org")
"""Where a reader's own servers are, in examples."""
FOLDER = re.compile(r"(?<![\w.~}/-])/(?:home|root|tmp|Users|var|work)/\w+")
HOST = re.compile(r"\bhttps?://([^\s/)>\"'`]+)")


def settings_table() -> str:
    """The table of all settings, as docs/settings.md holds it: print it to bring the page up to date."""
    lines = ["| setting | default | may be | meaning |", "|---|---|---|---|"]
    for row in describe(load(None)):
        cells = (f"`{row.field}`", str(row.default).lower(), row.allowed, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def commands(kind: Any = cli.Command, before: str = "") -> Iterator[str]:
    """Every command that the parser knows: `sample`, `models list`."""
    for choice in get_args(kind):
        assert get_origin(choice) is Annotated
        inner, *notes = get_args(choice)
        [name] = [note.name for note in notes if hasattr(note, "name")]
        if dataclasses.is_dataclass(inner):
            yield f"{before}{name}"
        else:
            yield from commands(inner, f"{before}{name} ")


def shown_commands(text: str) -> list[str]:
    """Lines of code blocks that call manners, one a command."""
    lines = re.findall(r"^(?: {4}|(?=manners ))(manners .*|.*&& manners .*)$", text, re.MULTILINE)
    parts = [part.split("  ")[0].split(" #")[0].strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("manners ")]


def test_the_layout_on_the_page_of_the_architecture_is_that_of_the_package() -> None:
    layout = re.search(r"<!-- layout -->(.*)<!-- /layout -->", TEXTS["docs/architecture.md"], re.DOTALL)
    assert layout is not None
    blocks: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in layout[1].splitlines()[2:]:
        names = re.findall(r"(?<![\w.])\w+(?:\.\w+)*\.(?:py|jsonl|toml|txt|md|j2)\b|\b\w+/", line)
        if re.match(r" {6}\w", line):
            blocks[""].add(names[0])
            folder = names[0] if names[0].endswith("/") else ""
            names = names[1:]
        elif re.match(r" {8}\w", line):  # a folder inside it
            blocks[folder].add(names[0])
            folder += names[0]
            names = names[1:]
        if folder:
            blocks.setdefault(folder, set()).update(names)
    assert blocks == {name: contents(ROOT / "manners" / name) for name in ["", *sorted(blocks.keys() - {""})]}


def contents(folder: Path) -> set[str]:
    """Names of the files and folders (`name/`) in a folder of the package."""
    names = {entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir()}
    return names - {"__init__.py", "__pycache__/", "py.typed"}


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_is_shown_on_some_page(command: str) -> None:
    assert any(f"manners {command}" in text for text in TEXTS.values())


@pytest.mark.parametrize("page", TEXTS)
def test_commands_in_code_blocks_are_ones_that_the_parser_takes(page: str) -> None:
    for line in shown_commands(TEXTS[page]):
        try:
            tyro.cli(cli.Command, prog="manners", args=shlex.split(line)[1:], config=(FlagCreatePairsOff,))
        except SystemExit:
            pytest.fail(f"{page} shows `{line}`, which manners does not understand")


@pytest.mark.parametrize("page", TEXTS)
def test_commands_in_the_text_exist(page: str) -> None:
    known = {command.split()[0] for command in commands()}
    assert set(re.findall(r"`manners ([a-z]+)", TEXTS[page])) <= known


def test_the_table_of_settings_is_up_to_date() -> None:
    assert settings_table() in TEXTS["docs/settings.md"], f"put this table into docs/settings.md:\n{settings_table()}"


@pytest.mark.parametrize(("name", "of_trl"), [("epochs", "4"), ("kl_coefficient", "0.05"), ("lam", "0.95")])
def test_defaults_that_differ_from_trls_are_ours(name: str, of_trl: str) -> None:
    said = rf"^\| .*`ppo\.{name}` \|.* {of_trl} there, {getattr(Settings().ppo, name):g} here"
    assert re.search(said, TEXTS["docs/coming-from-trl.md"], re.MULTILINE)


def test_the_weights_of_the_tastes_are_those_of_the_crowd() -> None:
    for part in dataclasses.fields(Weights):
        row = re.search(rf"^\| {part.name} \|.*\| (\S+) \| (\S+) \| (\S+) \|$", TEXTS["docs/crowd.md"], re.MULTILINE)
        assert row is not None
        expected = [getattr(TASTES[name].weights, part.name) for name in ("manners", "plain_facts", "stories")]
        assert [float(cell) for cell in row.groups()] == expected, part.name


def test_the_metrics_of_ppo_are_those_on_its_page() -> None:
    metric = r"(?:objective|policy|val|loss|response|reward|time|check)/\w+"
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "manners" / "ppo").glob("*.py"))
    recorded = set(re.findall(rf'"({metric})"', code))
    recorded |= {f"loss/{name}_avg" for name in re.findall(r'\bTerm\("(\w+)"', code)}
    assert "objective/kl" in recorded
    assert recorded == set(re.findall(rf"`({metric})`", TEXTS["docs/ppo.md"]))


@pytest.mark.parametrize("page", TEXTS)
def test_settings_named_in_the_text_exist(page: str) -> None:
    stages = "|".join(field.name for field in dataclasses.fields(Settings) if field.name != "seed")
    named = re.findall(rf"(?:`|--set )((?:{stages})\.[a-z_]+)(?=[`=])", TEXTS[page])
    facts = re.findall(r"^\| `([\w.]+)` \|", TEXTS["docs/report.md"], re.MULTILINE)
    assert set(named) <= {*known_fields(), *facts, *WITHDRAWN}


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_named_on_the_pages_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = {name for line in re.findall(r"^([\w -]+):", makefile, re.MULTILINE) for name in line.split()}
    assert set(re.findall(r"(?:`| {4})make ([a-z-]+)", TEXTS[page])) <= known


def test_the_two_parts_of_the_tests_are_all_of_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^([\w-]+): [^\n]*\n\t(\$\(BIN\)/python -m pytest [^\n]*)", makefile, re.MULTILINE))
    assert recipes["test"].removesuffix(" -m 'not long'") == recipes["test-long"].removesuffix(" -m long")
    assert recipes["test"] != recipes["test-long"]
    plain = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert not {"-m", "-k", "--deselect", "--ignore"} & {word.partition("=")[0] for word in plain["addopts"]}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", TEXTS[page])
    broken = [t for t in targets if "://" not in t and not (ROOT / page).parent.joinpath(t).exists()]
    assert not broken


def test_every_page_is_in_the_index() -> None:
    pages = {Path(page).name for page in TEXTS if page.startswith("docs/")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", TEXTS["docs/README.md"]))


def test_the_stage_that_the_page_adds_is_the_one_that_a_test_adds() -> None:
    page = "".join(TEXTS["docs/architecture.md"].split())
    assert all("".join(part.split()) in page for part in (FILE, LINE))


def plain(words: str) -> str:
    """Return words in small letters, without hyphens and with spaces that may break."""
    return re.sub(r"[-\s]+", " ", words).strip().lower()


def test_the_words_that_the_report_explains_are_in_the_glossary() -> None:
    [template] = (ROOT / "manners").rglob("report.html.j2")
    explained = re.findall(r"<dt>([^<{]+)</dt><dd>[A-Z]", template.read_text(encoding="utf-8"))
    rows = re.findall(r"^\| ([^|`\[]+) \| [A-Z`]", TEXTS["docs/README.md"], re.MULTILINE)
    assert len(explained) > 8
    assert set(map(plain, explained)) <= {plain(word) for row in rows for word in row.split(",")}


def test_decisions_have_numbers_that_follow_one_another_and_the_ones_named_exist() -> None:
    entries = re.findall(r"^\*\*(?:D(\d{3})\. )?\S", TEXTS["docs/decisions.md"], re.MULTILINE)
    assert entries == [f"{number:03d}" for number in range(1, len(entries) + 1)]
    sources = [path for folder in ("manners", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    texts = [*TEXTS.values(), *(path.read_text(encoding="utf-8") for path in sources if ".venvs" not in path.parts)]
    named = {number for text in texts for number in re.findall(r"\bD(\d{3})\b", text)}
    assert named <= set(entries)


@pytest.mark.parametrize("page", TEXTS)
def test_no_page_names_a_place_that_only_its_writer_has(page: str) -> None:
    assert not private_places(TEXTS[page])


def private_places(text: str) -> list[str]:
    """Folders of one machine, and hosts that are not among the public sites."""
    return FOLDER.findall(text) + [host for host in HOST.findall(text) if host not in PUBLIC + EXAMPLES]


def test_private_places_are_told_from_public_ones() -> None:
    text = "See https://arxiv.org/abs/1 and ~/tmp/x, /tmp/run, <http://127.0.0.1:80/x> or https://packages.example."
    assert private_places(text) == ["/tmp/run", "127.0.0.1:80", "packages.example."]
