"""Pre-training as a stage: from text to a version that plain transformers loads; killed, refused, gone on with."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from manners.cli import main
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import stages
from manners.loop.options import PretrainOptions
from manners.loop.round import PRETRAIN
from manners.models import versions
from manners.settings import ModelSettings, PretrainSettings, Settings
from manners.types import VersionKind
from manners.workspace import Workspace
from tests.conftest import some
from tests.loop import tiny
from tests.loop.test_chain import taught as learnt
from tests.pretrain.worlds import STORIES

SMALL = PretrainSettings(
    depth=1, vocabulary=300, row=32, tokens=24_000, batch=512, set_aside=0.1, measures=3, separator=""
)
CHOSEN = Settings(seed=1, checkpoint_every=0.0, model=ModelSettings(device="cpu"), pretrain=SMALL)


def text(folder: Path, stories: list[str] = STORIES * 4) -> Path:
    path = folder / "stories.txt"
    numbered = [f"{story} Then {number} of them went home." for number, story in enumerate(stories)]
    path.write_text("\n\n".join(numbered), encoding="utf-8")
    return path


def taught(root: Path, path: Path, resume: bool = False, **how: Any) -> Facts:
    settings = replace(CHOSEN, pretrain=replace(SMALL, text=str(path), **how))
    return stages.perform(Workspace.create(root), settings, PRETRAIN, resume=resume)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Facts]:
    """A workspace with a model that was pre-trained, and what its command said."""
    root = tmp_path_factory.mktemp("done")
    return root / "work", taught(root / "work", text(root))


def contents(root: Path) -> dict[str, Any]:
    """What a run leaves, but for what a clock decides."""
    found: dict[str, Any] = {}
    for file in sorted([*(root / "models").rglob("*"), *(root / "runs").rglob("*.json*")]):
        name = str(file.relative_to(root))
        if file.name == "metrics.jsonl":
            found[name] = [tiny.steady(json.loads(line)) for line in file.read_text("utf-8").splitlines()]
        elif file.name in ("pretrain.json", "version.json"):
            facts = tiny.steady(json.loads(file.read_text("utf-8")))
            for part in (facts, facts.get("metrics", {})):
                part.pop("share_of_peak", None), part.pop("muon_share", None)
            found[name] = facts
        elif file.is_file():
            found[name] = file.read_bytes()
    return found


def test_it_learns_and_says_so_beside_what_needs_no_network(done: tuple[Path, Facts]) -> None:
    _, facts = done
    assert facts["version"] == "pretrain-1" and facts["tokens"] == 47 * 16 * 32
    assert facts["loss_before"] == pytest.approx(math.log(300), abs=0.02)
    assert facts["loss_after"] < 0.5 * facts["loss_before"]
    assert 0 < facts["bits_per_byte"] < 2 and facts["gzip_bits_per_byte"] > 0 and facts["ngram_bits_per_byte"] > 0
    assert facts["documents"] == len(STORIES) * 4 and facts["duplicates"] == 0
    assert 0 < facts["muon_share"] < 1 and 0 < facts["share_of_peak"] < 1 and facts["flops_per_token"] > 0
    assert "curves" not in facts and "samples" not in facts


def test_plain_transformers_loads_the_version_and_finds_the_same_loss(done: tuple[Path, Facts]) -> None:
    root, facts = done
    folder = root / "models" / "pretrain-1"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    measured = json.loads(next((root / "runs").glob("text-*/measured.json")).read_text("utf-8"))
    # Each story alone behind its BOS: not packed as in our rows, so about the same and not the same.
    nats = size = 0.0
    with torch.no_grad():
        for story, *_ in measured:
            ids = torch.tensor([tokenizer(story)["input_ids"][: SMALL.row]])
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            size += len(str(tokenizer.decode(ids[0, 1:])).encode())
    assert nats / math.log(2) / size == pytest.approx(facts["bits_per_byte"], rel=0.15)
    version = versions.describe(Workspace.open(root), "pretrain-1")
    assert version.kind is VersionKind.PRETRAIN and version.metrics["loss_after"] == facts["loss_after"]
    kept = json.loads((root / "runs" / "pretrain.json").read_text("utf-8"))
    assert len(kept["samples"]) == 3 + 4 and len(kept["curves"]["loss/next_token_avg"]) == 47
    assert not (root / "runs" / "pretrain").exists(), "a run that has ended leaves no checkpoint"


def test_the_same_seed_gives_the_same_model_and_another_gives_another(done: tuple[Path, Facts], tmp_path: Path) -> None:
    root, _ = done
    taught(tmp_path / "again", root.parent / "stories.txt")
    assert contents(tmp_path / "again") == contents(root)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("at", some([20, 1, 3, 46, 47], 1))
def test_killed_at_a_step_and_resumed_is_the_same_to_the_bit(
    done: tuple[Path, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    from manners.pretrain import train

    root, _ = done
    real, steps = train._step, 0

    def dying(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == at:
            raise Killed
        return real(*given)

    monkeypatch.setattr(train, "_step", dying)
    with pytest.raises(Killed):
        taught(tmp_path / "work", root.parent / "stories.txt")
    monkeypatch.undo()
    taught(tmp_path / "work", root.parent / "stories.txt", resume=True)
    assert contents(tmp_path / "work") == contents(root)


COMMAND = "import sys; from manners.cli import main; sys.exit(main())"


@pytest.mark.long
def test_kill_9_at_random_moments(done: tuple[Path, Facts], tmp_path: Path) -> None:
    root, _ = done
    work = Workspace.create(tmp_path / "work").root
    lines = [f"{k} = {json.dumps(v)}" for k, v in vars(SMALL).items() if v != getattr(PretrainSettings(), k)]
    (work / "manners.toml").write_text(
        "\n".join(["seed = 1", "checkpoint_every = 0", "[model]", 'device = "cpu"', "[pretrain]", *lines])
    )
    stories = str(root.parent / "stories.txt")
    argv = [sys.executable, "-c", COMMAND, "pretrain", "--workspace", str(work), "--resume", "--text", stories]
    seconds = 6.0
    for _ in range(10):
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(os.environ))
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seconds += 0.37
    subprocess.run(argv, check=True, capture_output=True)
    assert (
        contents(work)["models/pretrain-1/model.safetensors"] == contents(root)["models/pretrain-1/model.safetensors"]
    )


def test_the_plan_says_what_it_takes_and_trains_nothing(done: tuple[Path, Facts], tmp_path: Path) -> None:
    settings = replace(CHOSEN, pretrain=PretrainSettings())
    options = PretrainOptions(text=done[0].parent / "stories.txt", depth=4)
    found = stages.perform(Workspace.create(tmp_path), settings, PRETRAIN, options, plan=True)
    assert found["depth"] == 4 and found["width"] == 160 and found["seconds_about"] > 0
    assert found["memory_needed_bytes"] > 4 * found["parameters"] and not list((tmp_path / "models").iterdir())


def test_a_billion_is_planned_on_paper(done: tuple[Path, Facts], tmp_path: Path) -> None:
    settings = replace(CHOSEN, pretrain=replace(PretrainSettings(), text=str(done[0].parent / "stories.txt"), depth=42))
    found = stages.perform(Workspace.create(tmp_path), settings, PRETRAIN, plan=True)
    assert found["parameters"] > 0.8e9 and found["memory_needed_bytes"] > 8e9


@pytest.mark.parametrize(
    ("content", "how", "says"),
    [
        ("", {}, "holds no text to learn from"),
        (" \n\n \n", {}, "holds no text to learn from"),
        ("one story only", {}, "holds 1 documents, of which"),
        ("\n\n".join(STORIES), {"vocabulary": 3000}, "carry 259 entries, one for 128 bytes: lower it, or add text"),
        (
            "\n\n".join(f"ab {n}" for n in range(20_000)),
            {"vocabulary": 400},
            "entries, and 400 were asked for: lower pretrain.vocab",
        ),
        ("\n\n".join(STORIES), {"row": 100_000, "vocabulary": 259}, "tokens to train on, and a row takes 100,001"),
    ],
)
def test_text_that_is_too_little_is_refused_in_a_sentence(
    tmp_path: Path, content: str, how: dict[str, Any], says: str
) -> None:
    path = tmp_path / "few.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MannersError, match=says) as refused:
        taught(tmp_path / "work", path, **how)
    assert "\n" not in str(refused.value)


def test_no_text_is_said_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workspace.create(tmp_path / "work")
    assert main(["pretrain", "--workspace", str(tmp_path / "work")]) == 1
    assert "manners: there is no text to learn from: name a file or a folder with --text" in capsys.readouterr().err
    assert main(["pretrain", "--workspace", str(tmp_path / "work"), "--text", str(tmp_path / "none.txt")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().err


def test_a_run_goes_on_with_the_text_that_it_was_begun_with(
    done: tuple[Path, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manners.pretrain import train

    path = text(tmp_path)
    monkeypatch.setattr(train, "measured", None)
    with pytest.raises(TypeError):
        taught(tmp_path / "work", path)
    monkeypatch.undo()
    path.write_text(path.read_text("utf-8") + "\n\nOne more.", encoding="utf-8")
    with pytest.raises(MannersError, match="has changed since the unfinished run"):
        taught(tmp_path / "work", path, resume=True)


@pytest.mark.long
def test_a_model_goes_on_and_replay_keeps_what_it_knew(done: tuple[Path, Facts], tmp_path: Path) -> None:
    root, before = done
    other = tmp_path / "other.txt"
    other.write_text(
        "\n\n".join(f"{n} ships sailed by; {n + 1} gulls cried loud!" for n in range(400)), encoding="utf-8"
    )
    start = str(root / "models" / "pretrain-1")
    went_on: dict[float | None, float] = {}
    for share in (None, 0.5):
        replay = None if share is None else str(root.parent / "stories.txt")
        how: dict[str, Any] = {"start": start, "vocabulary": None, "tokens": 16_000, "rate": 10.0}
        how |= {"replay": replay, "replay_share": share or 0.1}
        facts = taught(tmp_path / f"work {share}", other, **how)
        assert facts["loss_after"] < facts["loss_before"] - 0.5 and facts["begun_as"] == start
        assert facts["parameters"] == before["parameters"] and facts.get("replayed") == share
        went_on[share] = stories_loss(tmp_path / f"work {share}" / "models" / "pretrain-1", root)
    assert went_on[0.5] < went_on[None] - 0.1, "what is read again is forgotten less"


def stories_loss(folder: Path, root: Path) -> float:
    """Nats a token on the stories set aside, each by itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    measured = json.loads(next((root / "runs").glob("text-*/measured.json")).read_text("utf-8"))
    losses = []
    with torch.no_grad():
        for story, *_ in measured:
            ids = torch.tensor([tokenizer(story)["input_ids"][:32]])
            losses.append(float(model(ids, labels=ids).loss))
    return sum(losses) / len(losses)


