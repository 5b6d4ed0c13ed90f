"""Each stage alone, on a workspace that a demo has left."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from manners.checkpoint import Run
from manners.data import own_text
from manners.errors import MannersError
from manners.loop import ppo, reference, stages
from manners.loop import reward as learning
from manners.loop.options import PPOOptions
from manners.loop.round import STAGES
from manners.loop.session import Session, machine, peak_memory
from manners.loop.stage import to_resume
from manners.models import versions
from manners.models.branches import ScalarBranch
from manners.models.described import teacher_of
from manners.models.perplexity import paragraph_nll
from manners.reward import ensemble, stored
from manners.reward.ensemble import RewardModel, score_exchanges
from manners.reward.groups import set_aside
from manners.reward.verdicts import label
from manners.settings import DataSettings, Settings
from manners.text import collate
from manners.types import (
    JUDGE,
    Annotator,
    AnnotatorKind,
    Choice,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.workspace import INITIAL, Workspace
from tests.loop import tiny


def test_sampling_asks_about_new_prompts_only(copy: Workspace, settings: Settings) -> None:
    with pytest.raises(MannersError, match="there is no training prompt left to ask about"):
        stages.sample(copy, settings, crowd=True, plan=False)
    session = Session(copy, settings)
    before = session.store.watermark()
    session.store.add_prompts(tiny.prompts(3, "noon"), PromptUse.TRAIN, "test")
    assert stages.sample(copy, settings, crowd=False, plan=False)["comparisons"] == 3
    assert session.store.watermark() == before, "nobody was asked"
    assert [c.prompt for c in session.store.comparisons()][24:] == tiny.prompts(3, "noon")


def test_a_second_round_learns_from_all_verdicts(copy: Workspace, settings: Settings) -> None:
    session = Session(copy, settings)
    session.store.add_prompts(tiny.prompts(4, "noon"), PromptUse.TRAIN, "test")
    stages.sample(copy, settings, crowd=True, plan=False)
    assert stages.status(copy)["verdicts_not_yet_learned_from"] == 8
    facts = stages.train_reward(copy, settings, plan=False)
    assert facts["version"] == "reward-2"
    assert facts["trained_on"] + facts["set_aside"] == 28
    assert stages.status(copy)["verdicts_not_yet_learned_from"] == 0
    assert versions.describe(copy, "reward-2").watermark == session.store.watermark()
    trained = stages.train_policy(copy, settings, plan=False)
    assert (trained["version"], trained["reward"]) == ("policy-2", "reward-2")


@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_with_weights_laid_out_as_it_was_begun(
    first: bool, copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    def loaded(lays_out: bool, gain: float | None = 0.04) -> Session:
        session = Session(copy, settings)
        trunk = session.pretrained.trunk
        found = replace(trunk.compute, layout_gain=gain, lays_out=lays_out)
        vars(session)["pretrained"] = replace(session.pretrained, trunk=replace(trunk, compute=found))
        return session

    def ends(session: Session, run: Run, begun: bool) -> bool:
        session.lay_out(run, begun=begun)
        return session.pretrained.trunk.compute.lays_out

    run, again = (Run(tmp_path / "run", "manners ppo", {}, 0.0) for _ in range(2))
    assert ends(loaded(first), run, begun=False) is first
    run.save()
    assert again.go_on() and ends(loaded(not first), again, begun=True) is first, "whatever the clock says today"
    older = [Run(tmp_path / "older", "manners ppo", {}, 0.0) for _ in range(2)]
    assert ends(loaded(lays_out=first), older[0], begun=True), "they were, wherever it is possible"
    assert not ends(loaded(lays_out=False, gain=None), older[1], begun=True)


def test_forgetting_is_measured_on_the_users_own_text(
    copy: Workspace, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.txt"
    file.write_text("\n\n".join(f"Paragraph {i} of {i * i} on tides." for i in range(60)), encoding="utf-8")
    own = replace(settings, data=DataSettings(prose=str(file)))
    unseen = own_text(file)[PromptUse.EVALUATE]
    facts = stages.evaluate(copy, own, ask=None, plan=False)
    assert f"plain text from {file}, in pieces:" in capsys.readouterr().err
    session = Session(copy, own)
    initial, policy = (versions.load_policy(copy, name, session.pretrained) for name in (INITIAL, "policy-1"))
    losses, tokens = paragraph_nll([initial, policy], session.pretrained, unseen)
    before, after = (math.exp(sum(loss) / sum(tokens)) for loss in losses)
    assert (facts["perplexity_before"], facts["perplexity_after"]) == pytest.approx((before, after))
    assert facts["perplexity_text"] == str(file)
    decides = [ppo.inputs(Session(copy, chosen), PPOOptions(), {}).decides for chosen in (settings, own)]
    assert decides[1].pop("the plain text") and decides[0] == decides[1]
    held_to = ppo.inputs(session, PPOOptions(), {}).prose.by_use
    assert not set(unseen) & {*held_to[PromptUse.TRAIN], *held_to[PromptUse.VALIDATE]}


def test_a_reward_model_says_where_its_members_differ(copy: Workspace, settings: Settings) -> None:
    session = Session(copy, settings)
    session.store.add_prompts(tiny.prompts(4, "noon"), PromptUse.TRAIN, "test")
    stages.sample(copy, settings, crowd=False, plan=False)
    unjudged = [c for c in session.store.comparisons() if not c.verdicts]
    assert len(unjudged) == 4
    judge = Annotator(f"{JUDGE}planted", AnnotatorKind.AI)
    session.store.add_verdicts([(c.id, Verdict(Choice.LEFT, judge)) for c in unjudged[:2] if c.id is not None])
    stages.train_reward(copy, settings, plan=False)
    found = session.read_facts("disagreement")
    assert found is not None and found["version"] == "reward-2", "a judge's word leaves it for people"
    reward = stored.load_reward(copy, "reward-2", session.pretrained)
    margins = []
    for member, shift, scale in zip(reward.members, reward.shifts, reward.scales, strict=True):
        alone = RewardModel((member,), (shift,), (scale,))
        scores = [
            next(iter(score_exchanges(alone, session.pretrained, [(c.prompt, side)]))).mean.item()
            for c in unjudged
            for side in (c.left, c.right)
        ]
        margins.append([left - right for left, right in zip(scores[::2], scores[1::2], strict=True)])
    expected = {str(c.id): pstdev(pair) for c, *pair in zip(unjudged, *margins, strict=True)}
    assert found["spread"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.long
def test_how_long_to_train_is_found_out_by_a_member_that_then_judges_policies(
    copy: Workspace, settings: Settings
) -> None:
    free = replace(settings, reward=replace(settings.reward, epochs=None))
    plan = stages.train_reward(copy, free, plan=True)
    facts = stages.train_reward(copy, free, plan=False)
    assert facts["passes"] == int(min(facts["tried"], key=facts["tried"].__getitem__))
    assert facts["optimizer_steps"] <= plan["optimizer_steps"]
    assert facts["reference_prompts"] > 20 and facts["reference_answers"] >= 256
    assert 0 < facts["between_prompts"] < 1 and facts["unit_log_odds"] > 0
    session = Session(copy, free)
    reward = stored.load_reward(copy, facts["version"], session.pretrained)
    assert reward.witness is not None and versions.describe(copy, facts["version"]).witness is not None
    split = set_aside(label(session.store.comparisons()).pairs, free.reward.set_aside, free.seed)
    drawn = reference.draw(session, "initial", split)
    for judge in (reward, reward.witness):
        scores = ensemble.score_rendered(judge, session.pretrained, drawn.rendered).mean(dim=0, keepdim=True)
        assert float(ensemble.within_prompts(scores, drawn.places)) == pytest.approx(1, abs=1e-3)
    policy = stages.train_policy(copy, free, plan=False)
    assert policy["reward"] == facts["version"]


def exchanges(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"bread {n}?", "response": f"bake it for {n} hours", "finish_reason": ("stop", "length")[n % 2]}
        for n in range(count)
    ]


def write(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_scores_are_those_of_the_reward_model_line_by_line(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    rows = exchanges(20)
    file, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "scores.jsonl"
    assert stages.score(copy, settings, "reward-1", file, output)["scored"] == 20
    whole = output.read_text(encoding="utf-8")
    scores = [json.loads(line) for line in whole.splitlines()]
    assert [row["line"] for row in scores] == list(range(1, 21))
    session = Session(copy, settings)
    reward = stored.load_reward(copy, "reward-1", session.pretrained)
    (expected,) = score_exchanges(
        reward,
        session.pretrained,
        [
            ((Turn(Role.USER, r["prompt"]),), Response(r["response"], "x", FinishReason(r["finish_reason"])))
            for r in rows
        ],
    )
    assert [row["score"] for row in scores] == pytest.approx(expected.mean.tolist(), abs=1e-5)
    assert [row["spread"] for row in scores] == pytest.approx(expected.std.tolist(), abs=1e-5)
    assert {row["version"] for row in scores} == {"reward-1"}


def test_scoring_goes_on_where_it_was_cut_off_and_ends_byte_for_byte_the_same(
    copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "CHUNK", 6)
    # Lengths that differ much: what shares a forward then shows in the last digits.
    rows = [row | {"response": row["response"] + " and butter" * (n * 7 % 13)} for n, row in enumerate(exchanges(20))]
    file, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "scores.jsonl"
    stages.score(copy, settings, "reward-1", file, output)
    whole = output.read_bytes()
    edges = [0, *(at + 1 for at, byte in enumerate(whole) if byte == ord("\n"))]
    for cut, kept in ((0, 0), (edges[1] + 5, 0), (edges[5], 0), (edges[6], 6), (edges[13] - 1, 12), (len(whole), 18)):
        output.write_bytes(whole[:cut])
        facts = stages.score(copy, settings, "reward-1", file, output)
        assert (facts["already_there"], facts["scored"]) == (kept, 20 - kept)
        assert output.read_bytes() == whole
    write(file, exchanges(0) + rows[:15])
    output.unlink()
    stages.score(copy, settings, "reward-1", file, output)
    stages.score(copy, settings, "reward-1", write(file, rows), output)
    assert output.read_bytes() == whole, "a file that has grown"


def test_scores_of_anything_else_are_refused_and_left_alone(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    shutil.copytree(copy.models / "reward-1", copy.models / "reward-2")
    described = copy.models / "reward-2" / "version.json"
    described.write_text(described.read_text(encoding="utf-8").replace('"reward-1"', '"reward-2"'), encoding="utf-8")
    file, output = write(tmp_path / "answers.jsonl", exchanges(4)), tmp_path / "scores.jsonl"
    stages.score(copy, settings, "reward-1", file, output)
    whole = output.read_bytes()

    def refused(says: str, version: str = "reward-1", file: Path = file, output: Path = output) -> None:
        before = output.read_bytes()
        with pytest.raises(MannersError, match=says):
            stages.score(copy, settings, version, file, output)
        assert output.read_bytes() == before

    refused(
        r"scores\.jsonl, line 1, holds a score by reward-1 where the score of .*answers\.jsonl by reward-2", "reward-2"
    )
    other = write(tmp_path / "other.jsonl", [*exchanges(3), {"prompt": "bread 3?", "response": "bake it"}])
    refused(r"scores\.jsonl, line 4, holds something else .*: name another file with --output, or move", file=other)
    refused("line 4, holds something else", file=write(tmp_path / "short.jsonl", exchanges(3)))
    retrained = json.loads((copy.models / "reward-1" / "version.json").read_text(encoding="utf-8"))
    text = json.dumps(retrained | {"created_at": "another day"})
    (copy.models / "reward-1" / "version.json").write_text(text, encoding="utf-8")
    refused("line 1, holds something else")
    refused("line 1, holds something else", output=file)
    (tmp_path / "letter.txt").write_text("Dear all", encoding="utf-8")
    refused("line 1, holds something else", output=tmp_path / "letter.txt")
    assert output.read_bytes() == whole


def test_scoring_names_the_line_that_it_cannot_read_and_keeps_what_stands_before_it(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    file, output = write(tmp_path / "answers.jsonl", [*exchanges(2), {"prompt": "bread?"}]), tmp_path / "scores.jsonl"
    with pytest.raises(MannersError, match=r"answers\.jsonl, line 3, field `response`: .*; correct it and run again"):
        stages.score(copy, settings, "reward-1", file, output)
    assert [json.loads(line)["line"] for line in output.read_text(encoding="utf-8").splitlines()] == [1, 2]
    assert stages.score(copy, settings, "reward-1", write(file, exchanges(3)), output)["scored"] == 3
    assert len(output.read_text(encoding="utf-8").splitlines()) == 3
    with pytest.raises(MannersError, match=r"no version reward-7 in .* \(there are: policy-1, reward-1\)"):
        stages.score(copy, settings, "reward-7", file, tmp_path / "scores.jsonl")


def test_a_reward_model_is_measured_on_any_file(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    rows = [{"prompt": f"sea {n}?", "chosen": f"at noon {n}", "rejected": "the train, the oven"} for n in range(12)]
    told = [row | {"margin": 2, "prompt": f"User: {row['prompt']}\n\nAssistant:"} for row in rows]
    facts = stages.evaluate_reward(copy, settings, "reward-1", write(tmp_path / "told.jsonl", told))
    assert facts["unused"] == ["margin"] and facts["notes"] == ["12 prompts are transcripts and are read as turns"]
    facts = stages.evaluate_reward(copy, settings, "reward-1", write(tmp_path / "pairs.jsonl", rows))
    assert facts["pairs"] == 12 and (facts["unused"], facts["notes"]) == ([], [])
    low, high = facts["interval"]
    assert 0 <= low <= facts["accuracy"] <= high <= 1
    assert facts["baselines"]["shorter_wins"]["estimate"] == 1
    assert facts["known_prompts"] == 0 and facts["sentence"].startswith("On the verdicts of pairs.jsonl it agrees")
    rows += [{"prompt": "Bread  3?", "chosen": "at noon", "rejected": "the train"}]
    facts = stages.evaluate_reward(copy, settings, "reward-1", write(tmp_path / "more.jsonl", rows))
    assert facts["known_prompts"] == 1
    assert "(1 of 13 about prompts of this workspace, which it may have learned from)" in facts["sentence"]


def test_pairs_of_a_file_that_differ_only_past_the_context_are_left_out(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    rows = [{"prompt": f"sea {n}?", "chosen": f"at noon {n}", "rejected": "the train, the oven"} for n in range(12)]
    rows += [{"prompt": "sea?", "chosen": "at noon " * 60 + "thanks", "rejected": "at noon " * 60}]
    narrow = replace(settings, model=replace(settings.model, context=64))
    facts = stages.evaluate_reward(copy, narrow, "reward-1", write(tmp_path / "pairs.jsonl", rows))
    assert (facts["pairs"], facts["left_out"]) == (12, {"responses alike in what the model reads of them": 1})


def test_measuring_takes_every_verdict_of_the_file(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    """Also those asked for an evaluation, several on one pair, in columns of other names, beside bad lines."""
    sides = {"a": "at noon, at noon", "b": "the train"}
    rows = [
        {"prompt": f"sea {n}?", **sides, "verdict": verdict, "annotator": name, "asked_how": how}
        for n in range(3)
        for name, verdict, how in [
            ("ann", "left", "evaluation"),
            ("ben", "left", "imported"),
            ("cleo", "right", "gold"),
        ]
    ]
    rows[1] |= {"a": sides["b"], "b": sides["a"], "verdict": "right"}
    file = write(tmp_path / "said.jsonl", [*rows, {"prompt": "sea?", "a": "at noon"}])
    mapping = {"a": "left", "b": "right"}
    with pytest.raises(MannersError, match=r"line 10, field `right`: is missing; correct it or leave such lines out"):
        stages.evaluate_reward(copy, settings, "reward-1", file, mapping=mapping)
    facts = stages.evaluate_reward(copy, settings, "reward-1", file, mapping=mapping, skip_bad=True)
    assert (facts["pairs"], facts["left_out"], facts["skipped"]) == (3, {}, {"lacks a field": 1})
    assert [(level["level"], level["n"]) for level in facts["by_agreement"]] == [("two thirds or more", 3)]
    assert facts["baselines"]["longer_wins"]["estimate"] == pytest.approx(2 / 3)
    unjudged = write(tmp_path / "unjudged.jsonl", [{**row, "verdict": ""} for row in rows])
    with pytest.raises(MannersError, match="holds no verdict to measure with"):
        stages.evaluate_reward(copy, settings, "reward-1", unjudged, mapping=mapping)
    tied = write(tmp_path / "tied.jsonl", [{**row, "verdict": "tie"} for row in rows])
    with pytest.raises(MannersError, match=r"no verdict in .*tied\.jsonl chooses a side"):
        stages.evaluate_reward(copy, settings, "reward-1", tied, mapping=mapping)


@pytest.mark.parametrize("openings", [2, 3, 4])
def test_few_prompts_are_enough_or_refused_before_training(model: Path, tmp_path: Path, openings: int) -> None:
    session = tiny.project(tmp_path / "few", model, {PromptUse.TRAIN: tiny.prompts(openings, "bread")})
    stages.sample(session.workspace, session.settings, crowd=False, plan=False)
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    choices = [(Choice.LEFT, Choice.RIGHT)[n % 2] for n in range(openings)]
    ids = [c.id for c in session.store.comparisons() if c.id is not None]
    session.store.add_verdicts([(key, Verdict(choice, anna)) for key, choice in zip(ids, choices, strict=True)])
    settings = replace(session.settings, reward=replace(session.settings.reward, set_aside=0.02))
    facts = stages.train_reward(session.workspace, settings, plan=False)
    assert facts["set_aside"] == (2 if openings >= 4 else 1)
    assert (facts["ece"] is None) == (openings < 4)
    stages.report(session.workspace, settings)
    assert "How good the reward model is" in session.workspace.report_html.read_text(encoding="utf-8")


def test_what_cannot_be_measured_is_not_trained(model: Path, tmp_path: Path) -> None:
    session = tiny.project(tmp_path / "tied", model, {PromptUse.TRAIN: tiny.prompts(16, "bread")})
    stages.sample(session.workspace, session.settings, crowd=False, plan=False)
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    verdicts = [Verdict((Choice.LEFT, Choice.RIGHT)[n % 2], anna) for n in range(16)]
    asked = [replace(c, verdicts=(v,)) for c, v in zip(session.store.comparisons(), verdicts, strict=True)]
    split = set_aside(label(asked).pairs, session.settings.reward.set_aside, session.settings.seed)
    held_out = {pair.comparison_id for pair in split.held_out}
    tied = [replace(v, choice=Choice.TIE) if c.id in held_out else v for c, v in zip(asked, verdicts, strict=True)]
    session.store.add_verdicts([(c.id, v) for c, v in zip(asked, tied, strict=True) if c.id is not None])
    with pytest.raises(MannersError, match="chooses a side"):
        stages.train_reward(session.workspace, session.settings, plan=False)
    assert to_resume(STAGES, session.workspace) == [], "nothing was begun that could not be ended"


def test_versions_are_promoted_and_rolled_back(copy: Workspace) -> None:
    assert {row["name"] for row in stages.models_list(copy)["versions"]} == {"reward-1", "policy-1"}
    (copy.models / "current.json").unlink(missing_ok=True)
    for _ in range(2):  # the second time it is the current one already
        assert stages.models_promote(copy, "policy-1", "a test")["current"] == "policy-1"
    assert stages.models_list(copy)["current"] == "policy-1"
    assert stages.models_rollback(copy) == {"current": "initial", "was": "policy-1"}
    with pytest.raises(MannersError, match="only a policy can be promoted"):
        stages.models_promote(copy, "reward-1")
    (copy.models / "current.json").unlink(missing_ok=True)
    with pytest.raises(MannersError, match="nothing to go back to"):
        stages.models_rollback(copy)


def test_what_is_exported_is_what_was_trained(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    session = Session(copy, settings)
    pretrained = session.pretrained
    rendered = pretrained.renderer.render(
        (Turn(Role.USER, "bread?"),), Response("bake it at noon", "x", FinishReason.STOP)
    )
    batch = collate([rendered], pretrained.renderer.pad_id)
    states, ids = pretrained.trunk.states(batch), torch.tensor([rendered.prompt_ids + rendered.response_ids])

    facts = stages.models_export(copy, "policy-1", tmp_path / "policy")
    assert facts["loads_with"] == "AutoModelForCausalLM"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    policy = versions.load_policy(copy, "policy-1", pretrained)
    with torch.no_grad():
        logits = plain(ids).logits[0, len(rendered.prompt_ids) - 1 : -1]
        ours = policy.text_logprobs(policy.hidden(states, batch), batch)[0]
    theirs = logits.log_softmax(-1)[range(len(rendered.response_ids)), list(rendered.response_ids)]
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").chat_template == pretrained.tokenizer.chat_template

    facts = stages.models_export(copy, "reward-1", tmp_path / "reward")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    reward = stored.load_reward(copy, "reward-1", pretrained)
    with torch.no_grad():
        score = classifier(ids).logits[0, 0] - facts["shift"]
        expected = reward.score(states, batch).members[0, 0]
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)


def test_a_policy_is_judged_by_the_reward_model_that_it_was_trained_against(
    copy: Workspace, settings: Settings
) -> None:
    session = Session(copy, settings)
    before = stages.evaluate(copy, settings, ask=None, plan=False)
    stages.train_reward(copy, replace(settings, seed=4), plan=False)
    assert (
        versions.reward_of(copy, "policy-1") == teacher_of(copy, "policy-1") == "reward-1"
        and len(stages.models_list(copy)["versions"]) == 3
    )
    after = stages.evaluate(copy, settings, ask=None, plan=False)
    for name in ("score_before", "score_after", "best_of_n"):
        assert after[name] == before[name]
    assert {r.reward for r in session.store.rounds()} == {"reward-1"}
    described = copy.models / "policy-1" / "version.json"
    facts = json.loads(described.read_text(encoding="utf-8"))
    del facts["metrics"]["reward"]  # as versions were before they said so
    described.write_text(json.dumps(facts), encoding="utf-8")
    assert versions.reward_of(copy, "policy-1") == "reward-2"


def test_any_member_is_exported_or_their_average(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    pretrained = Session(copy, settings).pretrained
    reward = stored.load_reward(copy, "reward-1", pretrained)
    rendered = pretrained.renderer.render(
        (Turn(Role.USER, "bread?"),), Response("bake it at noon", "x", FinishReason.STOP)
    )
    batch = collate([rendered], pretrained.renderer.pad_id)
    ids = torch.tensor([rendered.prompt_ids + rendered.response_ids])
    for member in ("1", "average"):
        facts = stages.models_export(copy, "reward-1", tmp_path / member, member)
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / member).eval()
        branch = reward.members[1]
        scale = reward.scales[1]
        if member == "average":
            own = [m.own_tensors() for m in reward.members]
            heads = [m.scalar.weight.detach() / k for m, k in zip(reward.members, reward.scales, strict=True)]
            branch = ScalarBranch(pretrained.trunk, None)
            mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
            branch.load_tensors(mean | {"scalar.weight": (heads[0] + heads[1]) / 2})
            scale = 1.0
        with torch.no_grad():
            expected = branch.scores(pretrained.trunk.states(batch), batch)[0] / scale
            torch.testing.assert_close(classifier(ids).logits[0, 0], expected, atol=1e-4, rtol=1e-4)
        assert classifier.config.manners_shift == facts["shift"]
    assert facts["member"] == "average" and facts["shift_measured_on"] > 5
    watermark = versions.describe(copy, "reward-1").watermark
    held_out = learning.reference_answers(Session(copy, settings), "initial", watermark)
    alone = RewardModel((branch,), (facts["shift"],), (1.0,))
    assert float(ensemble.score_rendered(alone, pretrained, held_out).mean()) == pytest.approx(0, abs=1e-4)
    for member in ("2", "-1", "first"):
        with pytest.raises(MannersError, match=f"reward-1 has no member {member}: name one of 0 to 1, or `average`"):
            stages.models_export(copy, "reward-1", tmp_path / "none", member)
    with pytest.raises(MannersError, match="policy-1 is a policy, which has no members"):
        stages.models_export(copy, "policy-1", tmp_path / "none", "0")
    assert not (tmp_path / "none").exists()


def test_plans_say_what_it_takes_and_train_nothing(copy: Workspace, settings: Settings) -> None:
    reward, ppo = stages.train_reward(copy, settings, plan=True), stages.train_policy(copy, settings, plan=True)
    report = tiny.read_report(copy.root)
    assert reward["comparisons"] == 24
    assert reward["trained_on"] == report["comparisons"]["trained_on"]
    assert reward["optimizer_steps"] == report["reward"]["optimizer_steps"]
    assert ppo["episodes"] == 32
    assert ppo["optimizer_steps"] == report["ppo"]["optimizer_steps"]
    assert all(number > 0 for number in [*reward["memory_bytes"].values(), *ppo["memory_bytes"].values()])
    assert len(stages.models_list(copy)["versions"]) == 2


def test_status_counts_and_says_what_comes_next(copy: Workspace, model: Path, tmp_path: Path) -> None:
    found = stages.status(copy)
    assert (found["reward_models"], found["policies"]) == (["reward-1"], ["policy-1"])
    assert found["verdicts_not_yet_learned_from"] == 0
    empty = tiny.project(tmp_path / "empty", model)
    assert stages.status(empty.workspace)["next"].startswith("manners sample")
    stages.sample(empty.workspace, empty.settings, crowd=False, plan=False)
    assert "manners serve" in stages.status(empty.workspace)["next"]


def test_stages_out_of_order_say_what_is_missing(model: Path, tmp_path: Path) -> None:
    session = tiny.project(tmp_path / "empty", model)
    workspace, settings = session.workspace, session.settings
    with pytest.raises(MannersError, match="no comparisons to learn from"):
        stages.train_reward(workspace, settings, plan=False)
    with pytest.raises(MannersError, match="run `manners reward` first"):
        stages.train_policy(workspace, settings, plan=False)
    with pytest.raises(MannersError, match="run `manners ppo` first"):
        stages.evaluate(workspace, settings, ask=None, plan=False)


def test_ppo_needs_prompts_of_both_uses(copy: Workspace, settings: Settings, model: Path, tmp_path: Path) -> None:
    bare = tiny.project(tmp_path / "bare", model, {PromptUse.TRAIN: tiny.prompts(2, "bread")})
    (copy.models / "reward-1").rename(bare.workspace.models / "reward-1")
    with pytest.raises(MannersError, match=r"choose the best version by \(0 there\)"):
        stages.train_policy(bare.workspace, bare.settings, plan=False)


PPO_APART: list[tuple[dict[str, Any], str]] = [
    ({"kl_target": 6.0, "kl_coefficient": 0.0}, "by a factor, and that is 0: set ppo.kl_coefficient above 0"),
    ({"batch": 17}, r"with ppo.batch = 17 and ppo.answers = 4 one prompt of a rollout gets a single answer"),
]


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize(("changes", "says"), PPO_APART)
def test_settings_of_ppo_that_do_not_go_together_are_refused(
    copy: Workspace, settings: Settings, changes: dict[str, Any], says: str, plan: bool
) -> None:
    apart = replace(settings, ppo=replace(settings.ppo, **changes))
    with pytest.raises(MannersError, match=says):
        stages.train_policy(copy, apart, plan=plan)
    ppo.inputs(Session(copy, apart), PPOOptions(), {"the reward model": "reward-1"})  # a run that was begun so goes on


@pytest.mark.parametrize(
    "changes", [{"batch": 18}, {"batch": 17, "answers": 1}, {"kl_coefficient": 0.0}, {"batch": 3, "answers": 8}]
)
def test_settings_of_ppo_that_go_together(copy: Workspace, settings: Settings, changes: dict[str, Any]) -> None:
    chosen = replace(settings, ppo=replace(settings.ppo, **changes))
    assert stages.train_policy(copy, chosen, plan=True)["episodes"] == 2 * chosen.ppo.batch


def test_prompts_that_leave_no_room_are_skipped_and_counted(
    copy: Workspace, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Session(copy, settings).store
    store.add_prompts([(Turn(Role.USER, "why? " * 300),)], PromptUse.TRAIN, "test")
    store.add_prompts([(Turn(Role.USER, "why? " * 400),)], PromptUse.VALIDATE, "test")
    facts = stages.train_policy(copy, replace(settings, ppo=replace(settings.ppo, updates=1)), plan=False)
    assert (facts["prompts"], facts["prompts_skipped"]) == (24, 2)
    said = capsys.readouterr().err
    for use, count in (("train", 25), ("validate", 9)):
        assert f"of {count} prompts for `{use}`, 1 leave no room for a response of 8 tokens in a context of 256" in said


def test_a_run_is_as_long_as_its_passes_over_the_prompts(copy: Workspace, settings: Settings) -> None:
    ppo = replace(settings.ppo, updates=None, passes=1.4)
    # 1.4 * 24 in batches of 16
    assert stages.train_policy(copy, replace(settings, ppo=ppo), plan=True)["episodes"] == 48
    assert stages.train_policy(copy, replace(settings, ppo=ppo), plan=False)["episodes"] == 48
    for most, episodes in ((20, 16), (32, 32), (47, 32), (48, 48), (8, 16)):  # the last for want of a smaller batch
        capped = replace(ppo, passes=1000.0, most_episodes=most)
        assert stages.train_policy(copy, replace(settings, ppo=capped), plan=True)["episodes"] == episodes


def test_another_cut_refuses_the_versions_above_the_old_one(copy: Workspace, settings: Settings) -> None:
    other = replace(settings, model=replace(settings.model, trainable_layers=1))
    with pytest.raises(MannersError, match="reward-1 was trained above another trunk"):
        stages.train_policy(copy, other, plan=False)


def test_a_run_that_was_stopped_says_so(copy: Workspace, settings: Settings) -> None:
    ppo = replace(settings.ppo, kl_stop=0.01, learning_rate=0.01, updates=4, forgetting_limit=1000.0)
    facts = stages.train_policy(copy, replace(settings, ppo=ppo), plan=False)
    assert "above ppo.kl_stop = 0.01" in facts["stopped"]
    update = facts["episodes"] // settings.ppo.batch + 1
    assert facts["warnings"] == [f"update {update}: {facts['stopped']}; the run was stopped"]
    assert versions.describe(copy, facts["version"]).metrics["stopped"] == facts["stopped"]


def test_on_a_gpu_its_name_and_its_memory_are_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine().gpu is None and peak_memory() > 2**20
    for name, value in (("is_available", True), ("max_memory_reserved", 12_345), ("get_device_name", "Large GPU")):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert machine().gpu == "Large GPU" and peak_memory() == 12_345
