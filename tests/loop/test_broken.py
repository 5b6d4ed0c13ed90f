"""Every file that a person or a program can damage, damaged in every way, and then every command: one sentence."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from zlib import crc32

import pytest

import manners
from manners.cli import main
from manners.loop.session import Session
from manners.settings import Settings
from manners.workspace import Workspace
from tests.conftest import some
from tests.loop import calls, tiny
from tests.loop.test_restart import Killed, dying_at

DAMAGES = ("truncated", "zeros", "random", "another type", "a folder", "gone")
FILES = (
    "store.db",
    "workspace.json",
    "manners.toml",
    "models/current.json",
    "models/day",
    "models/policy-1/version.json",
    "models/policy-1/branch-0.safetensors",
    "models/reward-1/version.json",
    "runs/sample.json",
    "runs/ppo.json",
    "runs/evaluation.json",
    "runs/disagreement.json",
    "runs/policy-1/metrics.jsonl",
    "serve.address",
    "backup.json",
)
COMMANDS = (
    "status",
    "models list",
    "comparisons list",
    "comparisons export out.jsonl",
    "prompts list",
    "accounts list",
    "settings",
    "backup ../bk",
    "models promote policy-1",
    "models rollback",
)
HEAVY = (
    "report",
    "ppo --plan",
    "reward --plan",
    "evaluate",
    "models export policy-1 exported",
    "score reward-1 answers.jsonl",
)
THIRD = [(name, how) for at, name in enumerate(FILES) for how in DAMAGES[at % 3 :: 3]]
QUARTER = [(name, how) for at, name in enumerate(FILES) for how in DAMAGES[at % 4 :: 4]]
NEEDED = {
    ("store.db", "status"),
    ("store.db", "comparisons list"),
    ("store.db", "backup ../bk"),
    ("workspace.json", "status"),
    ("workspace.json", "backup ../bk"),
    ("models/current.json", "status"),
    ("models/current.json", "models list"),
    ("models/policy-1/version.json", "models promote policy-1"),
    ("runs/ppo.json", "report"),
}
"""Where a file that is neither whole nor gone must be refused."""


def damage(file: Path, how: str) -> None:
    """Damage a file; what lies beside a store stays, as it would."""
    rng = random.Random(crc32(f"{file.name} {how}".encode()))
    content = file.read_bytes()
    file.unlink()
    if how == "truncated":
        file.write_bytes(content[: len(content) * 2 // 3])
    elif how == "zeros":
        file.write_bytes(bytes(len(content)))
    elif how == "random":
        place = rng.randrange(max(1, len(content) // 2))
        file.write_bytes(content[:place] + rng.randbytes(len(content) - place))
    elif how == "another type":
        file.write_bytes(b'["\xff\xfe", 1]\n')
    elif how == "a folder":
        file.mkdir()


def says(command: str, root: Path, err: Callable[[], str]) -> tuple[int, str]:
    """Run a command on a workspace; return its exit code, and the sentence that it says."""
    code = main([*command.split(), "--workspace", str(root), "--json"])
    said = err()
    assert "Traceback" not in said
    sentences = [line for line in said.splitlines() if line.startswith("manners: ")]
    assert len(sentences) == (code != 0), said
    return code, sentences[-1] if sentences else ""


def refuse_unsaid(name: str, command: str, how: str, code: int, sentence: str) -> None:
    """Fail where a command that needs a file did not refuse it, by its name or that of its version."""
    # SQLite finds a page that was written over only when it reads it; a backup reads all of them.
    unread = name == "store.db" and how in ("truncated", "random") and not command.startswith("backup")
    if (name, command) in NEEDED and how != "gone" and not unread:
        assert code and (Path(name).name in sentence or Path(name).parent.name in sentence), (command, sentence)


@pytest.fixture
def broken(finished: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished demo, that has been served and backed up, in a folder of its own to write to."""
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(finished, tmp_path / "ws")
    Workspace.open(root).promote("policy-1")
    (root / "manners.toml").write_text(tiny.toml(settings))
    (root / "serve.address").write_text("http://127.0.0.1:8000\n")
    (root / "backup.json").write_text(json.dumps({"made_at": "2026-01-01", "path": "bk", "verdicts": 3}))
    if not (root / "models" / "day").exists():
        (root / "models" / "day").write_text("2026-01-01\n")
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a?", "response": "b"}\n')
    return root