def test_a_model_of_another_architecture_goes_on(tmp_path: Path, model: Path) -> None:
    how: dict[str, Any] = {"start": str(model), "vocabulary": None, "tokens": 4096, "rate": 30.0}
    facts = taught(tmp_path / "work", text(tmp_path), **how)
    assert facts["loss_after"] < facts["loss_before"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "models" / "pretrain-1")


@pytest.mark.long
def test_what_examples_taught_goes_on_to_read_text(tmp_path: Path, model: Path) -> None:
    """`pretrain.start = "sft-1"`: at a rate of 0 it stays, as a whole, what plain transformers loads of `sft-1`."""
    session = tiny.project(tmp_path / "project", model)
    branch = learnt(session)
    stages.models_export(session.workspace, "sft-1", tmp_path / "exported")
    path = text(tmp_path)
    for rate, name in ((0.0, "pretrain-1"), (30.0, "pretrain-2")):
        how = replace(SMALL, text=str(path), start="sft-1", vocabulary=None, tokens=4096, rate=rate)
        settings = replace(session.settings, pretrain=how)
        facts = stages.pretrain(session.workspace, settings, plan=False)
        assert (facts["version"], facts["begun_as"]) == (name, "sft-1")
        assert versions.describe(session.workspace, name).base == "sft-1"
        assert (facts["loss_after"] < facts["loss_before"] - 0.1) is bool(rate)
    whole, first, same, moved = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (model, tmp_path / "exported", *(session.workspace.models / f"pretrain-{n}" for n in (1, 2)))
    )
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.no_grad():
        before, learned, stayed, went_on = (one(ids).logits for one in (whole, first, same, moved))
        mine = branch.assembled(session.pretrained.trunk)(input_ids=ids).logits
    torch.testing.assert_close(stayed, learned)
    torch.testing.assert_close(stayed, mine, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stayed, before, atol=1e-2), "the version, and not what it grew on"
    assert not torch.allclose(stayed, went_on, atol=1e-2)


@pytest.mark.parametrize(("start", "said"), [("sft-7", "sft-7"), ("reward-1", "scores and writes nothing")])
def test_a_start_that_is_no_model_is_one_sentence(tmp_path: Path, model: Path, start: str, said: str) -> None:
    session = tiny.project(tmp_path / "project", model)
    learnt(session)
    described = session.workspace.models / "reward-1"
    shutil.copytree(session.workspace.models / "sft-1", described)
    record = json.loads((described / "version.json").read_text("utf-8"))
    (described / "version.json").write_text(json.dumps({**record, "name": "reward-1", "kind": "reward"}), "utf-8")
    settings = replace(
        session.settings, pretrain=replace(SMALL, text=str(text(tmp_path)), start=start, vocabulary=None)
    )
    with pytest.raises(MannersError, match=said):
        stages.pretrain(session.workspace, settings, plan=False)
