"""The adversarial round: what it asks about, in a planted world; nothing twice; killed and gone on with; refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.feedback import crowd
from manners.loop import adversarial, reporting, rounds, sample, stages
from manners.loop.options import SampleOptions
from manners.loop.round import EVERY
from manners.loop.session import Session
from manners.loop.standing import status
from manners.models import versions
from manners.reward.ensemble import score_rendered
from manners.reward.groups import divided
from manners.reward.verdicts import label
from manners.settings import Settings
from manners.store import Store
from manners.store.views import Given
from manners.types import (
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Turn,
    opening,
)
from manners.web import findings
from manners.web.desk import Desk
from manners.workspace import Workspace
from tests.loop import tiny

COUNT = 4


def adversarial_ones(session: Session) -> list[Comparison]:
    return session.store.comparisons(AskedHow.ADVERSARIAL)


def ask(
    workspace: Workspace, settings: Settings, count: int = COUNT, crowd: bool = False, **more: Any
) -> dict[str, Any]:
    return stages.sample(workspace, settings, crowd=crowd, plan=False, adversarial=count, **more)


@pytest.fixture
def fooled(monkeypatch: pytest.MonkeyPatch) -> str:
    """A letter for which the first of the members gives eight units; one that one answer in ten or so has."""
    letter, real = "q", score_rendered

    def score(reward: Any, pretrained: Any, rendered: Sequence[Any]) -> Tensor:
        scores = real(reward, pretrained, rendered).clone()
        has = [letter in pretrained.renderer.decode(one.response_ids) for one in rendered]
        scores[0] += 8.0 * torch.tensor(has)
        return scores

    monkeypatch.setattr(adversarial, "score_rendered", score)
    return letter


def test_a_member_that_is_fooled_by_a_letter_is_found_out(copy: Workspace, settings: Settings, fooled: str) -> None:
    """Of answers by chance few have it; of those that are asked about nearly all, on the side that nobody can tell."""
    session = Session(copy, settings)
    by_chance = [side.text for c in session.store.comparisons(AskedHow.RANDOM) for side in (c.left, c.right)]
    usual = sum(fooled in text for text in by_chance) / len(by_chance)
    facts = ask(copy, settings)
    asked = adversarial_ones(session)
    having = [fooled in c.left.text or fooled in c.right.text for c in asked]
    assert len(asked) == COUNT and usual < 0.25 and sum(having) / COUNT >= 0.75
    assert facts["comparisons"] == COUNT and facts["members_differ"] == sum(having)
    assert facts["suspicion"][0] >= facts["suspicion"][1] and facts["suspicion"][0] > 3
    assert len({c.prompt for c in asked}) == COUNT and all(not c.verdicts for c in asked)
    assert {(c.asked_by, c.ask_probability) for c in asked} == {("reward-1", None)}
    assert {c.left.author for c in asked} | {c.right.author for c in asked} == {facts["policy"]}
    assert facts["reward"] == "reward-1" and facts["prompts"] <= COUNT * adversarial.AMONG


def test_which_side_is_liked_is_drawn_by_a_coin_of_its_own_prompt() -> None:
    """One coin for all, and a prompt that was deleted while a run was stopped turned those after it: opened twice."""

    def said(number: int, text: str) -> Answer:
        return Answer((Turn(Role.USER, f"question {number}"),), Response(text, "initial"), (), ())

    found = [adversarial._Found(said(n, "liked"), said(n, "ordinary"), 0.0, frozenset()) for n in range(400)]
    opened = [adversarial._comparison(one, "reward-1", 7) for one in found]
    assert abs(sum(one.left.text == "liked" for one in opened) - 200) < 4 * 10
    assert opened[100:] == [adversarial._comparison(one, "reward-1", 7) for one in found[100:]]
    assert opened != [adversarial._comparison(one, "reward-1", 8) for one in found]


def test_signs_count_where_the_ordinary_answer_shows_none(copy: Workspace, settings: Settings) -> None:
    """Planted: the members like every answer alike but one, which says the prompt again; the others are cut off."""

    def planted(session: Session, run: Any, prompts: Sequence[Any], author: str, *_: Any) -> tuple[list[Any], int]:
        def said(prompt: Any, text: str) -> Answer:
            return Answer(prompt, Response(text, author, FinishReason.LENGTH), (), ())

        made = [[said(one, f"number {n} of them") for n in range(3)] for one in prompts]
        for given in made[::4]:
            given.append(said(given[0].prompt, f"{given[0].prompt[-1].text} Yes."))
        return made, 0

    def score(reward: Any, pretrained: Any, rendered: Sequence[Any]) -> Tensor:
        echo = ["?" in pretrained.renderer.decode(one.response_ids) for one in rendered]
        return torch.tensor(echo).double().repeat(2, 1) + torch.arange(len(rendered)) * 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "answers_to", planted)
        patch.setattr(adversarial, "score_rendered", score)
        facts = ask(copy, settings, 4)
    assert facts["signs"] == {"says the prompt again": 4} and facts["members_differ"] == 0
    assert list(facts["suspicion"]) == pytest.approx([1.0, 1.0]) and facts["responses"] == 3 * facts["prompts"] + 4


def test_only_prompts_whose_verdicts_teach_are_asked_about_and_none_twice_before_they_have(
    copy: Workspace, settings: Settings
) -> None:
    session = Session(copy, settings)
    pairs = label(session.store.comparisons()).pairs
    held_out = {opening(pair.prompt) for pair in divided(pairs, settings.reward, settings.seed).held_out}
    there = 24 - len(held_out)
    first = ask(copy, settings, 5)
    assert first["left_out"]["set aside to measure with"] == len(held_out) > 0
    ask(copy, settings, there - 5)
    asked = adversarial_ones(session)
    assert len({c.prompt for c in asked}) == len(asked) == there
    assert not {opening(c.prompt) for c in asked} & held_out
    with pytest.raises(
        MannersError, match=r"1 prompts were asked for, and 0 of 24 training prompts can be asked about"
    ):
        ask(copy, settings, 1)
    session.store.merge_comparisons(sample.judged_by_crowd(session, asked))
    facts = stages.train_reward(copy, settings, plan=False)
    assert facts["adversarial"] == there and facts["trained_on"] == 2 * there
    again = ask(copy, settings, 2)
    assert again["reward"] == "reward-2" and len(adversarial_ones(session)) == there + 2


def test_the_crowd_judges_at_once_and_nothing_is_measured_on_it(copy: Workspace, settings: Settings) -> None:
    session = Session(copy, settings)
    before, was = reporting.what_was_said(session), findings.findings(session.store, settings)
    facts = ask(copy, settings, COUNT, crowd=True)
    asked = adversarial_ones(session)
    assert all({v.annotator.kind for v in c.verdicts} == {AnnotatorKind.SIMULATED} for c in asked)
    assert sum(len(c.verdicts) for c in asked) == 2 * COUNT and facts["comparisons"] == COUNT
    after, became = reporting.what_was_said(session), findings.findings(session.store, settings)
    assert before is not None and after is not None
    assert before.asked == {"random": 24} and after.asked == {"adversarial": COUNT, "random": 24}
    assert (after.agreement, after.left_rate) == (before.agreement, before.left_rate)
    assert became["agreement"] == was["agreement"]
    assert became["sources"] == {"simulated": {"random": 48, "adversarial": 2 * COUNT}}
    learned = stages.train_reward(copy, settings, plan=False)
    assert learned["adversarial"] == COUNT
    old = json.loads((copy.root / "report.json").read_text(encoding="utf-8"))["reward"]
    assert [learned[name] for name in ("set_aside", "verdicts")] == [old["set_aside"], old["verdicts"]]


def test_the_desk_shows_them_first_and_records_why_and_with_which_chance(copy: Workspace, settings: Settings) -> None:
    session = Session(copy, settings)
    session.store.add_prompts(tiny.prompts(30, "noon"), PromptUse.TRAIN, "test")
    stages.sample(copy, settings, crowd=False, plan=False)
    ask(copy, settings)
    serve = replace(settings.serve, gold_share=0.0, repeat_share=0.0, random_share=0.3, shortest_view=0)
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    desk = Desk(copy, session.store, serve, seed=1)
    for _ in range(12):
        shown = desk.next(anna)
        assert shown is not None
        desk.judge(anna, Given(shown.view, Choice.LEFT))
    judged = [(c, v) for c in session.store.comparisons() for v in c.verdicts if v.annotator.name == "anna" and v.drawn]
    drawn = sorted(judged, key=lambda one: one[1].arrived or 0)
    ways = Counter(v.drawn for _, v in drawn)
    assert ways[DrawnHow.ADVERSARIAL] == COUNT and ways[DrawnHow.RANDOM] == 12 - COUNT
    chosen = [(c, v) for c, v in drawn if v.drawn is DrawnHow.ADVERSARIAL]
    assert [c.id for c, _ in chosen] == sorted(c.id or 0 for c in adversarial_ones(session))
    assert [(v.draw_probability, v.draw_pool) for _, v in chosen] == [(0.7, n) for n in range(COUNT, 0, -1)]
    assert {c.asked_how for c, v in drawn if v.drawn is DrawnHow.RANDOM} == {AskedHow.RANDOM}


def test_a_prompt_that_a_model_chose_is_still_asked_about_by_chance(copy: Workspace, settings: Settings) -> None:
    """Else those where it is most suspicious would be missing among what it is measured on."""
    session = Session(copy, settings)
    session.store.add_prompts(tiny.prompts(30, "noon"), PromptUse.TRAIN, "test")
    ask(copy, settings, 8)
    known = {c.prompt for c in session.store.comparisons(AskedHow.RANDOM)}
    chosen = {c.prompt for c in adversarial_ones(session)} - known
    left = rounds.plan(session, rounds.Asked(rounds=1))["fresh_prompts"]
    sampled = stages.sample(copy, settings, crowd=False, plan=False)
    asked = {c.prompt for c in session.store.comparisons(AskedHow.RANDOM)} - known
    assert chosen and chosen <= asked and sampled["prompts"] == len(asked) == left


def test_none_is_asked_about_that_is_set_aside_once_chance_has_asked_about_it(
    copy: Workspace, settings: Settings
) -> None:
    """Of prompts without a verdict the hash says it beforehand; what was asked about them would be on neither side."""
    session = Session(copy, settings)
    session.store.add_prompts(tiny.prompts(30, "noon"), PromptUse.TRAIN, "test")
    with pytest.raises(MannersError) as refused:
        ask(copy, settings, 100)
    there = int(str(refused.value).split("asked for, and ")[1].split()[0])
    ask(copy, settings, there)
    stages.sample(copy, settings, crowd=True, plan=False)
    session.store.merge_comparisons(sample.judged_by_crowd(session, adversarial_ones(session)))
    split = divided(label(session.store.comparisons()).pairs, settings.reward, settings.seed)
    assert there > 24 and not split.idle and sum(not pair.measures for pair in split.train) == there
    assert len({opening(pair.prompt) for pair in split.held_out}) + there == 54


class Killed(Exception):
    """What stands for kill -9."""


@pytest.mark.parametrize("at", ["scores", "stored"])
def test_a_round_that_was_killed_goes_on_and_ends_as_one_that_never_was(
    at: str, finished: Path, copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Workspace.open(shutil.copytree(finished, tmp_path / "other"))
    whole = ask(other, settings, crowd=True)
    often = replace(settings, checkpoint_every=0.0)

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    if at == "scores":
        monkeypatch.setattr(adversarial, "_liked_best", killed)
    else:
        monkeypatch.setattr(adversarial, "AdversarialResult", killed)
    with pytest.raises(Killed):
        ask(copy, often, crowd=True)
    monkeypatch.undo()
    monkeypatch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)  # `undo` took that away too
    assert status(copy)["next"].startswith(f"manners sample --adversarial {COUNT} --resume")
    with pytest.raises(MannersError, match="holds an unfinished run"):
        ask(copy, often, crowd=True)
    gone_on = ask(copy, often, resume=True)
    assert tiny.steady(gone_on) == tiny.steady(whole)
    ours, theirs = (adversarial_ones(Session(one, settings)) for one in (copy, other))

    def said(some: list[Comparison]) -> list[Any]:
        return [(c.prompt, c.left, c.right, [(v.annotator, v.choice) for v in c.verdicts]) for c in some]

    assert said(ours) == said(theirs) and len(ours) == COUNT


def test_what_cannot_be_asked_is_refused_in_a_sentence(
    copy: Workspace, settings: Settings, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, said in (
        ({"adversarial": 0}, "takes a number from 1 on"),
        ({"adversarial": 3, "limit": 2}, "leave out --again and --limit"),
        ({"adversarial": 3, "again": True}, "leave out --again and --limit"),
    ):
        with pytest.raises(UsageError, match=said):
            SampleOptions(**wrong).check(plan=False, resume=False)  # type: ignore[arg-type]
    with pytest.raises(MannersError, match="prompts were asked for, and"):
        ask(copy, settings, 50)
    fresh = tiny.project(tmp_path / "fresh", model)
    with pytest.raises(MannersError, match="manners reward"):
        ask(fresh.workspace, settings)
    elsewhere = replace(settings, model=replace(settings.model, trainable_layers=1))
    with pytest.raises(MannersError, match="reward-1 was trained above another trunk"):
        ask(copy, elsewhere)
    assert not adversarial_ones(Session(copy, settings))
    copy.toml.write_text(tiny.toml(settings), encoding="utf-8")
    command = ["sample", "--adversarial", "2", "--workspace", str(copy.root), "--json"]
    assert main([*command, "--plan"]) == 0 and "reward_members" in capsys.readouterr().out
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["comparisons"] == 2 and facts["left_out"]["less suspicious than those asked about"] == 6


def test_the_policy_that_was_trained_against_the_model_answers_whether_it_was_promoted_or_not(
    moved_on: Path, settings: Settings, tmp_path: Path
) -> None:
    workspace = Workspace.open(shutil.copytree(moved_on, tmp_path / "copy"))
    session = Session(workspace, settings)
    assert versions.describe(workspace, "policy-1").reward == "reward-1"
    assert adversarial.who_exploits(session, "reward-1") == "policy-1"
    assert adversarial.who_exploits(session, "reward-9") == workspace.current_policy()


def test_the_report_has_a_part_for_it(copy: Workspace, settings: Settings) -> None:
    ask(copy, settings, COUNT, crowd=True)
    facts = stages.report(copy, settings)
    kept = json.loads((copy.root / "report.json").read_text(encoding="utf-8"))
    assert kept["adversarial"]["comparisons"] == COUNT and facts
    page = (copy.root / "report.html").read_text(encoding="utf-8")
    assert "What the reward model likes too much" in page and "likes one of their answers suspiciously well" in page
    assert "adversarial" in {stage.name for stage in EVERY}


def test_exports_and_imports_keep_it(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    ask(copy, settings, COUNT, crowd=True)
    session, file = Session(copy, settings), tmp_path / "out.jsonl"
    assert main(["comparisons", "export", str(file), "--workspace", str(copy.root)]) == 0
    there = Workspace.create(tmp_path / "there")
    Store.create(there.database).close()
    assert main(["comparisons", "import", str(file), "--workspace", str(there.root)]) == 0
    came = adversarial_ones(Session(there, settings))
    ours = adversarial_ones(session)

    def told(some: list[Comparison]) -> set[Any]:
        verdicts = [tuple((v.annotator, v.choice, v.strength) for v in c.verdicts) for c in some]
        return {(c.prompt, c.left, c.right, c.asked_by, said) for c, said in zip(some, verdicts, strict=True)}

    assert told(came) == told(ours) and len(came) == COUNT
