"""Any two phases are compared, each by its own template and tokenizer, and nothing is decided."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manners.checkpoint import Run
from manners.cli import main
from manners.data import plain_text
from manners.errors import MannersError, UsageError
from manners.loop import phases, prompts, stages
from manners.loop.keep import keep
from manners.loop.options import EvaluateOptions
from manners.loop.session import Session
from manners.models.branches import Branch
from manners.models.saving import save_whole
from manners.results.phases import SFTResult
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, PromptUse, Verdict, VersionKind
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.test_chain import described_as, named, taught
from tests.worlds import save_tiny


@pytest.fixture
def begun(model: Path, tmp_path: Path) -> Session:
    session = tiny.project(tmp_path / "project", model)
    taught(session)
    return session


@torch.no_grad()
def bits(session: Session) -> float:
    """By the plain model alone, a paragraph at a time."""
    pretrained, nats, count = session.pretrained, 0.0, 0
    tokenizer: Any = pretrained.tokenizer
    for text in plain_text(PromptUse.EVALUATE):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) > session.settings.model.context:
            continue
        logprobs = pretrained.trunk.whole(torch.tensor([ids])).logits[0].log_softmax(dim=1)
        nats -= float(sum(logprobs[at - 1, ids[at]] for at in range(1, len(ids))))
        count += len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    return nats / math.log(2) / count


def test_two_phases_with_one_trunk(begun: Session) -> None:
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-1", "initial")
    assert (facts["version"], facts["against"], facts["prompts"], facts["source"]) == ("sft-1", "initial", 12, "none")
    assert facts["bits_per_byte_before"] == pytest.approx(bits(begun), rel=1e-4)
    after = Session(begun.workspace, named(begun.settings, "sft-1"))
    assert facts["bits_per_byte_after"] == pytest.approx(bits(after), rel=1e-4)
    change = facts["bits_per_byte_change"]
    assert change["estimate"] == pytest.approx(facts["bits_per_byte_after"] - facts["bits_per_byte_before"])
    assert change["low"] <= change["estimate"] <= change["high"]
    assert begun.workspace.current_policy() == "initial" and not begun.store.rounds()
    # The other way round everything is the opposite.
    turned = stages.compare_phases(begun.workspace, begun.settings, "initial", "sft-1")
    assert turned["bits_per_byte_change"]["estimate"] == pytest.approx(-change["estimate"])
    assert turned["length_change"]["estimate"] == pytest.approx(-facts["length_change"]["estimate"])


@pytest.mark.long
def test_phases_of_other_templates_and_vocabularies(begun: Session, tmp_path: Path) -> None:
    other = save_tiny(begun.workspace.models / "pretrain-1", chat_template=None, seed=7)
    shutil.copy(begun.workspace.models / "sft-1" / "version.json", other)
    described_as(begun.workspace, "pretrain-1", name="pretrain-1", kind="pretrain")
    chatml = Session(begun.workspace, named(begun.settings, "pretrain-1", chat_template="chatml"))
    taught(chatml, "sft-2")
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-2", "pretrain-1")
    assert facts["prompts"] == 12 and facts["bits_per_byte_after"] != facts["bits_per_byte_before"]
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-2", "sft-1")
    assert facts["prompts"] == 12 and "Bits per byte on plain text change by" in facts["verdict"]


def test_the_crowds_taste_judges_where_it_is_known(copy: Workspace, settings: object, model: Path) -> None:
    chosen = tiny.settings(model)
    taught(Session(copy, chosen))
    facts = stages.compare_phases(copy, chosen, "sft-1", "policy-1")
    assert (
        facts["source"] == "simulated"
        and facts["outcome"]
        and 0 <= facts["win_rate"]["low"] <= facts["win_rate"]["high"] <= 1
    )
    turned = stages.compare_phases(copy, chosen, "policy-1", "sft-1")
    assert turned["win_rate"]["estimate"] == pytest.approx(1 - facts["win_rate"]["estimate"])
    assert (
        "Judged by the taste of simulated annotators without its noise on 12 unused prompts, sft-1" in facts["verdict"]
    )
    assert "est-of-n" not in facts["verdict"] and facts["matched"]["pairs"] >= 0


def test_what_is_no_phase_is_one_sentence(begun: Session, copy: Workspace, model: Path) -> None:
    with pytest.raises(MannersError, match=r"there is no version sft-9"):
        stages.compare_phases(begun.workspace, begun.settings, "sft-9", "initial")
    with pytest.raises(MannersError, match="sft-1 is both of the phases that are compared"):
        stages.compare_phases(begun.workspace, begun.settings, "sft-1", "sft-1")
    started = named(begun.settings, "sft-1")
    for pair in (("sft-1", "initial"), ("initial", "sft-1")):
        with pytest.raises(
            MannersError, match=r"sft-1 is the initial model of this workspace \(model.name\), so that both"
        ):
            stages.compare_phases(begun.workspace, started, *pair)
    with pytest.raises(MannersError, match="reward-1 is a reward model, which scores and writes nothing"):
        stages.compare_phases(copy, tiny.settings(model), "reward-1", "initial")
    options = EvaluateOptions(version="sft-1", reward="reward-1", comparisons=Path("x"))
    with pytest.raises(UsageError, match="VERSION is compared with that of --against: it does not go with --reward"):
        options.check(plan=False, resume=False)
    few = tiny.settings(model, sample=replace(begun.settings.sample, max_new_tokens=10_000))
    with pytest.raises(MannersError, match="at least 2 openings that both can answer, and there are 0 among 12"):
        stages.compare_phases(begun.workspace, few, "sft-1", "initial")


def test_its_command_plans_runs_and_reports(begun: Session, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", "sft-1", "--against", "initial", "--workspace", str(begun.workspace.root), "--json"]
    assert main([*line, "--plan"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["answers"] == 2 * 12 * 2 and planned["memory_needed_bytes"] > planned["memory_bytes"]["model"] > 0
    assert not (begun.workspace.runs / "phases.json").exists()
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == "sft-1" and found["seconds"] > 0
    assert stages.status(begun.workspace)["next"] != "manners evaluate"
    stages.report(begun.workspace, begun.settings)
    shown = tiny.read_report(begun.workspace.root)["phases"]
    assert shown["bits_per_byte_after"] == pytest.approx(found["bits_per_byte_after"])
    page = (begun.workspace.root / "report.html").read_text(encoding="utf-8")
    for said in ("Two phases side by side", "The same prompts before and after", "Forgetting and collapse"):
        assert said in page, said
    assert "All of it since initial." in page and "Perplexity on plain text: kept?" in page


@torch.no_grad()
def nats_a_token(session: Session) -> float:
    """By the plain model alone."""
    pretrained, nats, count = session.pretrained, 0.0, 0
    tokenizer: Any = pretrained.tokenizer
    for text in plain_text(PromptUse.EVALUATE):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= session.settings.model.context:
            logprobs = pretrained.trunk.whole(torch.tensor([ids])).logits[0].log_softmax(dim=1)
            nats -= float(sum(logprobs[at - 1, ids[at]] for at in range(1, len(ids))))
            count += len(ids) - 1
    return nats / count


def test_what_was_lost_on_the_way_is_looked_for(begun: Session) -> None:
    branch = Branch(begun.pretrained.trunk, trainable=True)
    branch.load_tensors({name: 4 * tensor for name, tensor in branch.own_tensors().items()})
    keep(begun, "sft-2", branch, SFTResult(version="sft-2"), parent="initial", kind=VersionKind.SFT)
    facts = stages.compare_phases(begun.workspace, begun.settings, "sft-2", "initial")
    checks = {check["check"]: check for check in facts["forgetting"]["checks"]}
    assert checks.keys() >= {"perplexity", "questions", "questions_facts", "distinct_2", "self_similarity"}
    after = Session(begun.workspace, named(begun.settings, "sft-2"))
    assert checks["perplexity"]["before"] == pytest.approx(math.exp(nats_a_token(begun)), rel=1e-4)
    assert checks["perplexity"]["after"] == pytest.approx(math.exp(nats_a_token(after)), rel=1e-4)
    assert facts["forgetting"]["questions"]["facts"]["questions"] == 36
    # What is four times as sure of what it does not know reads worse; on the way back there is nothing to lose.
    assert facts["forgetting"]["outcome"] == "forgotten" and checks["perplexity"]["verdict"] == "worse"
    back = stages.compare_phases(begun.workspace, begun.settings, "initial", "sft-2")["forgetting"]
    assert {check["check"]: check["verdict"] for check in back["checks"]}["perplexity"] == "within"


def test_one_model_under_two_names_has_lost_nothing_and_is_no_better(begun: Session, tmp_path: Path) -> None:
    """Read from a folder of its own, and not cut."""
    model = begun.pretrained
    folder = begun.workspace.models / "pretrain-1"
    save_whole(model.trunk.whole, model.tokenizer, folder)
    shutil.copy(begun.workspace.models / "sft-1" / "version.json", folder)
    described_as(begun.workspace, "pretrain-1", name="pretrain-1", kind="pretrain")
    facts = stages.compare_phases(begun.workspace, begun.settings, "pretrain-1", "initial")
    for check in facts["forgetting"]["checks"]:
        if check["check"] in ("distinct_2", "self_similarity"):
            assert check["verdict"] != "worse", "each draws answers of its own"
        else:
            assert check["change"]["estimate"] == pytest.approx(0, abs=1e-6)
    assert facts["forgetting"]["outcome"] != "forgotten"
    assert abs(facts["length_change"]["estimate"]) < 0.2 * facts["length_before"]


def test_the_answers_of_a_phase_are_those_that_a_comparison_draws(begun: Session) -> None:
    stages.compare_phases(begun.workspace, begun.settings, "sft-1", "initial")
    kept = json.loads((begun.workspace.runs / "phases-sft-1-initial.json").read_text(encoding="utf-8"))["examples"]
    asked = [one.dialogue for one in begun.store.prompts(PromptUse.EVALUATE)]
    said = phases.answers_of(begun, "sft-1", asked)
    assert [len(some) for some in said] == [2] * 12
    assert [some[0].response.text for some in said] == [one["after"] for one in kept]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.long
def test_a_comparison_that_was_killed_goes_on_and_ends_the_same(
    begun: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(begun.settings, checkpoint_every=0.0)
    monkeypatch.setattr(prompts, "PART", 4)
    whole_one = stages.compare_phases(begun.workspace, chosen, "sft-1", "initial")
    save = Run.save
    for stop in (2, 4, 6):
        saved: list[int] = []

        def saving(self: Run, more: Any = (), stop: int = stop, saved: list[int] = saved) -> None:
            if len(saved) == stop:
                raise Killed
            saved.append(1)
            save(self, dict(more))

        monkeypatch.setattr(Run, "save", saving)
        with pytest.raises(Killed):
            stages.compare_phases(begun.workspace, chosen, "sft-1", "initial")
        monkeypatch.setattr(Run, "save", save)
        assert stages.status(begun.workspace)["next"] == "manners evaluate sft-1 --against initial --resume"
        for pair in (("sft-1", "initial"), ("initial", "sft-1")):
            with pytest.raises(MannersError, match="go on with `manners evaluate sft-1 --against initial --resume`"):
                stages.compare_phases(begun.workspace, chosen, *pair)
        other = replace(chosen, evaluate=replace(chosen.evaluate, samples=3))
        with pytest.raises(MannersError, match=r"was begun with evaluate\.samples = 2, and now it is 3"):
            stages.compare_phases(begun.workspace, other, "sft-1", "initial", resume=True)
        again = stages.compare_phases(begun.workspace, chosen, "sft-1", "initial", resume=True)
        assert tiny.steady(again) == tiny.steady(whole_one)


@pytest.mark.long
def test_people_judge_two_phases_blind(begun: Session) -> None:
    workspace, settings, store = begun.workspace, begun.settings, begun.store
    facts = stages.compare_phases(workspace, settings, "sft-1", "initial")
    assert "open blind comparisons with `manners evaluate sft-1 --against initial --ask N`" in facts["verdict"]
    with pytest.raises(MannersError, match="ask for at least"):
        stages.compare_phases(workspace, settings, "sft-1", "initial", ask=2)
    few = replace(settings, evaluate=replace(settings.evaluate, prompts=4))  # of a run: people are asked about any
    opened = stages.compare_phases(workspace, few, "sft-1", "initial", ask=10)
    assert (opened["opened"], opened["version"], opened["against"]) == (10, "sft-1", "initial")
    asked = store.comparisons(AskedHow.EVALUATION)
    assert {frozenset((c.left.author, c.right.author)) for c in asked} == {frozenset(("initial", "sft-1"))}
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    store.add_verdicts(
        [(c.id, Verdict(Choice.LEFT if c.left.author == "sft-1" else Choice.RIGHT, anna)) for c in asked if c.id]
    )
    facts = stages.compare_phases(workspace, settings, "sft-1", "initial")
    assert "`manners evaluate sft-1 --against initial --close` takes what they have" in facts["verdict"]
    facts = stages.compare_phases(workspace, settings, "sft-1", "initial", close=True)
    assert (facts["source"], facts["raters"], facts["outcome"]) == ("human", 1, "better")
    assert facts["win_rate"]["estimate"] == 1 and facts["win_rate"]["low"] > 0.5
    assert "sft-1 is better than initial: by the verdicts of one person" in facts["verdict"]
    assert workspace.current_policy() == "initial" and not store.rounds(), "nothing is decided"
    assert stages.compare_phases(workspace, settings, "initial", "sft-1")["outcome"] == "worse"
