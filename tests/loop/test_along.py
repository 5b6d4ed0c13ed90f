"""Several processes that train as one make the same update as one alone, and end with it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

import manners
from manners import ranks
from manners.checkpoint import Run
from manners.cli.main import main
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import along, stages
from manners.loop.options import PPOOptions, TrainingOptions
from manners.loop.round import DPO, PPO, PRETRAIN, REWARD, SFT
from manners.loop.session import Session
from manners.loop.stage import Stage, execute
from manners.ppo.learner import Learner
from manners.settings import PretrainSettings, Settings, SFTSettings
from manners.workspace import Workspace
from tests.loop import tiny
from tests.ppo.scripted import keep
from tests.scale.processes import descendants, holding, wait_until
from tests.worlds import save_tiny

ROOT = Path(manners.__file__).parents[1]
ALONE, TWO = TrainingOptions(), TrainingOptions(processes=2)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The tiny settings, with two passes over few examples, and half a thousand steps of writing."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"The {what} of {number} is {number} {what}s long." for number in range(300) for what in ("bear", "oak")]
    text.write_text("\n\n".join(lines), encoding="utf-8")
    dialogues = text.with_name("dialogues.jsonl")
    rows = [{"prompt": f"What is {n}?", "response": f"{n} is {n % 7} and {n % 5}."} for n in range(40)]
    dialogues.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pretrain = PretrainSettings(text=str(text), separator="", depth=1, row=64, tokens=40_000, batch=1024, measures=3)
    pretrain = replace(pretrain, rate=0.2)  # the higher, the further two ways of rounding part
    sft = SFTSettings(examples=str(dialogues), epochs=2, batch=6, learning_rate=0.003)
    model = save_tiny(tmp_path_factory.mktemp("models") / "llama")
    return tiny.settings(model, pretrain=pretrain, sft=sft)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, chosen: Settings) -> Path:
    """The workspace of a demo that has run; not to be changed."""
    root = tmp_path_factory.mktemp("taught") / "demo"
    tiny.demo(root, chosen)
    return root


def run(
    taught: Path, root: Path, chosen: Settings, stage: Stage, options: TrainingOptions, *, resume: bool = False
) -> tuple[Path, Facts]:
    """Run a stage in a copy of the workspace, or go on in it; a policy at its end is kept, better or not."""
    workspace = Workspace.open(root if resume else shutil.copytree(taught, root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "offer", keep)
        facts = execute(stage, Session(workspace, chosen), options, resume=resume).facts
    return root / "models" / str(facts["version"]), facts


def tensors(version: Path) -> dict[str, Tensor]:
    """Return everything that a version has learnt."""
    files = sorted(version.glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def options_of(stage: Stage) -> TrainingOptions:
    """Return a stage's options as they are where nothing is said."""
    options = stage.options()
    assert isinstance(options, TrainingOptions)
    return options


def others() -> list[int]:
    """Return the processes of ours that train along."""
    return [
        pid for pid in descendants(os.getpid()) if b"manners.loop.errand" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def apart(one: Path, other: Path) -> float:
    """Return the largest difference between two versions."""
    ours, theirs = tensors(one), tensors(other)
    assert set(ours) == set(theirs) and ours
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items())


