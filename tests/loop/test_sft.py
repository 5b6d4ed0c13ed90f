"""The stage: examples from files and from what people said, a version, its report, and the way on from there."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import insert
from transformers import AutoModelForCausalLM, AutoTokenizer

from manners.cli import main
from manners.errors import MannersError
from manners.loop import examples, stages
from manners.loop.learning import labelled_of, split_of
from manners.loop.round import COMMANDS, SFT, STAGES
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.models import versions
from manners.reward.verdicts import label
from manners.settings import SFTSettings
from manners.sft.examples import lay_out
from manners.store.files import parquet
from manners.store.tables import WithdrawalRow
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
)
from tests.families import FAMILIES
from tests.loop import tiny
from tests.test_families import renderer_of
from tests.worlds import save_tiny, tiny_renderer

FORM = "Yes, thank you."
GPT = {"from": "gpt", "value": FORM}
LEARN = SFTSettings(epochs=3, batch=4, set_aside=0.2, learning_rate=0.01)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def dialogues(count: int = 24) -> list[dict[str, Any]]:
    return [{"messages": talk(f"sun {n}?", FORM, "Sure?", FORM)} for n in range(count)]


def session_of(root: Path, model: Path, **changes: Any) -> Session:
    session = tiny.project(root / "project", model)
    return replace(session, settings=replace(session.settings, sft=replace(LEARN, **changes)))


@pytest.fixture
def begun(model: Path, tmp_path: Path) -> Session:
    file = write(tmp_path / "talks.jsonl", dialogues())
    return session_of(tmp_path, model, examples=str(file))


def test_a_version_comes_of_it_and_is_the_next_initial_model(begun: Session) -> None:
    facts = execute(SFT, begun).facts
    assert facts["version"] == "sft-1" and facts["loss_after"] < 0.5 * facts["loss_before"]
    assert facts["loss_change"]["high"] < 0 < facts["accuracy_change"]["low"]
    low, high = facts["loss_before_interval"]["low"], facts["loss_before_interval"]["high"]
    assert low <= facts["loss_before"] <= high and len(facts["losses"]) == 3
    assert facts["dialogues"] + facts["set_aside"] == 24 and facts["turns"] == 2 * facts["dialogues"]
    renderer = begun.pretrained.renderer
    end = len(renderer.response_ids(Response(FORM, "x", FinishReason.STOP)))
    assert facts["tokens"] == 3 * 2 * facts["dialogues"] * end, "of the assistant's turns, each with its end"
    assert facts["examples"] and {one["example"] for one in facts["examples"]} == {FORM}
    version = versions.describe(begun.workspace, "sft-1")
    assert (version.kind, version.base, version.parent) == ("sft", begun.settings.model.name, "initial")
    assert [v.name for v in begun.store.versions()] == ["sft-1"]
    found = stages.report(begun.workspace, begun.settings)
    assert tiny.read_report(begun.workspace.root)["sft"]["version"] == "sft-1"
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "From examples" in page and "The same prompts before and after" in page
    # The model that follows says what it was taught, where it was never asked.
    settings = replace(begun.settings, model=replace(begun.settings.model, name="sft-1"))
    nll = Session(begun.workspace, settings)
    file = write(begun.workspace.root / "other.jsonl", [{"messages": talk(f"moon {n}?", FORM)} for n in range(12)])
    again = replace(nll, settings=replace(settings, sft=replace(settings.sft, examples=str(file), epochs=1)))
    assert execute(SFT, again).facts["loss_before"] < 0.5 * facts["loss_before"]
    assert versions.describe(begun.workspace, "sft-2").base == "sft-1"


def test_its_command_prints_one_object_and_plans(begun: Session, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sft", "--json", "--workspace", str(begun.workspace.root)]
    sets = {"examples": begun.settings.sft.examples, "epochs": 1, "batch": 4}
    line += [part for name, value in sets.items() for part in ("--set", f"sft.{name}={value}")]
    assert main([*line, "--plan"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["stage"] == "sft" and planned["optimizer_steps"] >= 4 and planned["memory_needed_bytes"] > 0
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"version", "tokens", "loss_before", "loss_after"} <= found.keys() and found["version"] == "sft-1"
    assert planned["tokens_learned"] == found["tokens"]


def test_it_is_a_command_and_no_part_of_a_round() -> None:
    assert SFT in COMMANDS and SFT not in STAGES and set(STAGES) < set(COMMANDS)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"prompt": f"sun {n}?", "response": FORM} for n in range(6)], {}),
        ([{"question": f"sun {n}?", "answer": FORM} for n in range(6)], {}),
        ([{"instruction": f"sun {n}?", "input": "", "output": FORM} for n in range(6)], {}),
        ([{"prompt": talk(f"sun {n}?"), "completion": talk("", FORM)[1:]} for n in range(6)], {}),
        ([{"x": f"sun {n}?", "y": FORM} for n in range(6)], {"x": "prompt", "y": "response"}),
        ([{"conversations": [{"from": "human", "value": f"sun {n}?"}, GPT]} for n in range(6)], {}),
        ([{"messages": json.dumps(talk(f"sun {n}?", FORM))} for n in range(6)], {}),
    ],
)  # fmt: skip
def test_files_as_people_have_them(rows: list[Any], columns: dict[str, str], tmp_path: Path) -> None:
    found = examples.of_file(write(tmp_path / "rows.jsonl", rows), columns, skip_bad=False)
    wanted = [(Turn(Role.USER, f"sun {n}?"), Turn(Role.ASSISTANT, FORM)) for n in range(6)]
    assert [one.dialogue for one in found.examples] == wanted and not found.passed


def test_an_instruction_and_its_input_are_one_prompt_and_it_is_said(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}]
    found = examples.of_file(write(tmp_path / "rows.jsonl", rows), {}, skip_bad=False)
    assert found.examples[0].dialogue[0].text == "Add.\n\n1 2"
    assert found.note == "columns are read so: `instruction` and `input` as prompt, `output` as response"


def test_a_message_of_weight_0_is_read_and_not_learned(tmp_path: Path) -> None:
    said = talk("sun 1?", "No.", "sun 2?", FORM, "sun 3?", "No.")
    rows = [
        {"messages": [{**one, "weight": int(one["content"] == FORM)} if n % 2 else one for n, one in enumerate(said)]}
    ]
    [one] = examples.of_file(write(tmp_path / "rows.jsonl", rows), {}, skip_bad=False).examples
    assert [turn.text for turn in one.dialogue] == ["sun 1?", "No.", "sun 2?", FORM]
    renderer = tiny_renderer()
    [row] = lay_out(renderer, [one]).sequences
    assert [renderer.decode(row.ids[start:stop]) for start, stop in row.spans] == [FORM]


def test_a_system_message_that_says_nothing_is_none(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": ""}, *talk("sun?", FORM)]}]
    [one] = examples.of_file(write(tmp_path / "rows.jsonl", rows), {}, skip_bad=False).examples
    assert one.dialogue == (Turn(Role.USER, "sun?"), Turn(Role.ASSISTANT, FORM))


def test_what_is_in_a_file_and_not_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [
        {"article": "Long.", "question": "sun?", "answer": FORM},
        {"conversations": [{"from": "human", "value": "sun?"}, {**GPT, "thinking": "Hm."}], "tools": []},
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be kind.", "history": [["a", "b"]]},
    ]
    found = examples.of_file(write(tmp_path / "rows.jsonl", rows), {}, skip_bad=False)
    assert found.unused == ("article", "history", "messages.thinking", "tools")
    examples.tell(found)
    assert "not read: article, history, messages.thinking, tools" in capsys.readouterr().err
    assert not examples.of_file(write(tmp_path / "rows.jsonl", dialogues(3)), {}, skip_bad=False).unused


def test_a_system_column_comes_first_and_parquet_is_read(tmp_path: Path) -> None:
    rows = [{"system": "Be kind.", "prompt": "So?", "response": FORM}]
    parquet.write_rows(tmp_path / "rows.parquet", {"system": str, "prompt": str, "response": str}, rows)
    [one] = examples.of_file(tmp_path / "rows.parquet", {}, skip_bad=False).examples
    assert one.dialogue == (Turn(Role.SYSTEM, "Be kind."), Turn(Role.USER, "So?"), Turn(Role.ASSISTANT, FORM))
    assert not one.every, "of a pair only the response is learned"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"rows.jsonl holds no examples \(it is empty\)"),
        ([{"a": 1}], r"rows.jsonl, line 1, field prompt: is missing"),
        ([{"prompt": "So?"}], r"rows.jsonl, line 1, field response: is missing"),
        ([{"messages": "So"}], r"line 1, field messages: is neither a list of messages nor the JSON of one"),
        ([{"messages": []}], r"line 1, field messages: is an empty list"),
        ([{"messages": [{"role": "tool", "content": "x"}]}], r"line 1, field messages: has the role 'tool'"),
        (["x"], r"line 1"),
        ([{"prompt": "So?", "response": "So", "finish_reason": "length"}], r"says that the response was cut off"),
        ([{"messages": talk("So?", "So"), "finish_reason": "length"}], r"says that the response was cut off"),
        ([{"messages": [*talk("So?"), {**talk("", "So")[1], "weight": 0}]}], r"has no message to learn"),
        ([{"messages": [*talk("So?"), {**talk("", "So")[1], "weight": 0.5}]}], r"weight 0.5, which is neither 0 nor 1"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_its_line(rows: list[Any], said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(MannersError, match=said) as refused:
        examples.of_file(file, {}, skip_bad=False)
    assert "\n" not in str(refused.value) and "--map" not in str(refused.value)
    good = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "So?", "response": FORM}])
    found = examples.of_file(good, {}, skip_bad=True)
    assert len(found.examples) == 1 and found.passed.total() == len(rows)


def test_messages_may_say_otherwise_how_they_ended(tmp_path: Path) -> None:
    rows = [{"messages": talk("So?", "So"), "finish_reason": word} for word in ("eos", "end_turn", "tool_calls")]
    found = examples.of_file(write(tmp_path / "rows.jsonl", rows), {}, skip_bad=False)
    assert len(found.examples) == 3


def test_a_file_that_is_not_there_and_columns_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(MannersError, match=r"sft.examples is .*gone.jsonl, but there is no such file"):
        examples.of_file(tmp_path / "gone.jsonl", {}, skip_bad=False)
    file = write(tmp_path / "rows.jsonl", [{"a": "b"}])
    with pytest.raises(MannersError, match="has no column `q`"):
        examples.of_file(file, {"q": "prompt"}, skip_bad=False)


def test_unsuited_dialogues_are_counted_and_told(
    begun: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [talk("So?"), talk("So?", "So.") + talk("", "So.")[1:], talk("So?", "So. " * 300), talk("So?", "")]
    rows = dialogues(8) + [{"messages": one} for one in bad]
    file = write(tmp_path / "mixed.jsonl", rows)
    settings = replace(begun.settings, sft=replace(LEARN, examples=str(file), epochs=1))
    facts = execute(SFT, replace(begun, settings=settings)).facts
    assert sorted(facts["left_out"].values()) == [1, 1, 1, 1]
    assert "no assistant turn" in facts["left_out"]
    assert facts["first_left_out"].startswith("dialogue 9 has no assistant turn")
    assert "1 left out: no assistant turn" in capsys.readouterr().err
    only = replace(settings, sft=replace(settings.sft, examples=str(write(tmp_path / "bad.jsonl", rows[8:]))))
    with pytest.raises(MannersError, match=r"there are no dialogues to learn from \(1 with no assistant turn;"):
        execute(SFT, replace(begun, settings=only))


def compared(
    prompt: str, left: str, right: str, *choices: Choice, how: AskedHow = AskedHow.RANDOM, cut: bool = False
) -> Comparison:
    verdicts = tuple(
        Verdict(choice, Annotator(f"anna {number}", AnnotatorKind.HUMAN)) for number, choice in enumerate(choices)
    )
    finish = FinishReason.LENGTH if cut else FinishReason.STOP
    first, second = (Response(text, "initial", finish) for text in (left, right))
    return Comparison((Turn(Role.USER, prompt),), first, second, how, verdicts=verdicts)


def test_the_store_gives_what_annotators_preferred(model: Path, tmp_path: Path) -> None:
    """By hand: wins less losses of each answer, `both_bad` against both, the best one of a prompt if above 0."""
    left, right, tie, bad = Choice.LEFT, Choice.RIGHT, Choice.TIE, Choice.BOTH_BAD
    session = session_of(tmp_path, model)
    session.store.add_comparisons(
        [
            compared("clear?", "good", "worse", left, left),
            compared("one against two?", "a", "b", left, right, right),
            compared("level?", "a", "b", left, right),
            compared("tied?", "a", "b", tie),
            compared("both bad?", "a", "b", bad, bad, left),
            compared("three?", "a", "b", left),
            compared("three?", "b", "c", right, right),
            compared("three?", "c", "a", right),
            compared("cut off?", "a", "b", left, cut=True),
            compared("cut off?", "c", "b", left, cut=True),
            compared("evaluated?", "a", "b", left, how=AskedHow.EVALUATION),
            compared("nobody?", "a", "b"),
        ]
    )
    found, passed = examples.preferred(label(session.store.comparisons()).pairs)
    assert {one.dialogue[0].text: one.dialogue[1].text for one in found} == {
        "clear?": "good",
        "one against two?": "b",
        "three?": "a",  # a: 1 + 1, c: 2 - 1, b: -1 - 2
    }
    assert all(not one.every for one in found)
    assert passed["a prompt of whose answers none is preferred"] == 3
    assert passed["an answer that the length limit cut off"] == 3, "a, b and c, however often compared"


def test_verdicts_weigh_what_they_weigh_in_reward_training() -> None:
    """By hand: 1.5 of a strong one against 0.5 of a slight one; one of a labeller against less of a busy user."""
    strong = compared("stronger?", "a", "b", Choice.LEFT, Choice.RIGHT)
    slight, clear = (replace(v, strength=n) for v, n in zip(strong.verdicts, (1, 3), strict=True))
    busy = [compared(f"chat {n}?", "a", "b", (Choice.LEFT, Choice.RIGHT)[n % 2], how=AskedHow.CHAT) for n in range(40)]
    said = [
        replace(strong, verdicts=(slight, clear)),
        compared("both?", "a", "b", Choice.LEFT),
        compared("both?", "a", "b", Choice.RIGHT, how=AskedHow.CHAT),
        *busy,
    ]
    found, passed = examples.preferred(label(said, user_share=0.05).pairs)
    known = {one.dialogue[0].text: one.dialogue[1].text for one in found}
    assert (known["stronger?"], known["both?"]) == ("b", "a") and len(known) == 42 and not passed


def test_an_answer_that_the_model_drew_is_learned_in_the_tokens_that_it_drew() -> None:
    """As reward training and DPO read it: a thought that is a token of its own is taught as that token."""
    renderer = renderer_of(FAMILIES["qwen-3"])
    encode = renderer.tokenizer.encode
    drawn = (*encode("<think>\nwell\n</think>\n\nAn hour.", add_special_tokens=False), renderer.end_id)
    comparison = compared("how long?", renderer.decode(drawn), "No.", Choice.LEFT)
    said = replace(comparison.left, sampling=Sampling(1.0, 64, 0))
    found, _ = examples.preferred(label([replace(comparison, left=said)]).pairs)
    [row] = lay_out(renderer, found).sequences
    [(start, stop)] = row.spans
    assert row.ids[start:stop] == drawn
    [brought] = lay_out(renderer, examples.preferred(label([comparison]).pairs)[0]).sequences
    assert drawn[0] not in brought.ids[brought.spans[0][0] :], "what a file says is letters"


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_what_reward_training_sets_aside_is_not_learned_from(model: Path, tmp_path: Path, share: float) -> None:
    session = session_of(tmp_path, model, epochs=1)
    reward = replace(session.settings.reward, set_aside=share)
    session = replace(session, settings=replace(session.settings, reward=reward))
    sides = (Choice.LEFT, Choice.RIGHT)
    session.store.add_comparisons([compared(f"sun {n}?", FORM, "No.", sides[n % 2]) for n in range(30)])
    inputs = SFT.work.inputs(session, SFT.options(), {})
    split = split_of(
        session, labelled_of(session, session.store.comparisons())
    )  # what the reward model and DPO are measured on
    learned = {one.dialogue[:-1] for one in inputs.found.examples}
    assert learned == {pair.prompt for pair in split.train} and len(split.held_out) >= 2
    assert inputs.found.passed["a prompt that reward training sets aside"] == len(split.held_out)
    facts = execute(SFT, session).facts
    assert facts["dialogues"] + facts["set_aside"] == len(split.train)
    assert facts["left_out"]["a prompt that reward training sets aside"] == len(split.held_out)


def test_a_store_whose_answers_were_all_cut_off_says_so(model: Path, tmp_path: Path) -> None:
    session = session_of(tmp_path, model)
    session.store.add_comparisons([compared(f"sun {n}?", "a", "b", Choice.LEFT, cut=True) for n in range(5)])
    with pytest.raises(MannersError, match=r"no answer to learn from \(an answer that the length limit cut off: 10\)"):
        execute(SFT, session)


@pytest.mark.parametrize("late", ["a verdict", "a comparison", "a candidate"])
def test_what_people_say_while_a_run_is_unfinished_is_for_the_next(model: Path, tmp_path: Path, late: str) -> None:
    def begun(root: Path) -> Session:
        session = session_of(root, model, epochs=1)
        told = replace(session, settings=replace(session.settings, checkpoint_every=0.0))
        told.store.add_comparisons([compared(f"sun {n}?", FORM, "No.", Choice.LEFT) for n in range(12)])
        return told

    whole, part = begun(tmp_path / "whole"), begun(tmp_path / "part")
    execute(SFT, whole)
    inputs = SFT.work.inputs(part, SFT.options(), {})
    part.run_of(SFT.name, SFT.command, SFT.reads, inputs.decides).save()
    if late == "a verdict":
        part.store.add_verdicts([(1, Verdict(Choice.RIGHT, Annotator("otto", AnnotatorKind.HUMAN)))] * 1)
    elif late == "a candidate":
        part.store.add_comparisons([compared("sun 3?", FORM, "No.", how=AskedHow.CANDIDATE)])
    else:
        part.store.add_comparisons([compared("moon?", "Never.", "No.", Choice.LEFT)])
    execute(SFT, Session(part.workspace, part.settings), resume=True)
    first, second = ((one.workspace.models / "sft-1" / "branch-0.safetensors").read_bytes() for one in (whole, part))
    assert first == second


def test_a_verdict_taken_back_or_another_choice_of_them_is_another_run(model: Path, tmp_path: Path) -> None:
    session = session_of(tmp_path, model)
    session.store.add_comparisons([compared(f"sun {n}?", FORM, "No.", Choice.LEFT) for n in range(12)])
    inputs = SFT.work.inputs(session, SFT.options(), {})
    session.run_of(SFT.name, SFT.command, SFT.reads, inputs.decides).save()
    chosen = replace(session.settings, reward=replace(session.settings.reward, annotators="human"))
    with pytest.raises(MannersError, match=r"was begun with reward.annotators = None, and now it is human"):
        execute(SFT, Session(session.workspace, chosen), resume=True)
    with session.store.write() as connection:
        connection.execute(insert(WithdrawalRow), {"verdict_id": 7, "created_at": datetime.now(UTC)})
    with pytest.raises(MannersError, match=r"was begun with 12 verdicts on 12 .*what was there then 11 verdicts"):
        execute(SFT, Session(session.workspace, session.settings), resume=True)


def test_an_empty_store_says_what_else_there_is(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MannersError, match=r"no comparisons to learn from; .*name a file of dialogues with sft.examples"
    ):
        execute(SFT, session_of(tmp_path, model))
    with pytest.raises(MannersError, match=r"sft.columns and sft.skip_bad say how to read the file of sft.examples"):
        execute(SFT, session_of(tmp_path, model, skip_bad=True))


def test_prompts_kept_for_evaluation_are_never_learned_from(begun: Session) -> None:
    begun.store.add_prompts([(Turn(Role.USER, "sun 3?"),)], PromptUse.EVALUATE, "test")
    facts = execute(SFT, begun).facts
    assert facts["left_out"]["a prompt kept for evaluation or validation"] == 1
    assert facts["dialogues"] + facts["set_aside"] == 23


def test_a_model_without_a_template_is_given_one_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "plain", chat_template=None)
    file = write(tmp_path / "talks.jsonl", [{"messages": talk(f"sun {n}?", FORM)} for n in range(24)])
    session = session_of(tmp_path, model, examples=str(file), epochs=12, learning_rate=0.02)
    facts = execute(SFT, session).facts
    assert facts["template"] == "chatml" and facts["loss_after"] < 0.5 * facts["loss_before"]
    assert capsys.readouterr().err.count("million parameters on") == 1, "it is read once"
    # The rows of the markers are frozen below the cut, and so is the tied head: the end is learned all the same.
    settings = replace(session.settings, model=replace(session.settings.model, name="sft-1"))
    after = Session(session.workspace, settings).pretrained
    assert not after.renderer.plain and after.renderer.end_id == after.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids, _ = after.renderer.prompt_ids((Turn(Role.USER, "sun 30?"),))
    answer = after.renderer.response_ids(Response(FORM, "x", FinishReason.STOP))
    with torch.no_grad():
        logprobs = after.trunk.whole(torch.tensor([ids + answer])).logits[0].log_softmax(dim=1)
    assert float(logprobs[-2, answer[-1]].exp()) > 0.5
    stages.models_export(session.workspace, "sft-1", tmp_path / "out")
    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "sun 30?"}]
    assert tuple(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)) == ids
    row = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(exported(row).logits, after.trunk.whole(row).logits, atol=1e-5, rtol=1e-5)


def test_a_run_goes_on_only_with_the_same_examples(begun: Session, tmp_path: Path) -> None:
    inputs = SFT.work.inputs(begun, SFT.options(), {})
    begun.run_of(SFT.name, SFT.command, SFT.reads, inputs.decides).save()
    assert stages.status(begun.workspace)["next"] == "manners sft --resume"
    write(tmp_path / "talks.jsonl", dialogues(23))
    with pytest.raises(MannersError, match=r"was begun with the examples = 24 dialogues, .*and now it is 23 dialogues"):
        execute(SFT, Session(begun.workspace, begun.settings), resume=True)
