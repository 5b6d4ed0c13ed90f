"""Pages for people who come with something: every command on them runs, in order, and every figure named is there."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from manners import web
from manners.cli import main
from manners.evaluate import ask
from manners.ppo.learner import Learner
from manners.settings import ServeSettings
from manners.store import Store
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Verdict
from manners.web import address, server
from manners.workspace import Workspace
from tests.ppo.scripted import keep
from tests.worlds import save_tiny

DOCS = Path(__file__).parents[1] / "docs"
MACHINE = ("model.device=cpu",)
"""All that an export takes: for the rest it goes by the settings that the version was trained with."""
SMALL = (
    *(*MACHINE, "model.trainable_layers=2", "model.context=256", "sample.max_new_tokens=8"),
    *("sample.batch=32", "sample.temperature=1.0", "reward.members=2", "reward.batch=16"),
    *("ppo.updates=2", "ppo.batch=8", "ppo.minibatch=4", "ppo.learning_rate=0.01", "ppo.validation_prompts=8"),
    *("evaluate.prompts=12", "evaluate.samples=2", "evaluate.bootstrap=200"),
)
"""What makes a run on the tiny model a matter of seconds."""
PAIRS = 150
"""In the file that somebody comes with."""
PEOPLE = [Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben")]


@dataclass
class Page:
    """A page with what its commands have said so far."""

    text: str
    model: Path
    small: tuple[str, ...] = SMALL
    results: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def run(self, capsys: pytest.CaptureFixture[str], instead: Mapping[str, Callable[[], None]]) -> None:
        """Run every command in its order; after `init` the page's settings go into the workspace."""
        for command in self.commands():
            program, *words = shlex.split(command)
            if program == "cd":
                os.chdir(words[0])
            elif command in instead:
                instead[command]()
            else:
                small = MACHINE if words[:2] == ["models", "export"] else self.small
                settings = [part for change in small for part in ("--set", change)]
                assert main([*words, *settings, "--json"]) == 0, f"{command}: {capsys.readouterr().err}"
                self.results.append((command, json.loads(capsys.readouterr().out)))
            if words[0] == "init":
                (Path(words[1]) / "manners.toml").write_text(self.settings(), encoding="utf-8")

    def commands(self) -> Iterator[str]:
        """Commands of indented blocks, without comments."""
        for line in re.findall(r"^ {4}((?:manners|cd) .*)$", self.text, re.MULTILINE):
            yield from (part.strip() for part in line.split("  #")[0].split("&&"))

    def settings(self) -> str:
        """The page's `manners.toml`, for the tiny model."""
        [toml] = re.findall(r"^```toml\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return re.sub(r'^name = "[^"]*"', f"name = {json.dumps(str(self.model))}", toml, flags=re.MULTILINE)

    def figures(self) -> Iterator[tuple[str, str]]:
        """Command and figure of each row of the page's tables."""
        command = ""
        for first, second in re.findall(
            r"^\| (?:`(manners [^`]+)` )?\| ((?:`\w+`(?:, )?)+) \|", self.text, re.MULTILINE
        ):
            command = first or command
            yield from ((command, name) for name in re.findall(r"`(\w+)`", second))


def people_judge() -> None:
    """Have two people judge every comparison of the evaluation in the workspace here."""
    with closing(Store.open("store.db")) as store:
        asked = [c.id for c in store.comparisons(AskedHow.EVALUATION) if c.id is not None]
        store.add_verdicts([(number, Verdict(Choice.LEFT, who)) for number in asked for who in PEOPLE])


def check_figures(page: Page) -> None:
    """Every figure that a table of the page explains is in what its command said."""
    rows = list(page.figures())
    assert rows
    for command, name in rows:
        said = [facts for line, facts in page.results if line == command or (line + " ").startswith(command + " ")]
        assert said, f"the table names `{command}`, which no block has"
        assert any(name in facts for facts in said), f"{command} says nothing of {name}: {sorted(said[0])}"


@pytest.fixture
def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Page]:
    """A function that reads a page, with some of its words replaced, for a tiny model; the folder is a fresh one."""
    model = save_tiny(tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def read(name: str, **changed: str) -> Page:
        text = (DOCS / name).read_text(encoding="utf-8")
        for old, new in {"--ask 100": "--ask 12", **changed}.items():
            text = text.replace(old, new)
        return Page(text, model)

    return read


def binarized(count: int) -> list[dict[str, Any]]:
    """Rows in the form of `trl-lib/ultrafeedback_binarized`."""

    def told(number: int, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"bread {number}?"}, {"role": "assistant", "content": answer}]

    return [
        {
            "chosen": told(n, f"bake it for {n} hours, thank you"),
            "rejected": told(n, f"the train leaves at {n}"),
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        }
        for n in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.long
def test_who_has_pairs_gets_a_policy(
    page_of: Callable[..., Page], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "offer", keep)  # two steps of a random model need not be better: any version will do
    write(Path("pairs.jsonl"), binarized(PAIRS))
    page = page_of("pairs.md")
    page.run(capsys, {"manners serve": people_judge})
    check_figures(page)
    found = dict(page.results)
    dry = found["manners comparisons import ../pairs.jsonl --dry-run"]
    assert (dry["format"], dry["unused"], dry["problems"]) == ("pairs", [], {})
    uses = found["manners prompts import ../pairs.jsonl --split train=0.8,validate=0.1,evaluate=0.1"]["uses"]
    imported = found["manners comparisons import ../pairs.jsonl"]
    assert imported["left_out_of_training"] == uses["validate"] + uses["evaluate"] > 20
    reward = found["manners reward"]
    assert reward["trained_on"] + reward["set_aside"] == uses["train"] == PAIRS - imported["left_out_of_training"]
    assert found["manners status"]["next"].startswith("manners serve, for people to judge the 12 comparisons")
    assert found["manners evaluate"]["source"] == "human" and found["manners evaluate"]["raters"] == 2
    for folder in ("my-model", "my-reward-model"):
        assert (Path("..") / folder / "model.safetensors").is_file()


@pytest.mark.long
def test_who_comes_from_trl_gets_the_same_run(page_of: Callable[..., Page], capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("pairs.jsonl"), binarized(PAIRS))
    page = page_of("coming-from-trl.md")
    for block in re.findall(r"^```py\n(.*?)^```$", page.text, re.MULTILINE | re.DOTALL):
        compile(block, "docs/coming-from-trl.md", "exec")
    page.small = tuple(change for change in SMALL if "trainable_layers" not in change and "members" not in change)
    page.small += ("reward.curve=false",)  # which is trained for on the other page
    page.run(capsys, {})
    found = dict(page.results)
    assert (found["manners reward"]["members"], found["manners ppo"]["episodes"]) == (1, 16)
    assert found["manners evaluate"]["version"] == "policy-1"
    assert AutoModelForSequenceClassification.from_pretrained("../reward").config.num_labels == 1
    assert AutoModelForCausalLM.from_pretrained("../policy").config.model_type == "llama"


def test_five_people_label_from_tomorrow(
    page_of: Callable[..., Page], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompts.txt").write_text("".join(f"bread {n}?\n" for n in range(40)), encoding="utf-8")
    page = page_of("colleagues.md")
    assert main(["init", "labels"]) == 0
    os.chdir("labels")
    Path("manners.toml").write_text(f"[model]\nname = {json.dumps(str(page.model))}\n", encoding="utf-8")
    capsys.readouterr()
    # The server starts as on the page, up to where it would wait for visitors.
    monkeypatch.setattr(
        server, "Engine", lambda *_, **__: SimpleNamespace(start=lambda: None, stop=lambda: None, load=None)
    )
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)

    def add() -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("a long password\n"))
        assert main(["accounts", "add", "olga"]) == 0

    def serve(*words: str) -> Callable[[], None]:
        def run() -> None:
            assert main(["serve", "--port", "0", *words]) == 0
            said = capsys.readouterr().err
            assert f"manners is at {words[-1]}/ " in said and "manners accounts link olga" in said, said

        return run

    commands = [command for command in page.commands() if command.startswith("manners serve")]
    instead = {command: serve(*shlex.split(command)[2:]) for command in commands}
    page.run(capsys, instead | {"manners accounts add olga": add})
    links = [facts["link"] for command, facts in page.results if command == "manners accounts invite"]
    assert [link.partition("/join/")[0] for link in links] == [
        "http://192.168.1.20:8000",
        "https://labels.example.org",
    ]
    [caddy] = re.findall(r"^```caddy\n(.*?)^```$", page.text, re.MULTILINE | re.DOTALL)
    assert f"reverse_proxy 127.0.0.1:{ServeSettings().port}" in caddy and caddy.count("{") == caddy.count("}")
    for count, wins in re.findall(r"^\| (\d+) \| (\d+) % \|$", page.text, re.MULTILINE):
        assert f"{100 * ask.plan(int(count)).detectable_win_rate:.0f}" == wins
    shown = (Path(web.__file__).parent / "templates" / "dashboard.html.j2").read_text(encoding="utf-8")
    signs = re.findall(r"^\| `([^`]+)`[:, ]|, or `([^`]+)`,|at `([^`]+)` to see", page.text, re.MULTILINE)
    assert len(signs) >= 6 and all("".join(sign) in shown for sign in signs)


def test_a_link_is_whole_once_a_server_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "ws")]) == 0
    invite = ["accounts", "invite", "--workspace", str(tmp_path / "ws"), "--json"]
    capsys.readouterr()
    assert main(invite) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["path"].startswith("/join/") and "link" not in before and "goes before it" in before["note"]
    address.remember(Workspace.open(tmp_path / "ws"), "https://labels.example.org/team")
    assert main(invite) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["link"] == f"https://labels.example.org/team{after['path']}"