@pytest.mark.parametrize(
    ("name", "how"),
    [pytest.param(*one, marks=[] if one in THIRD else pytest.mark.long) for one in product(FILES, DAMAGES)],
)
def test_a_damaged_file_is_one_sentence(
    broken: Path, name: str, how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(broken / name, how)
    monkeypatch.chdir(broken)
    for command in COMMANDS:
        code, sentence = says(command, broken, lambda: capsys.readouterr().err)
        assert code in (0, 1, 2), (command, sentence)
        if code:
            assert sentence.endswith((".", ")")) or len(sentence) < 1000, sentence
        refuse_unsaid(name, command, how, code, sentence)


@pytest.mark.parametrize("command", [*COMMANDS, "report", "reward --plan", "ppo --plan", "evaluate --plan"])
def test_a_store_that_is_lost_is_made_anew_by_no_command(
    broken: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (broken / "store.db").unlink()
    monkeypatch.chdir(broken)
    code, sentence = says(command, broken, lambda: capsys.readouterr().err)
    assert not (broken / "store.db").exists()
    assert command in ("settings", "models list") or (code == 1 and "There is no store" in sentence), sentence


@pytest.mark.long
@pytest.mark.parametrize(("name", "how"), QUARTER)
def test_what_loads_a_model_says_one_sentence_too(
    broken: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(broken / name, how)
    for command in HEAVY:
        code, sentence = says(command, broken, lambda: capsys.readouterr().err)
        assert code in (0, 1, 2), (command, sentence)
        refuse_unsaid(name, command, how, code, sentence)


class Evil:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trap,)


@pytest.mark.parametrize("what", ["code", "noise", "nothing", "digest"])
def test_a_damaged_checkpoint_is_one_sentence_and_runs_nothing(
    broken: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying_at(patch, 6)
        with pytest.raises(Killed):
            calls.train_reward(Session(Workspace.open(broken), replace(settings, checkpoint_every=0.0)))
    trap = tmp_path / "trap"
    content = {"code": pickle.dumps({"x": Evil(trap)}), "noise": os.urandom(500), "nothing": b"", "digest": b"{}"}[what]
    there = sorted(broken.glob("runs/reward/checkpoint-*"))
    assert there
    for checkpoint in there:
        (checkpoint / "state.pt").write_bytes(content)
        file = checkpoint / "checkpoint.json"
        described = json.loads(file.read_text())
        if what != "digest":  # whoever means harm writes the digest anew
            file.write_text(json.dumps(described | {"digest": sha256(content).hexdigest()}))
    code, sentence = says("reward --resume", broken, lambda: capsys.readouterr().err)
    assert code == 1 and "checkpoint-" in sentence and not trap.exists()


def model_folder(broken: Path, model: Path) -> Path:
    """A copy of the model that the workspace names."""
    mine = shutil.copytree(model, broken.with_name("model"))
    toml = broken / "manners.toml"
    toml.write_text(toml.read_text().replace(str(model), str(mine)))
    return mine


ODD_CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "another kind": '{"model_type": "nobody"}',
    "no kind": "{}",
    "sizes as words": '{"num_hidden_layers": "four"}',
    "no layers": '{"num_hidden_layers": 0}',
    "heads that do not divide": '{"num_attention_heads": 7}',
    "a negative size": '{"hidden_size": -8}',
    "code of its own": '{"auto_map": {"AutoConfig": "evil.C"}, "model_type": "evil"}',
    "more layers than weights": '{"num_hidden_layers": 9}',
}


@pytest.mark.parametrize("odd", ODD_CONFIGS)
def test_an_odd_configuration_is_one_sentence(
    broken: Path, model: Path, odd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = model_folder(broken, model) / "config.json"
    try:
        changed = json.dumps(json.loads(file.read_text()) | json.loads(ODD_CONFIGS[odd]))
    except (ValueError, TypeError):
        changed = ODD_CONFIGS[odd]
    file.write_text("{}" if odd == "no kind" else changed)
    code, sentence = says("ppo --plan", broken, lambda: capsys.readouterr().err)
    assert code == 1 and sentence, odd


MODEL = ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json")


@pytest.mark.parametrize(("name", "how"), some(product(MODEL, DAMAGES), 8))
def test_a_damaged_model_is_one_sentence(
    broken: Path, model: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(model_folder(broken, model) / name, how)
    assert says("evaluate", broken, lambda: capsys.readouterr().err)[0] in (0, 1)


def test_weights_that_are_code_are_never_run(
    broken: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = model_folder(broken, model)
    (mine / "model.safetensors").unlink()
    (mine / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil(tmp_path / "trap")}))
    code, sentence = says("evaluate", broken, lambda: capsys.readouterr().err)
    assert code == 1 and sentence and not (tmp_path / "trap").exists()


TEMPLATES = (
    "{{ raise_exception('I do not like this') }}",
    "{{ 1 / 0 }}",
    "{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}",
    "{% if %}",
    "{{ messages[99].content }}",
    "{{ ''.__class__.__mro__ }}",
    "{% set x = [] %}{% for m in messages %}{{ x.append(m) }}{% endfor %}",
    "{{ messages | nosuchfilter }}",
    "{% include 'x' %}",
    "",
)


@pytest.mark.parametrize("template", some(TEMPLATES, 4))
def test_a_template_that_raises_is_one_sentence(
    broken: Path, model: Path, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = model_folder(broken, model)
    for file in mine.glob("chat_template*"):
        file.write_text(template)
    file = mine / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    assert says("evaluate", broken, lambda: capsys.readouterr().err)[0] in (0, 1)


@pytest.mark.parametrize("page", some([100, 1000, 4096, 5000, 9000, 20_000], 4))
def test_a_store_with_a_hole_in_it_is_one_sentence_wherever_that_is(
    broken: Path, page: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = broken / "store.db"
    content = file.read_bytes()
    file.write_bytes(content[:page] + os.urandom(4000) + content[page + 4000 :])
    for command in ("status", "comparisons list", "comparisons export out.jsonl", "backup bk", "prompts list"):
        assert says(command, broken, lambda: capsys.readouterr().err)[0] in (0, 1)


@pytest.fixture
def locked(finished: Path, model: Path, settings: Settings) -> Iterator[Path]:
    """A copy of the finished demo that the reader may not write."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        mine = shutil.copytree(model, place / "model")
        root = shutil.copytree(finished, place / "ws")
        (root / "manners.toml").write_text(tiny.toml(settings).replace(str(model), str(mine)))
        (place / "out").mkdir()
        yield root
        for one in (root, *root.rglob("*")):
            if one.is_dir():
                one.chmod(0o755)


def lock(root: Path) -> None:
    """Let everybody read a folder, and nobody write it; `out` beside it is everybody's."""
    for one in (root.parent / "model", *(root.parent / "model").rglob("*"), root, *root.rglob("*")):
        one.chmod(0o555 if one.is_dir() else 0o444)
    root.parent.chmod(0o755)
    (root.parent / "out").chmod(0o777)


AS_ANYBODY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner")
"""For root, whom the rights of files do not bind otherwise; another user might not read the interpreter."""


def as_reader(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from manners.cli import main; sys.exit(main())"
    reader = AS_ANYBODY if os.getuid() == 0 else ()
    return subprocess.run(
        [*reader, sys.executable, "-c", code, *command.split(), "--workspace", str(root), "--json"],
        cwd=root.parent / "out",
        env=os.environ | {"HOME": str(root.parent / "out"), "PYTHONPATH": str(Path(manners.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize("log", [False, True])
def test_a_workspace_that_can_only_be_read_is_read(locked: Path, log: bool) -> None:
    """With `log`, a server was killed before the disk was made one that can only be read."""
    verdicts = 48
    if log:
        child = (
            "import os, sys; from manners.store import Store; from manners.types import *\n"
            "said = Verdict(Choice.TIE, Annotator('anna', AnnotatorKind.HUMAN))\n"
            "store = Store.open(sys.argv[1]); store.add_verdicts([(1, said)] * 7); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", child, str(locked / "store.db")], check=False)
        assert (locked / "store.db-wal").stat().st_size
        verdicts += 7
    before = {one: one.stat().st_mtime_ns for one in locked.rglob("*")}
    lock(locked)
    found = {name: as_reader(name, locked) for name in ("status", "models list", "comparisons export all.jsonl")}
    found["report"] = as_reader("report", locked)
    for name, one in found.items():
        assert one.returncode == 0, (name, one.stderr)
        assert "Traceback" not in one.stderr
    assert sum(json.loads(found["status"].stdout)["verdicts"].values()) == verdicts
    written = (locked.parent / "out" / "all.jsonl").read_text().splitlines()
    assert len(written) == verdicts
    assert json.loads(found["report"].stdout)["report"] == str(locked.parent / "out" / "report.html")
    assert {one: one.stat().st_mtime_ns for one in locked.rglob("*")} == before
    for name in ("prompts import x.txt", "reward", "models promote policy-1", "serve --upstream http://127.0.0.1:9/v1"):
        (locked.parent / "out" / "x.txt").write_text("A prompt?\n")
        refused = as_reader(name, locked)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr, (name, refused.stderr)
        assert refused.stderr.splitlines()[-1].startswith("manners: "), name
