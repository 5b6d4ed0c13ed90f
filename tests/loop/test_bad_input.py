"""What people bring that cannot be learned from, by the command line: one sentence on stderr, nothing on stdout."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manners
from manners.cli import main
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.test_sft import dialogues, talk, write
from tests.pretrain.worlds import STORIES
from tests.worlds import save_tiny

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
USER_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
"""A template that writes nothing of what an assistant says."""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(manners.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
COMMAND = "import sys; from manners.cli import main; sys.exit(main())"
PATIENCE = 300
"""Seconds that a busy machine may take for what takes one of them."""


@pytest.fixture
def work(model: Path, tmp_path: Path) -> Path:
    """A workspace with prompts, on the tiny model."""
    return tiny.project(tmp_path / "work", model).workspace.root


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command that fails; return its one sentence."""
    capsys.readouterr()
    assert main([str(one) for one in argv]) == 1
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("manners: ")]
    assert not out and len(said) == 1 and err.rstrip().endswith(said[0]), err
    return said[0]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def folder_of_images(path: Path) -> Path:
    folder(path)
    for name in ("a.png", "b.jpg"):
        (path / name).write_bytes(PNG)
    return path


def file(inside: Path, name: str, content: bytes | str) -> Path:
    path = inside / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


TEXTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda f: f / "nowhere", "there is no such file or folder"),
    "an empty folder": (lambda f: folder(f / "empty"), "holds no files of text .it holds nothing"),
    "images": (lambda f: folder_of_images(f / "images"), r"holds no files of text .it holds a\.png, b\.jpg"),
    "an image called text": (lambda f: file(f, "a.txt", PNG), r"a\.txt is no text that can be read"),
    "another key": (lambda f: write(f / "a.jsonl", [{"body": "x"}] * 9), "has no column text .it has body."),
    "a list of numbers": (lambda f: write(f / "a.jsonl", [1, 2, 3]), "holds no text to learn from"),
    "empty": (lambda f: file(f, "a.txt", ""), "holds no text to learn from"),
    "blank": (lambda f: file(f, "a.txt", " \n\n\t\n" * 50), "holds no text to learn from"),
    "two encodings": (
        lambda f: file(f, "a.txt", "grün\n".encode() * 50 + "grün\n".encode("latin-1")),
        "line 51 is not UTF-8, as what stands before it is",
    ),
    "half a gzip": (lambda f: file(f, "a.txt.gz", gzip.compress(b"once upon " * 9999)[:-20]), r"a\.txt\.gz"),
    "a model": (lambda f: file(f, "a.safetensors", b"\0" * 99), "has no suffix that says how to read it"),
    "a parquet that is none": (lambda f: file(f, "a.parquet", "PAR1 nothing"), r"a\.parquet"),
    "one short line": (lambda f: file(f, "a.txt", "one line"), "holds 1 documents"),
    "one giant line of nothing": (lambda f: file(f, "a.txt", " " * 3_000_000), "holds no text to learn from"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_cannot_be_learned_from(
    name: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = TEXTS[name]
    said = refused(capsys, "pretrain", "--workspace", work, "--text", make(tmp_path), "--depth", 1)
    assert_says(said, says)
    assert not list((work / "models").glob("pretrain-*")) and not (work / "runs" / "pretrain").exists()


def assert_says(said: str, pattern: str) -> None:
    assert re.search(pattern, said), said


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("/nowhere/model", "/nowhere/model.*(cannot be loaded|no such)"),
        ("pretrain-9", "there is no version pretrain-9"),
        ("sft-1", "there is no version sft-1"),
    ],
)
def test_models_to_go_on_from_that_are_not_there(
    start: str, says: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file(tmp_path, "a.txt", "\n\n".join(STORIES))
    line = ["pretrain", "--workspace", work, "--text", text, "--set", f"pretrain.start={start}"]
    assert_says(refused(capsys, *line), says)


EXAMPLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda f: f / "nowhere.jsonl", "there is no such file"),
    "images": (lambda f: folder_of_images(f / "images"), "images"),
    "an image called rows": (lambda f: file(f, "a.jsonl", PNG), r"a\.jsonl"),
    "another key": (lambda f: write(f / "a.jsonl", [{"body": "x"}] * 9), "line 1, field prompt: is missing"),
    "empty": (lambda f: file(f, "a.jsonl", ""), r"holds no examples .it is empty"),
    "nobody answers": (lambda f: write(f / "a.jsonl", [{"messages": talk("So?")}] * 9), "9 with no assistant turn"),
    "roles out of order": (
        lambda f: write(f / "a.jsonl", [{"messages": list(reversed(talk("So?", "So.")))}] * 9), "roles out of order",
    ),
    "a giant line that is no row": (lambda f: file(f, "a.jsonl", '{"prompt": "' + "x" * 3_000_000), "line 1"),
    "two encodings": (
        lambda f: file(f, "a.jsonl", '{"prompt": "a", "response": "grün"}\n'.encode() * 9
                       + '{"prompt": "a", "response": "grün"}\n'.encode("latin-1")), r"a\.jsonl",
    ),
    "two dialogues": (lambda f: write(f / "a.jsonl", dialogues(2)), "begin in 2 ways, and 3 are needed"),
    "longer than the context": (
        lambda f: write(f / "a.jsonl", [{"messages": talk("So? " * 400, "So.")}] * 9), "ends past model.context",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_that_cannot_be_learned_from(
    name: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = EXAMPLES[name]
    said = refused(capsys, "sft", "--workspace", work, "--set", f"sft.examples={make(tmp_path)}")
    assert_says(said, says)
    assert not list((work / "models").glob("sft-*")) and not (work / "runs" / "sft").exists()


def test_a_template_that_cannot_mark_what_an_assistant_said(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "silent", chat_template=USER_ONLY)
    talks = write(tmp_path / "talks.jsonl", dialogues(9))
    line = ["sft", "--workspace", work, "--set", f"sft.examples={talks}", "--set", f"model.name={model}"]
    assert_says(refused(capsys, *line), "9 with a shape that the chat template refuses")


@pytest.mark.parametrize("command", ["sft", "dpo", "reward"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/nowhere/model", "model.name is /nowhere/model, which cannot be loaded"),
        ("sft-9", "there is no version sft-9"),
        ("reward-1", "there is no version reward-1"),
    ],
)
def test_a_model_that_is_missing(
    command: str, name: str, says: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"prompt": f"sun {n}?", "chosen": "moon", "rejected": "sky"} for n in range(9)]
    file = write(tmp_path / "pairs.jsonl", pairs)
    assert main(["comparisons", "import", str(file), "--workspace", str(work)]) == 0
    talks = write(tmp_path / "talks.jsonl", dialogues(9))
    line = [command, "--workspace", work, "--set", f"sft.examples={talks}", "--set", f"model.name={name}"]
    assert_says(refused(capsys, *line), says)


def test_an_empty_record_is_nothing_for_dpo(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_says(refused(capsys, "dpo", "--workspace", work), "no comparisons to learn from; run `manners sample`")


def process(*argv: object, cwd: Path) -> subprocess.Popen[str]:
    """Begin a command in a process of its own."""
    line = [sys.executable, "-c", COMMAND, *map(str, argv)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=cwd, env=ENVIRONMENT, text=True, **pipes)


def long_run(work: Path, folder: Path) -> list[object]:
    """A run of `sft` that takes minutes, with a checkpoint at every occasion."""
    talks = write(folder / "talks.jsonl", dialogues(160))
    sets = {"sft.examples": talks, "sft.epochs": 100, "sft.batch": 2, "checkpoint_every": 0}
    return [
        "sft",
        "--workspace",
        work,
        *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")),
    ]


def until(there: Callable[[], bool], run: subprocess.Popen[str], seconds: float = 90.0) -> None:
    """Wait for something that a process is about to do."""
    end = time.monotonic() + seconds
    while not there():
        assert run.poll() is None and time.monotonic() < end, run.communicate()
        time.sleep(0.02)


@pytest.mark.long
def test_ctrl_c_in_the_middle_is_one_word_and_the_run_goes_on(work: Path, tmp_path: Path) -> None:
    line = long_run(work, tmp_path)
    run = process(*line, cwd=tmp_path)
    until(lambda: any((work / "runs" / "sft").glob("checkpoint-*")), run)
    # Meanwhile nobody else trains here, and it is said who does.
    second = process(*line, cwd=tmp_path)
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1 and not out and "Traceback" not in err
    assert_says(err, rf"manners: .*sft.*{run.pid}|manners: .*{run.pid}.*sft")
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130 and not out and err.rstrip().endswith("manners: interrupted.")
    assert "Traceback" not in err and not list((work / "models").glob("sft-*"))
    assert not list((work / "runs").glob(".trunk-states*")), "what it kept beside is cleared away"
    # With other settings it does not go on; as it was begun, it does.
    other = process(*line, "--resume", "--set", "sft.batch=3", cwd=tmp_path)
    assert_says(other.communicate(timeout=PATIENCE)[1], r"was begun with sft\.batch = 2, and now it is 3")
    before = set((work / "runs" / "sft").glob("checkpoint-*"))
    again = process(*line, "--resume", cwd=tmp_path)
    until(lambda: bool(set((work / "runs" / "sft").glob("checkpoint-*")) - before), again)
    again.send_signal(signal.SIGINT)
    assert "going on after" in again.communicate(timeout=PATIENCE)[1]


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk takes root")
@pytest.mark.parametrize("command", ["sft", "pretrain"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(command: str, model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        work = tiny.project(disk / "work", model).workspace.root
        text = file(tmp_path, "stories.txt", "\n\n".join(f"{n} {one}" for n in range(9) for one in STORIES))
        line = long_run(work, tmp_path)
        line += ["--set", f"model.name={model}", "--set", "model.trainable_layers=all"]
        if command == "pretrain":
            line = ["pretrain", "--workspace", work, "--text", text, "--depth", 2, "--set", "checkpoint_every=0"]
            line += ["--set", "pretrain.set_aside=0.3"]
        run = process(*line, cwd=tmp_path)
        out, err = run.communicate(timeout=300)
        assert run.returncode == 1 and not out and "Traceback" not in err, err
        assert_says(err.splitlines()[-1], "manners: .*([Nn]o space left|make room)")
        Workspace.open(work)
        assert not list((work / "models").iterdir())
        assert not list((work / "runs").rglob("*.partial*")), "what was half written is cleared away"
    finally:
        subprocess.run(["umount", disk], check=False)
