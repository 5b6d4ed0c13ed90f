"""Pre-training says what it does: what a run is known by, what is read too often, what is set and not used."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import stages
from manners.loop.round import PRETRAIN
from manners.settings import PretrainSettings
from manners.workspace import Workspace
from tests.loop.test_pretrain import CHOSEN, SMALL, taught, text
from tests.pretrain.worlds import STORIES
from tests.worlds import save_tiny


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Facts]:
    """A workspace with a model that has read a little, and what its command said."""
    root = tmp_path_factory.mktemp("done")
    return root / "work", taught(root / "work", text(root), tokens=6000)


def interrupted(root: Path, path: Path, patch: pytest.MonkeyPatch, **how: Any) -> None:
    """Begin a run, and leave it unfinished behind its first steps."""
    from manners.pretrain import train

    patch.setattr(train, "measured", None)
    with pytest.raises(TypeError):
        taught(root, path, **how)
    patch.undo()


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_an_edit_in_the_middle_of_a_text_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: float) -> None:
    path = text(tmp_path, STORIES * 12)  # 250 KB, of which 64 KiB at each end were looked at once
    content = path.read_text("utf-8")
    interrupted(tmp_path / "work", path, monkeypatch)
    place = content.index("stones", int(at * len(content)))
    path.write_text(content[:place] + "apples" + content[place + 6 :], "utf-8")
    with pytest.raises(MannersError, match="has changed since the unfinished run"):
        taught(tmp_path / "work", path, resume=True)


def copy_of(done: Path, folder: Path) -> Path:
    return shutil.copytree(done / "models" / "pretrain-1", folder)


GO_ON: dict[str, Any] = {"vocabulary": None, "tokens": 1024, "measures": 1}


def with_another_tokenizer(base: Path) -> None:
    """Two letters change their places in the tokenizer of a folder."""
    told = json.loads((base / "tokenizer.json").read_text("utf-8"))
    entries = told["model"]["vocab"]
    entries["a"], entries["e"] = entries["e"], entries["a"]
    (base / "tokenizer.json").write_text(json.dumps(told), "utf-8")


def test_tokens_of_another_tokenizer_are_never_read(done: tuple[Path, Facts], tmp_path: Path) -> None:
    base = copy_of(done[0], tmp_path / "base")
    path = text(tmp_path)
    before = taught(tmp_path / "work", path, start=str(base), **GO_ON)
    with_another_tokenizer(base)
    after = taught(tmp_path / "work", path, start=str(base), **GO_ON)
    fresh = taught(tmp_path / "fresh", path, start=str(base), **GO_ON)
    assert before["loss_after"] != after["loss_after"] == fresh["loss_after"], "read anew by the tokenizer there is"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("context", "was begun with the tokens of a row = 32, and now it is 16"),
        ("weights", "was begun with the start model = "),
        ("tokenizer", "was begun with its tokenizer = "),
    ],
)
def test_a_model_goes_on_only_as_it_was_begun(
    done: tuple[Path, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, says: str
) -> None:
    base = copy_of(done[0], tmp_path / "base")
    path, how = text(tmp_path), {**GO_ON, "start": str(base), "row": None}
    interrupted(tmp_path / "work", path, monkeypatch, **how)
    chosen = CHOSEN
    if change == "context":
        chosen = replace(CHOSEN, model=replace(CHOSEN.model, context=16))
    elif change == "weights":
        model = AutoModelForCausalLM.from_pretrained(base)
        model.model.norm.weight.data[0] += 0.1
        model.save_pretrained(base)
    else:
        with_another_tokenizer(base)
    settings = replace(chosen, pretrain=replace(SMALL, text=str(path), **how))
    with pytest.raises(MannersError, match=says):
        stages.perform(Workspace.open(tmp_path / "work"), settings, PRETRAIN, resume=True)


def test_a_text_of_few_words_has_the_vocabulary_that_it_carries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = text(tmp_path, STORIES[:60] * 40)  # 160 KB would carry 1,024 entries, and has fewer words
    facts = taught(tmp_path / "work", path, vocabulary=None, tokens=2048)
    assert 300 < facts["vocabulary"] < 1024
    assert f"entries, and 1,024 would suit pretrain.depth: it has {facts['vocabulary']}" in capsys.readouterr().err
    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "models" / "pretrain-1")
    assert made.get_input_embeddings().weight.shape[0] == facts["vocabulary"]


@pytest.mark.long
def test_a_text_that_is_read_too_often_is_said_and_where_it_was_written_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = random.Random(0)
    letters = ["".join(drawn.choices("abcdefgh", k=70)) for _ in range(40)]  # of which nothing is to be learnt
    path = text(tmp_path, letters)
    how: dict[str, Any] = {"vocabulary": 259, "batch": 256, "rate": 5.0, "measures": 12, "set_aside": 0.3}
    short = taught(tmp_path / "short", path, tokens=None, **how)
    assert 3.5 < short["passes"] < 4.5
    assert "where the model would bear more" in capsys.readouterr().err
    facts = taught(tmp_path / "work", path, tokens=120_000, **how)
    assert facts["passes"] > 20 and "past 4 a model learns it by heart" in capsys.readouterr().err
    kept = json.loads((tmp_path / "work" / "runs" / "pretrain.json").read_text("utf-8"))
    looks = {
        tokens: bits
        for tokens, bits in zip(kept["curves"]["tokens"], kept["curves"]["held_out/bits_per_byte"], strict=True)
        if bits is not None
    }
    best = min(looks, key=looks.__getitem__)
    assert best < max(looks) and f"set pretrain.tokens to {best}, or add text" in facts["advice"]


def test_the_text_may_be_moved_once_the_steps_have_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manners.pretrain.train import train as real

    path = text(tmp_path)

    def moved(*given: Any) -> Any:
        path.rename(tmp_path / "elsewhere.txt")
        return real(*given)

    monkeypatch.setattr("manners.loop.pretrain.train", moved)
    facts = taught(tmp_path / "work", path, tokens=2048)
    assert facts["ngram_bits_per_byte"] > 0 and (tmp_path / "work" / "models" / "pretrain-1").is_dir()


def test_settings_that_change_nothing_are_said(
    done: tuple[Path, Facts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(CHOSEN.model, trainable_layers=2, lora_rank=4, dtype="bfloat16", recompute=True, context=64)
    path = str(done[0].parent / "stories.txt")
    new = replace(CHOSEN, model=model, pretrain=replace(SMALL, text=path, replay_share=0.3, column="story"))
    told = stages.perform(Workspace.create(tmp_path), new, PRETRAIN, plan=True)["not_used"]
    named = ["column", "replay_share"], ["context", "dtype", "trainable_layers", "lora_rank", "recompute"]
    wanted = [f"{part}.{name}" for part, some in zip(("pretrain", "model"), named, strict=True) for name in some]
    assert [one.partition(":")[0] for one in told] == wanted
    went_on = replace(CHOSEN, pretrain=replace(SMALL, text=path, start=str(done[0] / "models" / "pretrain-1"), **GO_ON))
    told = stages.perform(Workspace.create(tmp_path), went_on, PRETRAIN, plan=True)["not_used"]
    assert told == ["pretrain.depth: a model that goes on keeps its layers"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in STORIES))
    tables = replace(CHOSEN, pretrain=replace(SMALL, text=str(tmp_path / "rows.jsonl")))
    told = stages.perform(Workspace.create(tmp_path), tables, PRETRAIN, plan=True)["not_used"]
    assert told == ["pretrain.separator: no file is one of plain text"]
    plain = replace(CHOSEN, pretrain=replace(PretrainSettings(), text=path))
    assert "not_used" not in stages.perform(Workspace.create(tmp_path), plain, PRETRAIN, plan=True)
    stages.perform(Workspace.create(tmp_path), went_on, PRETRAIN)
    assert "not used: pretrain.depth: a model that goes on keeps its layers" in capsys.readouterr().err


def test_a_plan_counts_the_model_that_goes_on_as_it_is(model: Path, tmp_path: Path) -> None:
    settings = replace(CHOSEN, pretrain=replace(SMALL, text=str(text(tmp_path)), start=str(model), **GO_ON))
    found = stages.perform(Workspace.create(tmp_path / "work"), settings, PRETRAIN, plan=True)
    real: Any = AutoModelForCausalLM.from_pretrained(model)
    parameters = sum(p.numel() for p in real.parameters())
    assert found["parameters"] == parameters and found["memory_bytes"]["weights"] == 4 * parameters
    config = real.config
    table = real.get_input_embeddings().weight
    multiplied = parameters - (0 if real.get_output_embeddings().weight is table else table.numel())
    a_token = 6 * multiplied + 12 * config.num_hidden_layers * config.hidden_size * 32
    assert found["flops"] == a_token * found["tokens"]


def test_replay_is_read_counted_and_watched(
    done: tuple[Path, Facts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, ours = str(done[0] / "models" / "pretrain-1"), text(tmp_path)
    other = tmp_path / "replayed.txt"
    other.write_text("\n\n".join(f"Story {n} is told again." for n in range(200)), encoding="utf-8")
    how = GO_ON | {"tokens": 8192, "rate": 10.0}
    facts = taught(tmp_path / "work", ours, start=start, replay=str(other), replay_share=0.5, **how)
    assert "replayed.txt: 200 documents in 1 files" in capsys.readouterr().err
    assert 0 < facts["replay_bits_after"] < facts["replay_bits_before"]
    other.write_text("", encoding="utf-8")
    with pytest.raises(MannersError, match=r"replayed.txt holds no text to learn from; set pretrain.replay to another"):
        taught(tmp_path / "work", ours, start=start, replay=str(other), **GO_ON)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_row_is_no_longer_than_a_model_has_positions_for(tmp_path: Path, model_type: str) -> None:
    # A table has nothing for the 65th, and what turns by the position has never seen one so far.
    base, path = save_tiny(tmp_path / "base", model_type, max_position_embeddings=64), text(tmp_path)
    how: dict[str, Any] = {"text": str(path), "start": str(base), **GO_ON}

    def asked(row: int, plan: bool) -> Facts:
        settings = replace(CHOSEN, pretrain=replace(SMALL, row=row, **how))
        return stages.perform(Workspace.create(tmp_path / "work"), settings, PRETRAIN, plan=plan)

    assert asked(64, plan=True)["row"] == 64
    for plan in (True, False):
        with pytest.raises(MannersError, match=r"pretrain\.row is 65, and .*base has 64 positions: lower pretrain"):
            asked(65, plan)
    assert not list((tmp_path / "work" / "runs").glob("text-*")), "before the text is read"


@pytest.mark.parametrize(("batch", "taken"), [(64, 256), (1000, 768), (256, 256), (1024, 1024)])
def test_a_batch_that_is_no_whole_rows_is_said(tmp_path: Path, batch: int, taken: int) -> None:
    settings = replace(CHOSEN, pretrain=replace(SMALL, text=str(text(tmp_path)), row=256, batch=batch))
    found = stages.perform(Workspace.create(tmp_path / "work"), settings, PRETRAIN, plan=True)
    assert found["batch"] == found["rows"] * 256 == taken
    said = f"pretrain.batch: a step takes {taken} tokens, which are whole rows of 256"
    assert found.get("not_used", []) == ([said] if taken != batch else [])
