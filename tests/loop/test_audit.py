"""`manners audit`: what it measures in a project, what it says to programs, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from manners.audit import gate
from manners.audit.rules import REWARD, held, rules
from manners.cli import main
from manners.errors import Blocked, MannersError, UsageError
from manners.loop import asking, audit, behaviour, stages
from manners.loop.options import AuditOptions
from manners.loop.round import AUDIT
from manners.loop.session import Session
from manners.results.audit import Check, Gate
from manners.reward.labelled import LeftOut
from manners.settings import AuditSettings, Settings
from manners.text import Rendered
from manners.types import Interval, Response, Role, Turn, opening
from manners.workspace import Workspace
from tests.loop import tiny
from tests.worlds import tiny_pretrained


def audited(workspace: Workspace, settings: Settings, **chosen: Any) -> dict[str, Any]:
    return stages.perform(workspace, settings, AUDIT, AuditOptions(**chosen))


def rows(file: Path, count: int = 12, prompts: Sequence[str] = ()) -> Path:
    """Write pairs on as many prompts, and on those that are named, of which a person chose the one with `thanks`."""
    some = [
        {"prompt": prompt, "chosen": f"Thanks for {n}. It is so.", "rejected": f"No {n}."}
        for n, prompt in enumerate([*(f"what of {n}?" for n in range(count)), *prompts])
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return file


def test_a_program_is_told_every_check_and_what_they_come_to(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    facts = audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl"))
    assert facts["version"] == "reward-1" and facts["against"] is None and facts["pairs"] == facts["changed"] == 12
    fields = (
        "name",
        "value",
        "low",
        "high",
        "threshold",
        "margin",
        "verdict",
        "required",
        "n",
        "detectable",
        "sentence",
    )
    for check in facts["checks"]:
        assert set(check) == set(fields)
        assert check["verdict"] in ("pass", "fail", "cannot_tell") and check["sentence"]
        assert (check["value"] is None) == (check["low"] is None) and (
            check["value"] is not None or check["verdict"] != "pass"
        )
    names = [check["name"] for check in facts["checks"]]
    assert len(set(names)) == len(names) and sum(name.startswith("turned_") for name in names) >= 8
    assert sum(name.startswith("probe_") for name in names) == 10
    assert set(facts["gate"]) == {"verdict", "failed", "cannot_tell"}
    assert facts["gate"]["failed"] == [c["name"] for c in facts["checks"] if c["verdict"] == "fail"]
    shown = tiny.read_report(Path(stages.report(copy, settings)["facts"]).parent)["audit"]
    assert shown["sentence"] == facts["sentence"] and len(shown["checks"]) == len(names)
    page = copy.report_html.read_text(encoding="utf-8")
    assert "What the reward model likes" in page and facts["checks"][0]["sentence"][:40] in page


def test_without_a_file_it_measures_on_what_was_set_aside(copy: Workspace, settings: Settings) -> None:
    few = replace(settings, audit=AuditSettings(pairs=5))
    facts = audited(copy, few)
    assert facts["source"] == "comparisons set aside from the training of reward-1"
    assert facts["pairs"] >= facts["changed"] and facts["changed"] <= 5
    kept = gate.read(copy, "reward-1").measured["reward"]
    assert [check.name for check in kept.checks] == [check["name"] for check in facts["checks"]]
    assert "known_prompts" not in facts and "gate nothing" not in facts["sentence"]
    plan = stages.perform(copy, few, AUDIT, AuditOptions(), plan=True)
    assert plan["pairs"] == facts["pairs"] and plan["exchanges"] >= facts["exchanges"] > 100
    assert tiny.steady(audited(copy, few)) == tiny.steady(facts)


def test_the_gate_says_where_a_policy_stands_and_its_exit_code_does(
    copy: Workspace, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.toml.write_text(tiny.toml(settings), encoding="utf-8")
    record = copy.models / "policy-1" / "checks.json"
    command = ["audit", "--gate", "--json", "--workspace", str(copy.root)]
    record.unlink(missing_ok=True)
    assert main(command) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["gate"]["cannot_tell"] == ["win_rate"] and "win_rate" in said.err
    rule = {"value": 0.7, "low": 0.6, "high": 0.8, "threshold": 0.5, "margin": 0.0, "verdict": "pass", "required": True}
    checks = [{"name": "win_rate", "sentence": "Better.", **rule}]
    against = gate.replaced_by(copy, "policy-1")
    record.write_text(
        json.dumps({"measured": {"evaluation": {"against": against, "checks": checks}}}), encoding="utf-8"
    )
    assert main([*command[:2], "policy-1", *command[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["verdict"] == "pass"
    with pytest.raises(MannersError, match="reward-1 is no policy"):
        audited(copy, settings, gate=True, version="reward-1")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"what": "everything"}, "what can be audited is a reward model"),
        ({"what": "data", "every": True}, "it goes with --fetch NAME alone"),
        ({"what": "policy", "fetch": "xstest"}, "are for published sets"),
        ({"gate": True, "every": True}, "--gate reads what has been measured"),
        ({"skip_bad": True}, "name one"),
        ({"what": "policy", "comparisons": Path("pairs.jsonl")}, "for a reward model"),
        ({"short": True}, "for a policy"),
        ({"what": "policy", "short": True, "every": True}, "opposites"),
    ],
)
def test_options_that_do_not_go_together(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AuditOptions(**chosen).check(plan=False, resume=False)


def test_too_few_openings_are_refused_before_anything_is_read(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(MannersError, match=r"at least 2 openings .* pairs\.jsonl has 1"):
        audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl", 1))
    with pytest.raises(MannersError, match="there is no version reward-9"):
        audited(copy, settings, version="reward-9")
    assert not (copy.runs / "audit").exists() and gate.read(copy, "reward-1").measured == {}


def test_an_audit_that_fails_is_what_blocks(copy: Workspace, settings: Settings) -> None:
    """Whoever is named, a random model is moved by it: a promotion then names that, until a reason is given."""
    (copy.root / "gate.toml").write_text("version = 1\n[reward.group_size]\nmargin = 0.0\n", encoding="utf-8")
    facts = audited(copy, settings)
    assert "group_size" in facts["gate"]["failed"]
    copy.start_from("initial")
    with pytest.raises(Blocked, match="group_size"):
        stages.models_promote(copy, "policy-1")
    assert stages.models_promote(copy, "policy-1", "to show it")["overridden"]


def test_a_file_tells_the_gate_nothing(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    """Whatever it is made to show: neither does a failure go by it, nor is what it fails kept."""
    fails = held("opinion_flips", rules().of(REWARD, "opinion_flips"), Interval(0.9, 0.8, 1.0), 1, "It flips.")
    gate.keep(copy, "reward-1", REWARD, [fails])
    before = gate.read(copy, "reward-1")
    facts = audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl"))
    assert gate.read(copy, "reward-1") == before and "A file tells the gate nothing" in facts["sentence"]
    assert facts["pairs"] == 12 and facts["known_prompts"] == 0
    assert facts["gate"]["failed"] == [c["name"] for c in facts["checks"] if c["verdict"] == "fail"]


def test_a_file_is_read_in_its_own_words(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    theirs = [{"prompt": f"what of {n}?", "left": f"Thanks for {n}.", "right": f"No {n}."} for n in range(12)]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row | {"verdict": "A"}) + "\n" for row in theirs))
    file, session = tmp_path / "theirs.jsonl", Session(copy, settings)
    with pytest.raises(MannersError, match="--verdict WORD=VERDICT says what another means"):
        audit.inputs(session, AuditOptions(comparisons=file), {})
    found = audit.inputs(session, AuditOptions(comparisons=file, verdict=("A=left",)), {})
    assert len(found.outside) == 12 and all(pair.counts.left == 1 for pair in found.outside)


def test_of_a_file_what_the_model_learned_from_is_left_out(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    session = Session(copy, settings)
    learned, aside = (
        {opening(one.prompt): one.prompt[-1].text for one in some} for some in audit.trained_on(session, "reward-1")
    )
    assert len(learned) > 4 and len(aside) > 1 and not learned.keys() & aside.keys()
    prompts = [*learned.values(), *(text.upper() for text in learned.values()), *aside.values()]
    facts = audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl", 3, prompts))
    assert facts["left_out"] == {audit.LEARNED: 2 * len(learned)}
    assert facts["pairs"] == 3 + len(aside) and facts["known_prompts"] == len(aside)
    own = rows(tmp_path / "own.jsonl", 0, prompts[: len(learned)])
    with pytest.raises(MannersError, match=r"that reward-1 did not learn from, and own\.jsonl has 0"):
        audited(copy, settings, comparisons=own)


def test_a_run_goes_on_with_its_file_as_it_was_read_when_it_began(
    copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume` alone, from another folder: names of columns and what becomes of bad lines are the run's."""
    lines = rows(tmp_path / "pairs.jsonl").read_text(encoding="utf-8").replace('"prompt"', '"question"')
    (tmp_path / "pairs.jsonl").write_text(f"{lines}no row\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    session = Session(copy, settings)
    chosen = AuditOptions(comparisons=Path("pairs.jsonl"), mapping=("question=prompt",), skip_bad=True)
    first = audit.inputs(session, chosen, {})
    begun = json.loads(json.dumps(first.decides))
    monkeypatch.chdir(copy.root)
    again = audit.inputs(session, AuditOptions(), begun)
    assert (again.outside, again.left_out, again.decides) == (first.outside, first.left_out, first.decides)
    assert len(again.outside) == 12 and sum(again.left_out.values()) == 1
    plain = audit.inputs(session, AuditOptions(comparisons=rows(tmp_path / "plain.jsonl")), {})
    assert plain.decides.keys() == first.decides.keys() - {audit.COLUMNS, audit.BAD_LINES}, "older runs go on"


def test_a_run_goes_on_with_what_the_words_of_its_file_meant(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    said = [
        {"prompt": f"what of {n}?", "left": f"Yes {n}.", "right": f"No {n}.", "verdict": f"{'AB'[n % 2]} wins"}
        for n in range(12)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    session = Session(copy, settings)
    chosen = AuditOptions(comparisons=file, verdict=("A wins=left", "B wins=right"))
    first = audit.inputs(session, chosen, {})
    again = audit.inputs(session, AuditOptions(), json.loads(json.dumps(first.decides)))
    assert (again.outside, again.decides) == (first.outside, first.decides)
    assert sum(pair.counts.left for pair in again.outside) == sum(pair.counts.right for pair in again.outside) == 6


def test_what_a_reward_model_chose_is_measured_neither_in_a_file_nor_as_what_it_learned(
    copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members differ most about it: beside it, they would seem to differ less about a policy's samples."""
    session, file = Session(copy, settings), rows(tmp_path / "pairs.jsonl")
    chosen = [json.loads(line) | {"asked_how": "adversarial"} for line in file.read_text("utf-8").splitlines()]
    more = "".join(json.dumps(row | {"prompt": f"{row['prompt']} {n}"}) + "\n" for n, row in enumerate(chosen[:5]))
    file.write_text(file.read_text("utf-8") + more, encoding="utf-8")
    learned, aside = audit.trained_on(session, "reward-1")
    by_model = [replace(pair.unmeasured(pair.weights), comparison_id=0) for pair in learned]
    monkeypatch.setattr(audit, "trained_on", lambda *_: ([*learned, *by_model], aside))
    found = audit.inputs(session, AuditOptions(comparisons=file), {})
    assert len(found.outside) == 12 and found.left_out == {str(LeftOut.CHOSEN): 5}
    assert found.learned and all(pair.measures for pair in found.learned)
    measured = asking.measure_on_file(session, "reward-1", file, {}, None, False)
    assert (measured["pairs"], measured["left_out"]) == (12, {str(LeftOut.CHOSEN): 5})


def test_confidence_is_told_by_what_the_version_says_its_scores_are_worth(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    """One that is sure of everything is half surer than one that is sure of nothing, and nothing is fitted here."""
    file, pairs = copy.models / "reward-1" / "version.json", rows(tmp_path / "pairs.jsonl")
    described = json.loads(file.read_text(encoding="utf-8"))
    found = []
    for worth in (1e9, 1e-9):
        described["metrics"]["unit_log_odds"] = worth
        file.write_text(json.dumps(described), encoding="utf-8")
        checks = audited(copy, settings, comparisons=pairs)["checks"]
        found += [check["value"] for check in checks if check["name"] == "overconfidence"]
    assert found[0] - found[1] == pytest.approx(0.5, abs=1e-3)


def test_what_failed_before_is_not_laid_to_a_later_audit(copy: Workspace, settings: Settings) -> None:
    """Prompts have two answers here, so that there is no best of several to be told."""
    fails = held("best_of_n", rules().of(REWARD, "best_of_n"), Interval(0.2, 0.1, 0.3), 40, "It picks what is bad.")
    gate.keep(copy, "reward-1", REWARD, [fails])
    facts = audited(copy, settings)
    itself = [check["name"] for check in facts["checks"] if check["verdict"] == "fail"]
    assert "best_of_n" not in itself and set(facts["gate"]["failed"]) == {*itself, "best_of_n"}
    now, before = facts["sentence"].split(" Failed before, and not shown to pass: ")
    assert before == "best_of_n." and "best_of_n" not in now


def test_what_a_policy_failed_before_is_not_laid_to_a_later_audit_either() -> None:
    checks = [Check(name="over_refusal", verdict="fail"), Check(name="helpfulness", verdict="pass", value=0.0)]
    inputs = cast(Any, SimpleNamespace(version="policy-1", against="initial"))
    said = behaviour._sentence(inputs, checks, Gate(verdict="fail", failed=("over_refusal", "truthfulness")))
    assert "it got worse by 1: over_refusal." in said and said.endswith("not shown to pass: truthfulness.")
    said = behaviour._sentence(inputs, checks[1:], Gate(verdict="fail", failed=("truthfulness",)))
    assert "not shown to have by any." in said and said.endswith("not shown to pass: truthfulness.")


def test_answers_to_one_prompt_are_scored_behind_the_same_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the prompt beside the short one, and none beside the long one; others may stand between."""
    there = tiny_pretrained(context=128)
    asked, other = (Turn(Role.USER, "the weather is fine today " * 8),), (Turn(Role.USER, "how long?"),)
    short, long = Response("Yes.", "a"), Response("the oven is hot " * 20, "b")
    alone = [there.renderer.render(asked, said).prompt_ids for said in (short, long)]
    assert alone[0] != alone[1], "each by itself sees another prompt"
    seen: list[Rendered] = []

    def score(_: Any, __: Any, rendered: Sequence[Rendered]) -> Tensor:
        seen.extend(rendered)
        return torch.arange(len(seen) - len(rendered), len(seen)).float().unsqueeze(0)

    monkeypatch.setattr(audit, "score_rendered", score)
    monkeypatch.setattr(audit, "AT_ONCE", 1)
    session = cast(Any, SimpleNamespace(pretrained=there))
    run = cast(Any, SimpleNamespace(done=lambda name: 0, each=lambda name, items, work: map(work, items)))
    found, cut = audit._scored(session, run, cast(Any, None), [(asked, short), (other, short), (asked, long)])
    by_exchange = {exchange: seen[int(scores[0])] for exchange, scores in found.items()}
    beside = there.renderer.render_beside(asked, [short, long])
    assert [by_exchange[asked, said] for said in (short, long)] == beside and cut == 2
    assert by_exchange[other, short] == there.renderer.render(other, short)
