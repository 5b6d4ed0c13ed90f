"""The files for containers, read and not built: paths, commands, options and ports are those that there are."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from tyro.conf import FlagCreatePairsOff

from manners import cli
from manners.cli.serve import Serve
from manners.settings import Settings
from manners.web.app import OPEN

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in LINES if line and not line.startswith("#")]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICE, DATABASE = COMPOSE["services"]["manners"], COMPOSE["services"]["database"]


def steps(kind: str) -> list[str]:
    return [rest for step, rest in STEPS if step == kind]


def parsed(words: list[str]) -> Any:
    return tyro.cli(cli.Command, prog="manners", args=words, config=(FlagCreatePairsOff,))


def test_what_is_copied_is_there_and_goes_to_whoever_builds() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for rest in steps("COPY") for name in rest.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert {name.rstrip("/") for name in copied} == let_through, "nothing else leaves this folder"
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_what_is_installed_is_what_the_tests_run_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [install] = [rest for rest in steps("RUN") if "pip install" in rest]
    torch = re.search(r"torch==\S+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert torch and torch[0] in install and install.count("-c constraints.txt") == 2
    [extras] = re.findall(r"'\.\[(\w+)\]'", install)
    assert extras in project["optional-dependencies"]
    assert project["readme"] in steps("COPY")[0] and "LICENSE" in steps("COPY")[0]
    version = re.search(r"python:(\d+\.\d+)", steps("FROM")[0])
    assert version and project["requires-python"] == f">={version[1]}"
    [entry] = map(json.loads, steps("ENTRYPOINT"))
    assert entry[0] in project["scripts"]


def test_the_command_is_one_that_the_parser_takes() -> None:
    [command] = map(json.loads, steps("CMD"))
    assert command == SERVICE["command"]
    found = parsed(command)
    assert isinstance(found, Serve) and str(found.workspace) == "/data/project" and found.port is None
    assert SERVICE["entrypoint"][-2].endswith('exec manners "$$@"') and SERVICE["entrypoint"][-1] == "manners"


def test_it_runs_as_nobody_in_particular() -> None:
    kinds = [step for step, _ in STEPS]
    [user] = steps("USER")
    assert user == "manners" and f"--create-home {user}" in steps("RUN")[0]
    assert kinds.index("USER") > max(place for place, kind in enumerate(kinds) if kind in ("RUN", "COPY"))
    assert "user" not in SERVICE and SERVICE["read_only"] and SERVICE["cap_drop"] == ["ALL"]
    assert SERVICE["security_opt"] == ["no-new-privileges:true"]


def test_it_says_whether_it_is_there_where_it_listens() -> None:
    [check] = steps("HEALTHCHECK")
    address = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check)
    assert address and address[2] in OPEN
    assert {address[1], *steps("EXPOSE")} == {str(Settings().serve.port)}
    assert SERVICE["ports"] == [f"127.0.0.1:{address[1]}:{address[1]}"], "not to the street: a proxy stands before it"
    words = json.loads(check[check.index("[") :])
    compile(words[-1], "healthcheck", "exec")


def test_no_secret_is_in_the_image_or_in_the_file() -> None:
    said = "\n".join(f"{step} {rest}" for step, rest in STEPS)
    assert not re.search(r"(?i)password|secret|token|_key\b", said)
    values = yaml.safe_dump(COMPOSE["services"])
    assert not re.search(r"PASSWORD(?!_FILE)\w*:", values), "none as a variable: whoever may inspect sees those"
    [name] = COMPOSE["secrets"]
    assert COMPOSE["secrets"][name] == {"file": f"./{name}.txt"} and not (ROOT / f"{name}.txt").exists()
    assert f"/{name}.txt" in (ROOT / ".gitignore").read_text()
    assert DATABASE["environment"]["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{name}"
    assert f"cat /run/secrets/{name}" in SERVICE["entrypoint"][2]
    assert SERVICE["secrets"] == DATABASE["secrets"] == [name]


def test_volumes_networks_and_order_fit_together() -> None:
    held = [volume.split(":") for one in (SERVICE, DATABASE) for volume in one["volumes"]]
    assert {name for name, _ in held} == COMPOSE["volumes"].keys()
    [declared] = map(json.loads, steps("VOLUME"))
    assert {place for name, place in held if name != "database"} == set(declared)
    assert all(place in steps("RUN")[0] for place in declared), "or they would be root's"
    assert SERVICE["depends_on"] == {"database": {"condition": "service_healthy"}} and DATABASE["healthcheck"]["test"]
    assert set(SERVICE["networks"]) == COMPOSE["networks"].keys() and COMPOSE["networks"]["inside"] == {
        "internal": True
    }
    assert DATABASE["networks"] == ["inside"] and "ports" not in DATABASE
    assert parsed(["serve", "--host", "0.0.0.0"]).host == "0.0.0.0"


COMMANDS = [
    shlex.split(line.partition("#")[0])
    for line in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("docker compose ")
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_on_the_page_name_this_service_and_commands_of_ours(words: list[str]) -> None:
    assert words[2] in ("build", "up", "run")
    if words[2] == "run":
        assert words[3] == "--rm" and words[4] in COMPOSE["services"]
        found = parsed(words[5:])
        user, name = DATABASE["environment"]["POSTGRES_USER"], DATABASE["environment"]["POSTGRES_DB"]
        if words[5] == "init":
            assert found.database == f"postgresql://{user}@database/{name}" and "database" in COMPOSE["services"]
