"""The example `examples/from-nothing`, in a short form: every phase is made, measured and told; killed, it goes on."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from manners.errors import MannersError
from manners.feedback import crowd
from manners.feedback.crowd import TASTES, Taste
from manners.results.evaluation import EvaluationResult, PartChange
from manners.results.pretrain import PretrainResult
from manners.settings import CrowdSettings, EvaluateSettings, Settings
from manners.store import Store
from manners.types import Answer, Dialogue, FinishReason, Interval, Response, Role, Turn
from manners.workspace import Workspace
from tests.loop.tiny import steady

FOLDER = Path(__file__).parents[2] / "examples" / "from-nothing"
LENIENT = replace(TASTES["stories"], bad_below=-inf)
"""For a model that babbles: the taste that ships finds all of its answers bad, and nothing is learnt from that."""
SMALL = (
    *("checkpoint_every=0", "model.device=cpu", "model.trainable_layers=1", "model.context=320"),
    *("pretrain.depth=2", "pretrain.row=320"),
    *("pretrain.vocabulary=1000", "pretrain.tokens=20000", "pretrain.batch=2048", "pretrain.measures=2", "sft.batch=8"),
    *("sample.max_new_tokens=12", "sample.batch=32", "sample.answers=2", "sample.temperature=1.0", "reward.epochs=1"),
    *("reward.batch=8", "ppo.updates=2", "ppo.batch=8", "ppo.minibatch=8", "ppo.epochs=1", "ppo.validate_every=1"),
    *("evaluate.samples=2", "evaluate.bootstrap=200"),
)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setitem(crowd.TASTES, "stories", LENIENT)
        yield importlib.import_module("from_nothing")


@pytest.fixture(scope="module")
def after_each(example: ModuleType) -> ModuleType:
    return importlib.import_module("after_each")


def chosen(example: ModuleType, folder: Path, *more: str, **sizes: Any) -> Any:
    few = {"seed": 1, "megabytes": 0.2, "pairs": 24, "train": 12, "validate": 5, "evaluate": 10} | sizes
    return example.Chosen(folder, overrides=(*SMALL, *more), **few)


@pytest.fixture(scope="module")
def done(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all of it was done."""
    folder: Path = tmp_path_factory.mktemp("done") / "from-nothing"
    assert example.play(chosen(example, folder)) == folder / "report.html"
    return folder


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.long
def test_one_command_goes_from_nothing_to_a_judged_policy(done: Path) -> None:
    facts = told(done)
    assert list(facts["phases"]) == ["ppo", "pretrain", "sft"], "in JSON the keys are sorted"
    versions = {name: phase["version"] for name, phase in facts["phases"].items()}
    assert versions == {"pretrain": "pretrain-1", "sft": "sft-1", "ppo": "policy-1"}
    assert facts["seconds"] == pytest.approx(sum(facts["seconds_of"].values())) and facts["seconds"] > 0
    for phase in facts["phases"].values():
        assert phase["taught"].endswith(".") and 0 <= phase["carried"]["low"] <= phase["carried"]["high"] <= 1
    wrote = facts["phases"]["pretrain"]
    assert wrote["bits_per_byte"] > 0 and wrote["ngram_bits_per_byte"] > 0 and wrote["gzip_bits_per_byte"] > 0
    assert facts["phases"]["sft"]["loss_after"] < facts["phases"]["sft"]["loss_before"]
    assert facts["phases"]["ppo"]["promoted"] in (True, False) and facts["phases"]["ppo"]["episodes"] == 16


