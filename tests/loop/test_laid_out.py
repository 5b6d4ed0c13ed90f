"""What a model's chat template refuses is found, counted and named before anything is trained; its date stays."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from manners.cli import main
from manners.errors import MannersError
from manners.loop import stages
from manners.loop.session import Session
from manners.models import versions
from manners.settings import Settings
from manners.types import Dialogue, PromptUse, Role, Turn
from manners.workspace import Workspace
from tests.loop import tiny
from tests.worlds import TEMPLATE, save_tiny

ALTERNATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
TWO = "two user turns in a row, which the chat template refuses (Conversation roles must alternate)"
FIRST = "an assistant turn first, which the chat template refuses (Conversation roles must alternate)"
MIDDLE = "a system turn in the middle, which the chat template refuses (Conversation roles must alternate)"
CLOCK = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


def rows() -> list[dict[str, Any]]:
    """Twenty comparisons about single turns, and five of which the template takes none."""
    plain = [turns(("user", f"bread {number}?")) for number in range(20)]
    odd = [
        turns(("user", "bread?"), ("user", "or cake?")),
        turns(("assistant", "Hello!"), ("user", "bread?")),
        turns(("user", "bread?"), ("assistant", "Yes."), ("system", "Be kind."), ("user", "how?")),
        turns(("user", "sea?"), ("user", "or hills?")),
        turns(("user", "noon?"), ("user", "or night?")),
    ]
    return [
        {"prompt": prompt, "chosen": f"bake {number} at noon", "rejected": f"the sea {number} is fine"}
        for number, prompt in enumerate([*plain[:7], odd[0], *plain[7:15], *odd[1:4], *plain[15:], odd[4]])
    ]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template takes turns in turn only."""
    return save_tiny(tmp_path_factory.mktemp("strict") / "llama", chat_template=ALTERNATE + TEMPLATE)


def imported(root: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Session, dict[str, Any], str]:
    """A workspace with these comparisons, as the command imports them; what it printed."""
    session = tiny.project(root, model)
    file = root.parent / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    capsys.readouterr()
    assert main(["comparisons", "import", str(file), "--workspace", str(root), "--json"]) == 0
    printed = capsys.readouterr()
    return session, json.loads(printed.out), printed.err


def test_what_the_template_refuses_is_told_when_it_comes_in_and_by_the_plan_and_is_left_out(
    tmp_path: Path, strict: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, result, told = imported(tmp_path / "work", strict, capsys)
    counted = {TWO: 3, FIRST: 1, MIDDLE: 1}
    assert result["comparisons"] == 25 and result["refused_by_template"] == counted

    def sentences(where: str) -> list[str]:
        return [
            f"3 comparisons cannot be used with this model: {TWO} ({where} 8, 19, 25)",
            f"1 comparisons cannot be used with this model: {FIRST} ({where} 17)",
            f"1 comparisons cannot be used with this model: {MIDDLE} ({where} 18)",
        ]

    def refusals(text: str) -> list[str]:
        return [line for line in text.splitlines() if "cannot be used" in line]

    file = tmp_path / "pairs.jsonl"
    assert refusals(told) == sentences(f"{file}, line")
    command = ["comparisons", "import", str(file), "--workspace", str(tmp_path / "work"), "--json"]
    before = session.store.counts()
    assert main([*command, "--dry-run"]) == 0
    looked = capsys.readouterr()
    assert json.loads(looked.out)["refused_by_template"] == counted
    assert refusals(looked.err) == sentences(f"{file}, line") and session.store.counts() == before
    plan = stages.train_reward(session.workspace, session.settings, plan=True)
    assert plan["comparisons"] == 20 and plan["refused"] == counted
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in sentences("number"))
    done = stages.train_reward(session.workspace, session.settings, plan=False)
    assert done["trained_on"] + done["set_aside"] == 20
    assert done["left_out"]["a prompt that the chat template refuses"] == 5


