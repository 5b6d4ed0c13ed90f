"""The command line as a shell meets it: exit codes, what goes to stdout, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import manners
from manners.cli import main
from manners.cli.common import show
from manners.errors import MannersError, UsageError
from manners.loop.options import EvaluateOptions, PPOOptions, SampleOptions, TrainingOptions
from manners.loop.round import DPO, EVALUATE, PPO, REWARD, SAMPLE
from manners.settings import Settings
from manners.store import Store, VersionRecord
from manners.store.files.formats import Format
from manners.types import VersionKind
from manners.workspace import Workspace
from tests.postgres import Server

PAIRS = [
    {"prompt": "Is tea hot?", "left": "Yes, it is.", "right": "Go away.", "verdict": "left", "annotator": "ann"},
    {"prompt": "Is tea hot?", "left": "Yes, it is.", "right": "Go away.", "verdict": "tie", "annotator": "bob"},
    {"prompt": "Is ice hot?", "left": "Hm.", "right": "No, it is cold.", "verdict": "right", "annotator": "ann"},
]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(manners.__file__).parents[1])}
"""That of a process which imports the package under test, wherever it runs."""
COMMAND = "import sys; from manners.cli import main; sys.exit(main())"


def shell(*argv: str | Path, cwd: Path, program: str = COMMAND) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, where a warning is an error too."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A workspace, and beside it a file of comparisons."""
    assert main(["init", str(tmp_path / "project")]) == 0
    lines = [json.dumps(pair) for pair in PAIRS]
    (tmp_path / "project" / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "project"


def stub(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Put functions in the place of the stages, and of what tells how far things are."""
    loop = types.ModuleType("manners.loop")
    monkeypatch.setitem(sys.modules, "manners.loop", loop)
    for name in ("stages", "standing"):
        module = types.ModuleType(f"manners.loop.{name}")
        vars(module).update(functions)
        vars(loop)[name] = module
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_init_then_import_then_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command exits with 0 and prints one JSON object and nothing else; the import does so in a shell."""

    def said(folder: Path, *argv: str) -> str:
        monkeypatch.chdir(folder)
        assert main(list(argv)) == 0
        return capsys.readouterr().out

    made = json.loads(said(tmp_path, "init", "project", "--json"))
    assert made == {"workspace": "project", "database": "project/store.db"}
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(pair) for pair in PAIRS))
    done = shell("comparisons", "import", file, "--workspace", "project", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout).items() >= {"comparisons": 2, "verdicts": 3}.items()
    listed = json.loads(said(tmp_path / "project", "comparisons", "list", "--limit", "1", "--json"))
    assert listed["total"] == 2
    assert [row["verdicts"] for row in listed["comparisons"]] == [{"human": {"left": 1, "tie": 1}}]
    exported = said(tmp_path, "responses", "export", "out.jsonl", "--workspace", "project")
    assert exported == "responses: 4\nfile: out.jsonl\n"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == ["Yes, it is.", "Go away.", "Hm.", "No, it is cold."]