@pytest.mark.long
def test_what_is_carried_is_what_the_kept_answers_carry(done: Path) -> None:
    """Counted anew from the files, by names alone: they are words that stand in a text or do not."""
    facts = told(done)
    rows = [json.loads(line) for line in (done / "text" / "prompts_evaluate.jsonl").read_text("utf-8").splitlines()]
    for one in facts["prompts"]:
        row = next(row for row in rows if row["prompt"] == one["prompt"])
        assert one["parameters"] == row["parameters"]
        for answer in one["answers"].values():
            for name in {"hero", "friend"} & row["parameters"].keys():
                there = row["parameters"][name] in re.findall("[A-Za-z]+", answer["text"])
                assert there != (row["parameters"][name] in answer["missing"])
    for name, phase in facts["phases"].items():
        kept = json.loads((done / "answers" / f"{phase['version']}.json").read_text("utf-8"))["answers"]
        assert len(kept) == 10 and {len(some) for some in kept} == {2}
        words = [len(answer["text"].split()) for some in kept for answer in some]
        assert phase["words"] == pytest.approx(sum(words) / len(words)), name
        ended = [answer["finish_reason"] == "stop" for some in kept for answer in some]
        assert phase["finished"]["estimate"] == pytest.approx(sum(ended) / len(ended), abs=1e-9)