def test_prompts_that_the_template_refuses_are_told_and_left_out_of_every_stage(
    tmp_path: Path, strict: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = tiny.project(tmp_path / "work", strict)
    odd = [(Turn(Role.USER, f"bread {n}?"), Turn(Role.USER, "or cake?")) for n in range(3)]
    capsys.readouterr()
    file = tmp_path / "prompts.jsonl"
    asked = [json.dumps({"prompt": turns(*((t.role.value, t.text) for t in talk))}) + "\n" for talk in odd]
    file.write_text("".join(asked), encoding="utf-8")
    assert main(["prompts", "import", str(file), "--workspace", str(session.workspace.root), "--json"]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert (said["new"], said["uses"], said["refused_by_template"]) == (3, {"train": 3}, {TWO: 3})
    assert f"3 prompts cannot be used with this model: {TWO} ({file}, line 1, 2, 3)" in printed.err
    plan = stages.sample(session.workspace, session.settings, crowd=True, plan=True)
    assert plan["prompts"]["train"] == {"fit": 24, "shortened": 0, "do_not_fit": 0, "refused": {TWO: 3}}
    assert f"3 prompts for `train` cannot be used with this model: {TWO} (number 45, 46, 47)" in capsys.readouterr().err
    done = stages.sample(session.workspace, session.settings, crowd=True, plan=False)
    assert done["prompts"] <= 24
    assert all(len(c.prompt) == 1 for c in session.store.comparisons())


def test_where_the_template_refuses_everything_that_is_the_sentence(tmp_path: Path, strict: Path) -> None:
    odd: list[Dialogue] = [(Turn(Role.USER, f"bread {n}?"), Turn(Role.USER, "or cake?")) for n in range(3)]
    session = tiny.project(tmp_path / "work", strict, {PromptUse.TRAIN: odd})
    for plan in (True, False):
        with pytest.raises(
            MannersError, match=r"refuses all 3 prompts for `train` \(two user turns in a row, which"
        ) as e:
            stages.sample(session.workspace, session.settings, crowd=True, plan=plan)
        assert "\n" not in str(e.value)


@pytest.mark.long
def test_a_date_that_the_template_tells_is_frozen_with_the_first_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "llama", chat_template=CLOCK)

    def on(day: date) -> None:
        class Today(date):
            @classmethod
            def today(cls) -> Any:
                return day

        monkeypatch.setattr(versions, "date", Today)

    on(date(2026, 3, 5))
    session, _, _ = imported(tmp_path / "work", model, capsys)
    workspace, settings = session.workspace, session.settings
    stages.train_reward(workspace, settings, plan=False)
    kept = versions.describe(workspace, "reward-1").template
    assert kept == session.pretrained.renderer.template.text and "05 Mar 2026" not in CLOCK
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"prompt": "bread?", "response": "bake it"}) + "\n", encoding="utf-8")
    scores = []
    for number, day in enumerate((date(2026, 3, 5), date(2027, 1, 1))):
        on(day)
        stages.score(workspace, settings, "reward-1", answers, tmp_path / f"{number}.jsonl")
        scores.append((tmp_path / f"{number}.jsonl").read_bytes())
        stages.models_export(workspace, "reward-1", tmp_path / f"out-{number}")
    assert scores[0] == scores[1]
    exported: Any = AutoTokenizer.from_pretrained(tmp_path / "out-1")
    text = exported.apply_chat_template(turns(("user", "hi")), tokenize=False, add_generation_prompt=True)
    assert text.startswith("05 Mar 2026<s>")

    (workspace.models / "day").write_text("2026-03-06\n", encoding="utf-8")
    with pytest.raises(
        MannersError, match="reward-1 was trained with a chat template that tells another date than 2026-"
    ):
        stages.score(workspace, settings, "reward-1", answers, tmp_path / "more.jsonl")
    (workspace.models / "day").write_text("today\n", encoding="utf-8")
    with pytest.raises(MannersError, match="day is damaged"):
        _ = Session(workspace, settings).pretrained


def test_a_line_to_be_scored_that_the_template_refuses_is_named(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    odd = turns(("user", "a"), ("user", "b"))
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt": odd, "response": "x"}) + "\n", encoding="utf-8")
    described = copy.models / "reward-1" / "version.json"
    facts = json.loads(described.read_text(encoding="utf-8"))
    template = tmp_path / "strict.jinja"
    template.write_text(ALTERNATE + TEMPLATE, encoding="utf-8")
    chosen = replace(settings, model=replace(settings.model, chat_template=str(template)))
    with pytest.raises(MannersError, match="reward-1 was trained with chat template"):
        stages.score(copy, chosen, "reward-1", file, tmp_path / "out.jsonl")
    del facts["template"]  # as versions were before they said so
    facts["template_hash"] = Session(copy, chosen).pretrained.renderer.template_hash
    described.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(MannersError, match=r"answers.jsonl, line 1, field `prompt`: two user turns in a row, which"):
        stages.score(copy, chosen, "reward-1", file, tmp_path / "out.jsonl")