@pytest.mark.parametrize("command", ["add", "password"])
def test_who_types_no_password_is_told_so(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Ctrl-D at the prompt: Python says so by an error of its own."""

    def closed(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", closed)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    assert main(["accounts", command, "anna", "--workspace", str(project)]) == 1
    assert capsys.readouterr().err == "manners: no password was typed, and nothing was changed: run it again.\n"


def test_an_import_that_is_refused_adds_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = (project / "manners.toml").read_text()
    (project / "manners.toml").write_text("[ppo]\nclap = 0.3\n")
    for what in ("prompts", "comparisons"):
        assert main([what, "import", str(project / "pairs.jsonl"), "--workspace", str(project)]) == 2
        assert "ppo.clap is not a setting" in capsys.readouterr().err
    (project / "manners.toml").write_text(toml)
    for what in ("prompts", "comparisons"):
        assert main([what, "list", "--workspace", str(project), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["total"] == 0


def test_an_export_that_is_refused_is_not_in_the_log(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("prompts", "responses", "comparisons"):
        for file in ("out.txt", "none/out.jsonl", "out.jsonl.zst"):
            refused = main([what, "export", str(project / file), "--workspace", str(project)]) != 0
            assert refused == ((what, file) != ("prompts", "out.txt"))
    capsys.readouterr()
    assert main(["log", "--workspace", str(project), "--json"]) == 0
    assert [line["about"] for line in json.loads(capsys.readouterr().out)["log"]] == ["prompts"]


@pytest.mark.long
def test_a_team_works_on_one_database(server: Server, tmp_path: Path) -> None:
    """The folder remembers where its store is, and every command finds it; nothing of it is kept in the folder."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(pair) for pair in PAIRS))
    with server.database() as url:
        plain = url.replace("+psycopg", "")
        for directory in ("project", "project"):
            made = shell("init", directory, "--database", plain, "--json", cwd=tmp_path)
            assert (made.returncode, made.stderr) == (0, "")
            assert json.loads(made.stdout) == {"workspace": "project", "database": url}
        done = shell("comparisons", "import", file, "--workspace", "project", "--json", cwd=tmp_path)
        assert json.loads(done.stdout).items() >= {"comparisons": 2, "verdicts": 3}.items()
        # Another folder on the same database, as on another machine before anything is trained.
        assert shell("init", "elsewhere", "--database", url, cwd=tmp_path).returncode == 0
        listed = json.loads(shell("comparisons", "list", "--json", cwd=tmp_path / "elsewhere").stdout)
        assert [row["verdicts"] for row in listed["comparisons"]] == [
            {"human": {"left": 1, "tie": 1}},
            {"human": {"right": 1}},
        ]
        assert {path.name for path in (tmp_path / "project").iterdir()} == {
            "manners.toml",
            "workspace.json",
            "models",
            "runs",
        }


def test_a_database_that_cannot_be_used_is_not_remembered(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is one line and makes no folder; neither a password nor a trace is shown."""
    for url, says in [
        ("postgresql://ann:secret@127.0.0.1/x", "PGPASSFILE"),
        ("postgresql://ann@127.0.0.1:1/x", "check host and port"),
        (server.url("nowhere"), "make it with `createdb`"),
        ("store.db", "postgresql://user@host/name"),
    ]:
        assert main(["init", str(tmp_path / "project"), "--database", url]) == 1
        told = capsys.readouterr().err
        assert told.startswith("manners: ") and told.count("\n") == 1 and says in told and "secret" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_database_belongs_to_one_folder(
    server: Server, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second folder would give other models the names of those that the first has; a folder keeps its store."""
    with server.database() as url:
        assert main(["init", str(project), "--database", url]) == 1
        assert f"{project} keeps its store in {project}/store.db" in capsys.readouterr().err
        first, second = tmp_path / "first", tmp_path / "second"
        assert main(["init", str(first), "--database", url]) == 0
        with closing(Store.open(url)) as store:
            store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "models/reward-1"))
        (first / "models" / "reward-1").mkdir()
        assert main(["init", str(first), "--database", url]) == 0
        assert main(["init", str(second), "--database", url]) == 1
        assert "is the store of another workspace, which holds reward-1" in capsys.readouterr().err
        assert not second.exists()
        assert main(["demo", "--workspace", str(first)]) == 1
        assert f"{first} is a team's" in capsys.readouterr().err
        assert Workspace.open(first).database == url