@pytest.mark.long
def test_the_page_opens_offline_and_shows_every_phase(done: Path) -> None:
    page = (done / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import""", page), "it refers to nothing outside itself"
    assert page.count("<svg") >= 2 and "No person took part" in page and "{{" not in page
    for phase in told(done)["phases"].values():
        assert phase["version"] in page


@pytest.mark.long
def test_the_project_is_an_ordinary_workspace(done: Path, example: ModuleType) -> None:
    from manners.loop import stages
    from manners.settings_load import load

    workspace = Workspace.open(done / "workspace")
    settings = load(workspace.toml).settings
    assert (settings.model.name, settings.crowd.taste, settings.seed) == ("sft-1", "stories", 1)
    assert stages.report(workspace, settings)["facts"] == str(done / "workspace" / "report.json")
    assert list(stages.status(workspace)["policies"]) == ["policy-1"]


class Killed(BaseException):
    """Stands for SIGKILL."""


def kill_before(example: ModuleType, patch: pytest.MonkeyPatch, name: str) -> None:
    real = example.piece

    def dying(stage: Any, *given: Any) -> Any:
        if stage.name == name:
            raise Killed
        return real(stage, *given)

    patch.setattr(example, "piece", dying)


def same(one: Path, other: Path) -> None:
    facts, others = (steady(told(folder)) for folder in (one, other))
    assert facts == others


@pytest.mark.long
def test_what_is_done_is_not_done_again(example: ModuleType, done: Path, tmp_path: Path) -> None:
    """Every piece is behind it: the report is written anew from what there is, though nothing may be trained."""
    copy = tmp_path / "from-nothing"
    shutil.copytree(done, copy)
    (copy / "report.html").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "execute", lambda *_, **__: pytest.fail("a stage ran again"))
        example.play(chosen(example, copy))
    assert (copy / "report.json").read_text("utf-8") == (done / "report.json").read_text("utf-8")
    assert (copy / "report.html").read_text("utf-8") == (done / "report.html").read_text("utf-8")


@pytest.mark.long
@pytest.mark.parametrize("name", ["pretrain", "sft", "sample", "reward", "ppo", "evaluation"])
def test_killed_before_a_piece_it_goes_on_to_the_same_report(
    example: ModuleType, done: Path, tmp_path: Path, name: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_before(example, patch, name)
        with pytest.raises(Killed):
            example.play(chosen(example, tmp_path / "work"))
    example.play(chosen(example, tmp_path / "work"))
    same(tmp_path / "work", done)


@pytest.mark.long
def test_killed_in_the_middle_of_a_piece_it_goes_on(example: ModuleType, done: Path, tmp_path: Path) -> None:
    """From pairs on, with the model of the finished run: a step dies, and the command is given again."""
    from manners.sft import train

    work = tmp_path / "work"
    for part in ("text", "workspace/models/pretrain-1"):
        shutil.copytree(done / part, work / part)
    shutil.copytree(done / "workspace" / "runs", work / "workspace" / "runs", ignore=shutil.ignore_patterns("text-*"))
    for name in ("sft", "sample", "reward", "ppo", "evaluation"):
        (work / "workspace" / "runs" / f"{name}.json").unlink()
    for name in ("workspace.json", "manners.toml"):
        if (done / "workspace" / name).exists():
            shutil.copy(done / "workspace" / name, work / "workspace")
    shutil.copy(done / "begun.json", work)
    Store.create(work / "workspace" / "store.db").close()
    real, steps = train._step, 0

    def dying(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise Killed
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_step", dying)
        with pytest.raises(Killed):
            example.play(chosen(example, work))
    assert not (work / "workspace" / "runs" / "sft.json").exists()
    kill = pytest.MonkeyPatch()
    kill_before(example, kill, "sample")
    with pytest.raises(Killed):
        example.play(chosen(example, work))
    kill.undo()
    mine, theirs = (
        steady(json.loads((folder / "workspace" / "runs" / "sft.json").read_text("utf-8"))) for folder in (work, done)
    )
    for facts in (mine, theirs):
        facts.pop("begun_with"), facts.pop("source")
    assert mine == theirs


# Measures, on answers whose measure is known.

ASKED = {
    (Turn(Role.USER, "Tell me a story about Mia, with a key in it."),): {"hero": "Mia", "thing": "key"},
    (Turn(Role.USER, "Tell me a story about Ben, with a drum in it."),): {"hero": "Ben", "thing": "drum"},
}


def answers(prompt: Dialogue, *texts: str) -> list[Answer]:
    return [Answer(prompt, Response(text, "x", FinishReason.STOP), (), ()) for text in texts]


def phase(after_each: ModuleType, *texts: tuple[str, str]) -> Any:
    return after_each.Answered("x-1", [answers(p, *t) for p, t in zip(ASKED, texts, strict=True)], 1.0)


def test_measures_of_known_answers(after_each: ModuleType) -> None:
    settings = Settings(crowd=CrowdSettings(taste="stories"), evaluate=EvaluateSettings(bootstrap=200))
    nothing = phase(after_each, ("He went.", "He slept."), ("They ran home.", "It was late."))
    half = phase(after_each, ("Mia had a key.", "He slept."), ("They ran home.", "Ben found Mia and his key."))
    first, then = after_each.measured(ASKED, [nothing, half], settings)
    assert first.carried.estimate == 0 and first.carried_change is None and first.win_rate is None
    assert then.carried.estimate == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert then.carried_change.estimate == pytest.approx(0.375)
    # The second request's answers hold what the first one names: Mia and a key, in one of two.
    assert then.carried_by_chance == pytest.approx((0.5 + 0) / 2)
    assert then.words == pytest.approx((4 + 2 + 3 + 6) / 4) and then.finished.estimate == 1
    assert then.win_rate.estimate > 0.5 and then.taste_change.estimate > 0
    again = after_each.measured(ASKED, [half, half], settings)[1]
    assert again.carried_change.estimate == 0 == again.taste_change.estimate and again.win_rate.estimate == 0.5


@pytest.mark.parametrize(
    ("bits", "gzip", "ngram", "says"),
    [(1.2, 2.5, 1.9, "taught it to write"), (2.0, 2.5, 1.9, "not shown"), (2.6, 2.5, 2.9, "not shown")],
)
def test_what_pre_training_taught_is_said_beside_what_needs_no_network(
    after_each: ModuleType, bits: float, gzip: float, ngram: float, says: str
) -> None:
    wrote = PretrainResult(bits_per_byte=bits, gzip_bits_per_byte=gzip, ngram_bits_per_byte=ngram)
    said = after_each.writing_taught(wrote)
    assert says in said and all(f"{value:.3f}" in said for value in (bits, gzip, ngram))


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0.01, 0.2, True), (-0.01, 0.2, False), (-0.3, -0.1, False), (0.0, 0.0, False)]
)
def test_nothing_is_said_to_be_taught_that_an_interval_does_not_show(
    after_each: ModuleType, low: float, high: float, shown: bool
) -> None:
    share, change = Interval(0.4, 0.3, 0.5), Interval((low + high) / 2, low, high)
    like = {"version": "x-1", "finished": share, "words": 9.0, "taste": Interval(2.0, 1.9, 2.1), "carried": share}
    before = after_each.Phase(carried_by_chance=0.1, **like)
    after = after_each.Phase(carried_by_chance=0.1, carried_change=change, taste_change=change, **like)
    parts = {"kindness": PartChange(before=0.2, after=0.6), "asked": PartChange(before=0.5, after=0.55)}
    won = EvaluationResult(taste_parts=parts)
    sentences = [after_each.answering_taught(before, after), after_each.crowd_taught(before, after, won, LENIENT)]
    assert ["not shown" not in said for said in sentences] == [shown, shown]
    assert ("above all kindness" in sentences[1]) is shown


# What cannot be is one sentence.


@pytest.mark.parametrize(
    ("more", "sizes", "said"),
    [
        ((), {"pairs": 3}, "--pairs 3 is too little to learn from: it takes 20 or more"),
        ((), {"megabytes": 0.0}, "--megabytes 0 is too little"),
        ((), {"megabytes": float("nan")}, "--megabytes nan is too little"),
        ((), {"evaluate": -1}, "--evaluate -1 is too little"),
        ((), {"seed": -1}, "seed cannot be"),
        (("ppo.updates=0",), {}, "ppo.updates cannot be"),
        (("ppo.update=3",), {}, "did you mean ppo.updates"),
        (("crowd.taste=nice",), {}, "which is not a taste; choose one of"),
        (("model.name=smollm2-135m",), {}, "model.name: this setting holds the steps together"),
        (("sft.examples = mine.jsonl",), {}, "sft.examples: this setting holds the steps together"),
        (
            ("pretrain.depth=2", "model.trainable_layers=2"),
            {},
            "pretrain.depth = 2 makes too few layers for",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    example: ModuleType, tmp_path: Path, more: tuple[str, ...], sizes: dict[str, Any], said: str
) -> None:
    with pytest.raises(MannersError, match=re.escape(said)):
        example.play(chosen(example, tmp_path / "new", *more, **sizes))
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_a_folder_is_not_begun_twice_nor_taken_from_others(example: ModuleType, done: Path, tmp_path: Path) -> None:
    with pytest.raises(MannersError, match=r"was begun with seed = 1, and now it is 2: set it as it was"):
        example.play(chosen(example, done, seed=2))
    with pytest.raises(MannersError, match=r"was begun with pairs = 24, and now it is 25"):
        example.play(chosen(example, done, pairs=25))
    with pytest.raises(MannersError, match=r"was begun with ppo.clip = 0.2, and now it is 0.3"):
        example.play(chosen(example, done, "ppo.clip=0.3"))
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(MannersError, match="already holds other things: name a new or an empty folder"):
            example.play(chosen(example, taken))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "begun.json").write_text("{", encoding="utf-8")
    with pytest.raises(MannersError, match=r"begun\.json is damaged"):
        example.play(chosen(example, tmp_path / "broken"))


def test_its_command_says_it_in_one_line(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["from_nothing.py", str(tmp_path / "new"), "--pairs", "1"])
    assert example.main() == 2
    assert capsys.readouterr().err == "from-nothing: --pairs 1 is too little to learn from: it takes 20 or more\n"
    (tmp_path / "mine").write_text("", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["from_nothing.py", str(tmp_path / "mine")])
    assert example.main() == 1 and "already holds other things" in capsys.readouterr().err


def test_the_makefile_and_the_settings_name_what_is_there(example: ModuleType) -> None:
    root = FOLDER.parents[1]
    line = "$(BIN)/python examples/from-nothing/from_nothing.py from-nothing --seed $(SEED)"
    assert line in (root / "Makefile").read_text("utf-8") and (FOLDER / "from_nothing.py").is_file()
    settings = example.load(example.SETTINGS).settings
    assert settings.model.name == "sft-1" and isinstance(TASTES[settings.crowd.taste], Taste)