@pytest.mark.long
@pytest.mark.parametrize("stage", [PRETRAIN, SFT, REWARD, PPO, DPO], ids=lambda stage: str(stage.name))
def test_two_processes_make_the_update_of_one(
    stage: Stage, taught: Path, chosen: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, facts = run(taught, tmp_path / "alone", chosen, stage, options_of(stage))
    shares = list[tuple[int, int]]()
    share = ranks.share

    def seen(items: list[int]) -> Sequence[int]:
        shares.append((len(items), len(share(items))))
        return share(items)

    monkeypatch.setattr(ranks, "share", seen)
    both, theirs = run(taught, tmp_path / "both", chosen, stage, replace(options_of(stage), processes=2))
    assert apart(alone, both) <= 1e-5
    assert shares and all(mine == -(-whole // 2) for whole, mine in shares), "the first learns from half of each batch"
    assert (facts["processes"], theirs["processes"]) == (1, 2)
    assert theirs.get("optimizer_steps") == facts.get("optimizer_steps")
    assert ranks.count() == 1, "what comes after is alone"


@pytest.mark.long
def test_one_that_is_killed_is_named_and_the_run_goes_on_to_the_bit(
    taught: Path, chosen: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = replace(chosen, checkpoint_every=0.0)
    undisturbed, _ = run(taught, tmp_path / "undisturbed", often, SFT, TWO)
    save, saves = Run.save, list[int]()

    def killing(self: Run, *more: object) -> None:
        save(self, *more)  # type: ignore[arg-type]
        saves.append(1)
        if len(saves) == 4:
            [other] = others()
            os.kill(other, signal.SIGKILL)

    monkeypatch.setattr(Run, "save", killing)
    with pytest.raises(MannersError, match=r"process 2 of 2 .* was lost \(it was ended by SIGKILL\); .*--resume"):
        run(taught, tmp_path / "killed", often, SFT, TWO)
    assert not list((tmp_path / "killed").rglob("*.partial")), "what it had half-written is gone"
    assert not others() and ranks.count() == 1
    monkeypatch.undo()
    resumed, facts = run(taught, tmp_path / "killed", often, SFT, TWO, resume=True)
    assert apart(undisturbed, resumed) == 0 and facts["processes"] == 2


COMMAND = "import sys; from manners.cli import main; sys.exit(main())"


@pytest.mark.long
def test_killed_it_leaves_no_process_and_goes_on_to_the_same_end(
    taught: Path, chosen: Settings, tmp_path: Path
) -> None:
    mark = f"MANNERS_TEST_MARK={tmp_path.name}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MANNERS_TEST_MARK": tmp_path.name}
    sets = [f"sft.{name}={getattr(chosen.sft, name)}" for name in ("examples", "batch", "learning_rate")]
    sets += ["sft.epochs=40", "checkpoint_every=0"]
    whole, killed = (shutil.copytree(taught, tmp_path / name) for name in ("whole", "killed"))
    for root in (whole, killed):
        (root / "manners.toml").write_text(tiny.toml(chosen), encoding="utf-8")

    def command(root: Path, *more: str) -> list[str]:
        given = [part for one in sets for part in ("--set", one)]
        return [sys.executable, "-c", COMMAND, "sft", "--workspace", str(root), "--processes", "2", *more, *given]

    subprocess.run(command(whole), env=environment, check=True, timeout=600)
    with subprocess.Popen(command(killed), env=environment) as process:
        wait_until(lambda: any((killed / "runs" / "sft").glob("checkpoint-[1-9][0-9]")))
        assert len(holding(mark)) >= 2
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not holding(mark))
    assert not (killed / "models" / "sft-1").exists()
    subprocess.run(command(killed, "--resume"), env=environment, check=True, timeout=600)
    assert apart(whole / "models" / "sft-1", killed / "models" / "sft-1") == 0


@pytest.mark.long
def test_what_another_runs_into_is_said(
    taught: Path, chosen: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "perform", None)  # the other one is a process of its own
    examples = Path(str(chosen.sft.examples))
    inputs = SFT.work.inputs

    def moved(session: Session, options: TrainingOptions, begun: Facts) -> object:
        found = inputs(session, options, begun)
        hidden = examples.rename(examples.with_suffix(".hidden"))
        request.callback(hidden.rename, examples)
        return found

    with ExitStack() as request:
        monkeypatch.setattr("manners.loop.sft.inputs", moved)
        with pytest.raises(MannersError, match=r"process 2 of 2 that trained along was lost \(.*dialogues.jsonl"):
            run(taught, tmp_path / "moved", chosen, SFT, TWO)


@pytest.mark.long
def test_torchrun_does_the_same(taught: Path, chosen: Settings, tmp_path: Path) -> None:
    alone, _ = run(taught, tmp_path / "alone", chosen, SFT, ALONE)
    root = shutil.copytree(taught, tmp_path / "both")
    (root / "manners.toml").write_text(tiny.toml(chosen), encoding="utf-8")
    sets = [f"sft.{name}={getattr(chosen.sft, name)}" for name in ("examples", "epochs", "batch", "learning_rate")]
    command = ["manners", "sft", "--workspace", str(root), "--json", *(x for one in sets for x in ("--set", one))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*launcher, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["processes"] == 2 and done.stdout.count('"version"') == 1, "one of them speaks"
    assert apart(alone, root / "models" / facts["version"]) <= 1e-5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sample --crowd", "torchrun is for the stages that train"),
        ("demo", "torchrun is for the stages that train"),
        ("loop --rounds 1", "run this without it; `manners loop --processes N` starts others"),
        ("sft --plan", "--plan is for one process"),
        ("ppo --workers 2", "--workers is for one process"),
        ("reward --processes 2 --ray-address auto", "--processes is for one process"),
    ],
)
def test_what_is_not_shared_is_refused_under_torchrun(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.long
def test_one_that_has_finished_gives_its_result_and_one_that_cannot_begin_is_named(
    taught: Path, chosen: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, facts = run(taught, tmp_path / "both", chosen, SFT, TWO)
    again, told = run(taught, tmp_path / "both", chosen, SFT, TWO, resume=True)
    assert again == made and told == facts and "this run has finished" in capsys.readouterr().err
    assert not others() and ranks.count() == 1
    monkeypatch.setattr(along, "CHILD", "raise ValueError('no such program')")
    with pytest.raises(MannersError, match=r"process 2 of 2 .* was lost \(ValueError: no such program\)"):
        run(taught, tmp_path / "broken", chosen, SFT, TWO)
    monkeypatch.undo()
    assert tensors(run(taught, tmp_path / "after", chosen, SFT, TWO)[0]).keys() == tensors(made).keys()


@pytest.mark.long
def test_a_refusal_of_the_first_is_said_as_it_is(taught: Path, chosen: Settings, tmp_path: Path) -> None:
    few = replace(chosen, sft=replace(chosen.sft, examples=str(few_examples(tmp_path))))
    with pytest.raises(MannersError, match=r"^the 2 dialogues begin in 2 ways, and 3 are needed"):
        run(taught, tmp_path / "few", few, SFT, TWO)


def few_examples(folder: Path) -> Path:
    """Write two dialogues."""
    file = folder / "few.jsonl"
    rows = [{"prompt": f"What is {n}?", "response": "A number."} for n in range(2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sft --processes 0", "--processes N takes a number from 1 on"),
        ("reward --ray-address 10.0.0.1:6379", "--ray-address says where processes are: name their number"),
        ("dpo --processes 2 --ray-address ray://10.0.0.1:1", "--ray-address takes HOST:PORT or auto"),
        ("ppo --processes 2 --workers 2", "--workers draw for one process that learns"),
    ],
)
def test_what_cannot_be_is_refused(line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*shlex.split(line), "--workspace", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_counts_all_of_them(taught: Path, chosen: Settings) -> None:
    alone, both = (
        stages.perform(Workspace.open(taught), chosen, PPO, PPOOptions(processes=n), plan=True) for n in (None, 2)
    )
    one = alone["memory_bytes"]["model"] + alone["memory_needed_bytes"]  # the model is not loaded there yet
    assert both["memory_bytes"]["other_processes"] == one
    assert both["memory_needed_bytes"] == alone["memory_needed_bytes"] + one
