"""Texts of strangers on a terminal: nothing steers it, nothing looks like a line of ours, and JSON says the same."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.cli import main
from manners.store import Store
from manners.terminal import Shown, in_json, in_one_line, visible
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.workspace import Workspace

ATTACKS = {
    "colours": "\x1b[31mred\x1b[0m",
    "a title": "\x1b]0;owned\x07",
    "a link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "the clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "a report": "\x1b[6n\x1b[c\x1b]11;?\x07",
    "one-byte escapes": "\x9b31m\x9d0;owned\x9c\x90q\x9c",
    "a line over another": "bad\rgood",
    "backspaces": "rm -rf /\x08\x08\x08\x08",
    "the other way round": "\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "nothing wide": "pass\u200bword\u2060\ufeff",
    "tags": "flag\U000e0041\U000e007f",
    "lines of others": "x\u2028verdict: left\u2029y\x85z\x0bv\x0cf",
    "a bell and an end": "\x07\x00\x1a\x04\x7f",
    "markup of rich": "[red]x[/red] [link=http://evil.example]y[/link] [bold]",
}


def steers(text: str) -> list[str]:
    """What would steer a terminal, told by Unicode's own table: controls, and formats but for the two joiners."""
    return [
        character
        for character in text
        if character not in "\n\t\u200c\u200d\u00ad"
        and (
            unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in BIDI
        )
    ]


CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
BIDI = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


@given(st.text(st.characters(codec=None)))
def test_nothing_that_steers_is_left_and_json_says_the_same(text: str) -> None:
    assert not steers(visible(text))
    assert not steers(in_one_line(text)) and "\n" not in in_one_line(text)
    written = in_json(json.dumps(text, ensure_ascii=False))
    assert not steers(written) and json.loads(written) == text
    if text.isascii() and text.isprintable():
        assert visible(text) == in_one_line(text) == text


def test_scripts_and_emoji_stay_as_they_are() -> None:
    family, flag = "\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308"
    joined = ("\u0915\u094d\u200d\u0937", "\u0645\u06cc\u200c\u062e", family, flag)
    for text in (*joined, "Zo\u00eb \u2013 \u201cso\u201d", "a\tb\nc"):
        assert visible(text) == text


def test_a_stream_shows_what_is_written_to_it_and_lets_bars_go_back() -> None:
    beneath = io.StringIO()
    stream = Shown(beneath)
    print("\r 50%", end="", file=stream)
    print("x\ry\x1b[2K", file=stream)
    assert beneath.getvalue() == "\r 50%x\\x0dy\\x1b[2K\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace in which every text, name and author is an attack."""
    root = tmp_path / "ws"
    made = Workspace.create(root)
    store = Store.create(made.database)
    for attack in ATTACKS.values():
        text = attack.replace("\x00", "")
        verdict = Verdict(Choice.LEFT, Annotator(text, AnnotatorKind.HUMAN), comment=text, reasons=(text,))
        prompt = (Turn(Role.USER, text),)
        sides = Response(f"{text} a", text), Response(f"{text} b", text)
        store.add_comparisons([Comparison(prompt, *sides, AskedHow.RANDOM, verdicts=(verdict,))])
        store.add_prompts([(Turn(Role.USER, f"{text}?"),)], PromptUse.EVALUATE, text)
    store.close()
    return root


@pytest.mark.parametrize("command", [
    ["prompts", "list"], ["responses", "list"], ["comparisons", "list"], ["settings"], ["log"], ["models", "list"],
])  # fmt: skip
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_command_prints_what_steers(
    workspace: Path, capfd: pytest.CaptureFixture[str], command: list[str], form: list[str]
) -> None:
    assert main([*command, "--workspace", str(workspace), *form]) == 0
    out, err = capfd.readouterr()
    assert out and not steers(out) and not steers(err)
    if form:
        assert json.loads(out)


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "a bell and an end"])
def test_no_refusal_says_what_steers(tmp_path: Path, capfd: pytest.CaptureFixture[str], attack: str) -> None:
    """Names of files, of fields and of versions, and what stands in them."""
    Workspace.create(tmp_path / "ws")
    text = ATTACKS[attack].replace("/", "_")
    file = tmp_path / f"{text}.jsonl"
    for content in (json.dumps({text: text}), f"{text}\n{{", json.dumps({"prompt": "p", "left": text, "right": text})):
        file.write_text(content + "\n")
        for command in (["comparisons", "import", str(file)], ["prompts", "import", str(file), "--split", text]):
            main([*command, "--workspace", str(tmp_path / "ws")])
    main(["models", "promote", text, "--workspace", str(tmp_path / "ws")])
    main(["settings", "--workspace", str(tmp_path / "ws"), "--set", f"ppo.clip={text}"])
    main(["status", "--workspace", str(tmp_path / text)])
    out, err = capfd.readouterr()
    assert err.count("manners: ") >= 5 and not steers(out + err)


def test_a_bar_on_a_terminal_shows_a_name_and_is_not_steered_by_it() -> None:
    code = (
        "import sys, time\n"
        "from manners.terminal import shown_errors\n"
        "from manners.progress import steps\n"
        "with shown_errors(), steps('scoring \\x1b]0;owned\\x07 [link=http://evil.example]x[/link]', 2) as advance:\n"
        "    advance(1)\n"
        "    print('said \\x1b]0;owned\\x07', file=sys.stderr)\n"
        "    advance(1)\n"
    )
    beneath, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], stderr=terminal, env=env, timeout=60, check=False)
    os.close(terminal)
    written = b""
    while piece := _read(beneath):
        written += piece
    os.close(beneath)
    assert done.returncode == 0, written
    assert b"\x1b[" in written, "the bar steers the terminal, and nobody else"
    assert b"\x1b]0;" not in written and b"\x1b]8;" not in written
    assert b"\\x1b]0;owned\\x07" in written and b"[link=http://evil.example]" in written


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**16)
    except OSError:  # how Linux says that nobody writes any more
        return b""


def test_a_traceback_shows_what_it_says(tmp_path: Path) -> None:
    code = (
        "from manners.terminal import shown_errors\n"
        "with shown_errors():\n"
        "    raise KeyError('x\\x1b]0;owned\\x07'[1:])\n"
        "raise ValueError('y\\x1b]0;owned\\x07')\n"
    )
    for body in (code, code.replace("KeyError", "ValueError")):
        done = subprocess.run([sys.executable, "-c", body], capture_output=True, timeout=60, check=False)
        assert done.returncode == 1 and b"\x1b" not in done.stderr and b"owned" in done.stderr