def test_init_again_keeps_what_is_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second `init` is no mistake and loses nothing."""
    assert main(["comparisons", "import", str(project / "pairs.jsonl"), "--workspace", str(project)]) == 0
    assert main(["init", str(project)]) == 0
    capsys.readouterr()
    assert main(["comparisons", "list", "--workspace", str(project), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 2


def test_columns_are_mapped_and_a_dry_run_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--map` reads other column names; `--dry-run` shows the rows and stores none."""
    (project / "other.csv").write_text("question,left,right,winner\nWhy?,Because.,No.,left\nHow?,So.,Thus.,tie\n")
    command = ["comparisons", "import", str(project / "other.csv"), "--workspace", str(project), "--json"]
    command += ["--map", "question=prompt", "--map", "winner=verdict"]
    assert main([*command, "--dry-run"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["total"], seen["ties"], [row["prompt"] for row in seen["rows"]]) == (2, 1, ["Why?", "How?"])
    assert main(["comparisons", "list", "--workspace", str(project), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 0
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"] == 2
    assert main([*command, "--map", "winner"]) == 2


def test_an_import_says_what_it_read_and_what_it_did_not_use(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` has format, encoding, separator, unused fields, ties and what was left out; `--verdict` maps words."""
    rows = "prompt;left;right;choice;mood\nWhy?;Weil.;Für dich.;A wins;good\nHow?;So.;Thus.;Same;bad\nWho?;I.;;Same;\n"
    (project / "other.csv").write_bytes(rows.encode("cp1252"))
    command = ["comparisons", "import", str(project / "other.csv"), "--workspace", str(project), "--json"]
    command += ["--map", "choice=verdict", "--skip-bad"]
    assert main([*command, "--verdict", "A wins"]) == 2
    capsys.readouterr()
    for dry in ([], ["--dry-run"]):
        assert main([*command, "--verdict", "A wins=left", "--verdict", "same=tie", *dry]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["format"], said["encoding"], said["separator"]) == ("rows", "cp1252", ";")
        assert (said["unused"], said["ties"], "read as cp1252" in said["notes"][0]) == (["mood"], 1, True)
        assert said["problems" if dry else "left_out"] == {"empty text": 1}
    assert main(["comparisons", "export", str(project / "out.csv"), "--workspace", str(project)]) == 0
    assert (project / "out.csv").read_bytes().startswith(b"\xef\xbb\xbfprompt,")


def test_prompts_come_in_and_go_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts keep their use, and are listed and exported by it."""
    (project / "prompts.txt").write_text("Why is the sky blue?\nHow do I say sorry?\n")
    options = ["--workspace", str(project), "--json"]
    assert main(["prompts", "import", str(project / "prompts.txt"), "--use", "evaluate", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["new"], said["known"], said["uses"]) == (2, 0, {"evaluate": 2})
    assert main(["prompts", "list", "--use", "train", *options]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompts": [], "total": 0}
    assert main(["prompts", "export", str(project / "out.txt"), "--use", "evaluate", *options]) == 0
    assert (project / "out.txt").read_text() == (project / "prompts.txt").read_text()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (
            ["comparisons", "list"],
            1,
            "manners: . is not a workspace: run `manners init .` or name one with --workspace.",
        ),
        (["comparisons", "import", "none.jsonl", "--dry-run"], 1, "none.jsonl"),
        (["settings", "--set", "ppo.clip=40"], 2, "manners: --set ppo.clip cannot be '40': it takes 0.001 to 10."),
        (["settings", "ppo.clap"], 2, "did you mean ppo.clip?"),
        (["init", "--set", "ppo.clap=1"], 2, "did you mean ppo.clip?"),
        (["evaluate", "--reward", "reward-1"], 2, "go together"),
        (["evaluate", "--skip-bad"], 2, "say how to read the FILE of --comparisons"),
        (["evaluate", "--reward", "r", "--comparisons", "x.csv", "--map", "a"], 1, "is not a workspace"),
        (["evaluate", "--against", "a", "--reward", "r", "--comparisons", "x.csv"], 2, "does not go with --reward"),
        (["evaluate", "--ask", "0"], 2, "--ask N takes a number from 1 on"),
        (["evaluate", "--ask", "5", "--resume"], 2, "leave out --ask and --reward"),
        (["evaluate", "--close", "--plan"], 2, "--close judges the policy by the verdicts that are in"),
        (["evaluate", "--ask", "5", "--close"], 2, "it goes with no other of these"),
        (["evaluate", "--ask", "5", "--plan"], 2, "--plan is about comparing the two policies"),
        (["prompts", "list", "--limit", "-1"], 1, "is not a workspace"),
        (["init", "manners.toml/x"], 1, "name another folder"),
    ],
)
def test_mistakes_are_one_line_on_stderr(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    says: str,
) -> None:
    """The reason and the remedy on stderr, nothing on stdout, and 1 or 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manners.toml").write_text("")
    assert main([*argv, "--json"]) == code
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert out == ""
    assert line.startswith("manners: ")
    assert says in line


@pytest.mark.parametrize("argv", [[], ["praise"], ["reward", "--fast"], ["score", "reward-1"], ["demo", "--seed", "x"]])
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands and options, and missing ones, exit with 2 and say so on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err


def test_a_shell_sees_the_codes(tmp_path: Path) -> None:
    """In a process of its own: 1 for what failed, 2 for wrong usage, without a stack trace."""
    failed = shell("comparisons", "list", "--json", cwd=tmp_path)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert shell("settings", "--set", "ppo.clip=40", cwd=tmp_path).returncode == 2


def test_reading_and_importing_never_wait_for_torch(project: Path) -> None:
    """Neither `settings` nor the import of comparisons loads torch or transformers."""
    program = """
import sys
from manners.cli import main
assert main(["settings", "ppo"]) == main(["comparisons", "import", "pairs.jsonl"]) == main(["comparisons", "list"]) == 0
assert "manners.store" in sys.modules
assert not {"torch", "transformers", "matplotlib", "scipy"} & sys.modules.keys()
"""
    done = shell(cwd=project, program=program)
    assert done.returncode == 0, done.stderr


def test_settings_tells_value_and_origin(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The workspace's file, then --set, as JSON and as a table."""
    (project / "manners.toml").write_text("[ppo]\nclip = 0.3\ngamma = 0.9\n")
    command = ["settings", "ppo", "--workspace", str(project), "--set", "ppo.gamma=0.8"]
    assert main([*command, "--json"]) == 0
    rows = {row["field"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert (rows["ppo.clip"]["value"], rows["ppo.clip"]["origin"], rows["ppo.clip"]["default"]) == (
        0.3,
        "manners.toml",
        0.2,
    )
    assert (rows["ppo.gamma"]["value"], rows["ppo.gamma"]["origin"]) == (0.8, "--set")
    assert main(command) == 0
    assert "Half-width" in capsys.readouterr().out


PLAIN: dict[str, object] = {"mapping": {}, "skip_bad": False}
STAGES: list[tuple[str, str, tuple[object, ...], dict[str, object]]] = [
    ("sample --crowd", "perform", (SAMPLE, SampleOptions(crowd=True)), {"plan": False, "resume": False}),
    ("sample --resume", "perform", (SAMPLE, SampleOptions(crowd=False)), {"plan": False, "resume": True}),
    ("reward --plan", "perform", (REWARD, TrainingOptions()), {"plan": True, "resume": False}),
    ("reward --resume", "perform", (REWARD, TrainingOptions()), {"plan": False, "resume": True}),
    ("ppo", "perform", (PPO, PPOOptions()), {"plan": False, "resume": False}),
    ("ppo --resume", "perform", (PPO, PPOOptions()), {"plan": False, "resume": True}),
    ("ppo --workers 2", "perform", (PPO, PPOOptions(workers=2)), {"plan": False, "resume": False}),
    ("dpo --plan", "perform", (DPO, TrainingOptions()), {"plan": True, "resume": False}),
    ("dpo --resume", "perform", (DPO, TrainingOptions()), {"plan": False, "resume": True}),
    (
        "score reward-1 in.jsonl",
        "score",
        ("reward-1", Path("in.jsonl"), Path("in.jsonl.scores.jsonl")),
        {**PLAIN, "fast": False},
    ),
    (
        "score reward-1 in.jsonl --output s --map q=prompt --skip-bad --fast",
        "score",
        ("reward-1", Path("in.jsonl"), Path("s")),
        {"mapping": {"q": "prompt"}, "skip_bad": True, "fast": True},
    ),
    ("evaluate --ask 50", "perform", (EVALUATE, EvaluateOptions(ask=50)), {"plan": False, "resume": False}),
    ("evaluate", "perform", (EVALUATE, EvaluateOptions()), {"plan": False, "resume": False}),
    ("evaluate --resume", "perform", (EVALUATE, EvaluateOptions()), {"plan": False, "resume": True}),
    ("evaluate --plan", "perform", (EVALUATE, EvaluateOptions()), {"plan": True, "resume": False}),
    (
        "evaluate --reward r --comparisons c.csv --map a=left --map b=right --format rows --skip-bad",
        "perform",
        (
            EVALUATE,
            EvaluateOptions(
                reward="r",
                comparisons=Path("c.csv"),
                mapping=("a=left", "b=right"),
                format=Format.ROWS,
                skip_bad=True,
            ),
        ),
        {"plan": False, "resume": False},
    ),
    ("report", "report", (), {}),
    ("models list", "models_list", (), {}),
    ("models promote policy-2", "models_promote", ("policy-2", None), {}),
    ("models rollback", "models_rollback", (), {}),
    (
        "models export policy-2 out",
        "models_export",
        ("policy-2", Path("out")),
        {"member": None, "form": "folder", "kind": None, "device": "auto"},
    ),
    (
        "models export reward-2 --member average --as gguf --type q8_0",
        "models_export",
        ("reward-2", None),
        {"member": "average", "form": "gguf", "kind": "q8_0", "device": "auto"},
    ),
    ("status", "status", (), {}),
]


@pytest.mark.parametrize(("line", "name", "given", "options"), STAGES)
def test_each_command_calls_one_function(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    name: str,
    given: tuple[object, ...],
    options: dict[str, object],
) -> None:
    """With the workspace, the settings where the stage has any, and what was asked for."""
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def stage(*args: object, **named: object) -> dict[str, float]:
        print("a library talks")
        calls.append((args, named))
        return {"accuracy": float("nan")}

    stub(monkeypatch, **{name: stage})
    assert main([*line.split(), "--workspace", str(project), "--set", "seed=7", "--json"]) == 0
    head: tuple[object, ...] = (Workspace(project), Settings(seed=7))
    head = head[:1] if name == "status" or name.startswith("models") else head
    assert calls == [((*head, *given), options)]
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"accuracy": None}, "a library talks\n")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MannersError("There are\nno comparisons."), 1, "manners: There are no comparisons.\n"),
        (UsageError("Not so."), 2, "manners: Not so.\n"),
        (KeyboardInterrupt(), 130, "manners: interrupted.\n"),
        (
            PermissionError(13, "Permission denied", "out/model.bin"),
            1,
            "manners: out/model.bin cannot be used (Permission denied): check its name, its folder and its rights.\n",
        ),
        (OSError(28, "No space left on device"), 1, "manners: the system refused what this command needs (No space"),
    ],
)
def test_what_a_stage_raises_becomes_a_code(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    says: str,
) -> None:
    """One line each; a bug of ours is not hidden behind one."""

    def fail(*_: object) -> dict[str, float]:
        raise error

    stub(monkeypatch, status=fail)
    assert main(["status", "--workspace", str(project), "--json"]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(says)
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["status", "--workspace", str(project)])


def test_a_workspace_that_cannot_be_read_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder where the file should be, as the nearest to a missing right that every user meets."""
    (tmp_path / "project" / "workspace.json").mkdir(parents=True)
    assert main(["comparisons", "list", "--workspace", str(tmp_path / "project")]) == 1
    err = capsys.readouterr().err
    assert "workspace.json cannot be used (Is a directory)" in err and err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_crash(project: Path) -> None:
    """`manners settings | head -1` prints no stack trace."""
    command = [sys.executable, "-c", COMMAND, "settings", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stdout=pipe, stderr=pipe) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""


def test_a_summary_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Nested figures become dotted names, records a table, and long texts are cut there and only there."""
    show({"reward": {"accuracy": 2 / 3, "interval": [0.5, 0.75]}, "kept": True, "path": Path("x"), "no": {}}, False)
    assert capsys.readouterr().out.splitlines() == [
        "reward.accuracy: 0.6667",
        "reward.interval: 0.5, 0.75",
        "kept: yes",
        "path: x",
        "no: none",
    ]
    show({"rows": [{"id": 1, "text": "word " * 100}], "total": 1}, False)
    out = capsys.readouterr().out
    assert out.split()[:2] == ["id", "text"]
    assert 20 < out.count("word") < 40
    said = [{"name": "accuracy", "value": 0.5, "sentence": "Half. " * 100}, {"name": "ties", "sentence": "Few."}]
    show({"checks": said}, False)
    out = capsys.readouterr().out
    assert out.startswith("checks:\n  accuracy: Half.") and out.count("Half.") == 100 and out.endswith("  ties: Few.\n")
    assert max(map(len, out.splitlines())) <= 200
    show({"rows": [{"id": 1, "reason": "so"}, {"id": 2, "when": 3}, {"reason": "no", "id": 4}]}, False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["id", "reason", "when"], ["1", "so", "none"], ["2", "none", "3"], ["4", "no", "none"]]
    show({"text": "word " * 100}, True)
    assert capsys.readouterr().out.count("word") == 100


@pytest.mark.long
@pytest.mark.parametrize("words", [["status"], ["models", "list"], ["models", "rollback"]])
def test_a_look_loads_neither_torch_nor_transformers(words: list[str], new_workspace: Any, tmp_path: Path) -> None:
    """In a process of its own, which says what it has loaded."""
    workspace = new_workspace(tmp_path / "work")
    command = [*words, "--workspace", str(workspace.root)]
    program = f"import sys\nfrom manners.cli import main\nmain({command})\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "manners.loop.standing" in loaded and not loaded & {"torch", "transformers", "safetensors"}
