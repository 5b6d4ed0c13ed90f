"""`manners audit policy`: what it measures in a project, what it says to programs, and what it refuses."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from manners.audit import gate
from manners.cli import main
from manners.data import behaviour
from manners.errors import Blocked, MannersError
from manners.loop import stages
from manners.loop.options import AuditOptions
from manners.loop.pack import drawn
from manners.loop.round import AUDIT
from manners.loop.session import Session
from manners.models import versions
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.settings import AuditSettings, Settings
from manners.store import Store, flags
from manners.store.flags import FlagReason, raise_flag
from manners.types import Annotator, AnnotatorKind, AskedHow, Comparison, PromptUse, Response
from manners.workspace import Workspace
from tests.audit.test_sets import folder_of_sets
from tests.loop import tiny

FEW = AuditSettings(cases=30, tokens=4)
FIELDS = {"name", "value", "low", "high", "threshold", "margin", "verdict", "required", "n", "detectable", "sentence"}


def audited(workspace: Workspace, settings: Settings, **chosen: Any) -> dict[str, Any]:
    return stages.perform(workspace, settings, AUDIT, AuditOptions(what="policy", **chosen))


@pytest.fixture
def few(settings: Settings) -> Settings:
    return replace(settings, audit=FEW)


@pytest.mark.long
def test_a_program_is_told_every_check_and_what_they_come_to(copy: Workspace, few: Settings) -> None:
    facts = audited(copy, few)
    assert facts["version"] == "policy-1" and facts["against"] == "initial" and facts["languages"] == ["en"]
    assert facts["asked"] == {"benign": 30, "unsafe": 30, "truths": 30, "contested": 30, "swaps": 30}
    assert facts["there"]["truths"] >= 100 and facts["reward"] == facts["source"] == "reward-1"
    for check in facts["checks"]:
        assert set(check) == FIELDS and check["verdict"] in ("pass", "fail", "cannot_tell") and check["sentence"]
    names = [check["name"] for check in facts["checks"]]
    assert len(set(names)) == len(names)
    assert {"over_refusal", "under_refusal", "harmful_compliance", "helpfulness", "truthfulness"} <= set(names)
    assert {"swap_dependence", "opinion_movement", "swap_score_ages", "swap_lean_women_men"} <= set(names)
    assert facts["gate"]["failed"] == [c["name"] for c in facts["checks"] if c["verdict"] == "fail"]
    assert [one["feature"] for one in facts["amplification"]] == ["refusal", "reservation", "length", "format"]
    assert [check.name for check in gate.read(copy, "policy-1").measured["policy"].checks] == names
    assert gate.read(copy, "policy-1").measured["policy"].against == "initial"
    # It is on the card, in the report, and before the gate; and the same again comes out the same.
    card = json.loads((copy.models / "policy-1" / "card.json").read_text(encoding="utf-8"))
    assert len(card["measured"]["policy"]["checks"]) == len(names) and "policy" not in card["not_measured"]
    stages.report(copy, few)
    page = copy.report_html.read_text(encoding="utf-8")
    assert "How the policy behaves" in page and facts["amplification"][0]["sentence"][:30] in page
    assert set(names) <= {check.name for check in gate.standing(copy, "policy-1").checks}
    assert tiny.steady(audited(copy, few)) == tiny.steady(facts)


@pytest.mark.long
def test_a_version_beside_itself_has_not_changed(copy: Workspace, few: Settings) -> None:
    """The initial model's own weights as a policy: with the same random numbers nothing differs, and nothing fails."""
    own = Branch(Session(copy, few).pretrained.trunk, trainable=True)
    save_file(
        {name: t.contiguous() for name, t in own.own_tensors().items()},
        copy.models / "policy-1" / "branch-0.safetensors",
    )
    facts = audited(copy, few)
    assert not facts["gate"]["failed"] and {c["value"] for c in facts["checks"]} == {0.0}


@pytest.mark.long
def test_published_sets_are_asked_too_where_they_are_there(copy: Workspace, few: Settings, tmp_path: Path) -> None:
    folder = folder_of_sets(tmp_path / "sets")
    told = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (folder / "ifeval").mkdir()
    lines = [json.dumps(told | {"prompt": f"Say {n}."}) for n in range(12)]
    (folder / "ifeval" / "input_data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    some = replace(few, audit=replace(few.audit, cases=10, sets=str(folder)))
    facts = audited(copy, some)
    asked = {name: facts["asked"][name] for name in ("xstest_safe", "xstest_unsafe", "winobias", "bbq", "ifeval")}
    assert asked == {"xstest_safe": 10, "xstest_unsafe": 10, "winobias": 10, "bbq": 20, "ifeval": 10}
    assert facts["there"]["bbq"] == 24 and not facts["left_out"]
    names = {check["name"] for check in facts["checks"]}
    assert {"over_refusal_xstest", "stereotype_winobias", "bias_bbq_ambiguous", "accuracy_bbq_disambiguated"} <= names
    assert names >= {"over_refusal", "truthfulness", "instructions_ifeval"} and all(
        check["sentence"] for check in facts["checks"]
    )


@pytest.mark.long
def test_what_was_reported_is_asked_again(copy: Workspace, settings: Settings) -> None:
    """Three reports on pairs, as soon as a reviewer has kept them away; of their words no result has any."""
    few = replace(settings, audit=AuditSettings(cases=5, tokens=4))
    with closing(Store.open(copy.database)) as store:
        prompts = [one.dialogue for one in store.prompts(PromptUse.TRAIN)[:3]]
        numbers = store.add_comparisons(
            Comparison(prompt, Response(f"reported {n}", "a"), Response(f"reported too {n}", "b"), AskedHow.RANDOM)
            for n, prompt in enumerate(prompts)
        )
        with store.write() as connection:
            for number in numbers:
                raise_flag(connection, Annotator("anna", AnnotatorKind.HUMAN), FlagReason.WRONG, "", comparison=number)
        before = audited(copy, few)
        assert "cases" not in before["asked"], "nobody has decided"
        for flag in flags.undecided(store):
            flags.decide(store, flag.id, upheld=True)
    facts = audited(copy, few)
    assert (facts["asked"]["cases"], facts["there"]["cases"]) == (6, 6), "all, whatever audit.cases says"
    assert len((copy.root / "audit" / "cases.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    checks = {check["name"]: check for check in facts["checks"]}
    assert (checks["cases"]["verdict"], checks["cases"]["n"]) == ("pass", 6)
    assert checks["cases_score"]["value"] is not None and checks["cases_score"]["n"] == 6
    assert {"cases", "cases_score"} <= {check.name for check in gate.standing(copy, "policy-1").checks}
    said = (copy.runs / "behaviour.json").read_text(encoding="utf-8")
    assert "reported" in said and "reported too" not in said, "no result quotes what was reported"


@pytest.mark.long
def test_an_answer_longer_than_those_drawn_here_is_known_again(copy: Workspace, settings: Settings) -> None:
    """The policy's own words, reported in a chat that lets it say more than `sample.max_new_tokens`."""
    few = replace(settings, audit=AuditSettings(cases=5, tokens=4))
    session = Session(copy, few)
    policy = versions.load_policy(copy, "policy-1", session.pretrained)
    longer = replace(few.sample, max_new_tokens=3 * few.sample.max_new_tokens)
    with closing(Store.open(copy.database)) as store:
        prompts = [one.dialogue for one in store.prompts(PromptUse.TRAIN)[:3]]
        drawn = answer(policy, session.pretrained, prompts, 1, longer, 0, "policy-1", greedy=True)
        given = [one for batch in drawn for one in batch.answers]
        assert all(len(one.response_ids) > few.sample.max_new_tokens for one in given)
        numbers = store.add_comparisons(
            Comparison(one.prompt, one.response, Response("never said", "b"), AskedHow.RANDOM) for one in given
        )
        with store.write() as connection:
            for number in numbers:
                raise_flag(connection, Annotator("anna", AnnotatorKind.HUMAN), FlagReason.WRONG, "", comparison=number)
        for flag in flags.undecided(store):
            flags.decide(store, flag.id, upheld=True)
    [found] = [check for check in audited(copy, few)["checks"] if check["name"] == "cases"]
    assert (found["verdict"], found["value"], found["n"]) == ("fail", 0.5, 6), "three said again, three never said"


def test_the_sets_are_listed_with_where_they_come_from(
    copy: Workspace, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.toml.write_text(tiny.toml(settings), encoding="utf-8")
    folder = folder_of_sets(tmp_path / "sets")
    command = ["audit", "data", "--json", "--workspace", str(copy.root)]
    for chosen, there in (([], False), (["--set", f"audit.sets={folder}"], True)):
        assert main([*command, *chosen]) == 0
        rows = json.loads(capsys.readouterr().out)["sets"]
        named = [row["name"] for row in rows if row["there"]]
        assert named == (["xstest", "winobias", "bbq"] if there else []) and all(
            row["licence"] and row["source"] for row in rows
        )
    (folder / "bbq" / "bbq.jsonl").write_text("nonsense", encoding="utf-8")
    assert main([*command, "--set", f"audit.sets={folder}"]) == 1
    assert "take bbq anew from github.com/nyu-mll/BBQ" in capsys.readouterr().err


def test_what_is_asked_is_drawn_by_the_seed_and_stays_in_its_order() -> None:
    pack = behaviour()
    some = drawn(pack, 12, 0)
    assert len(some.benign) == len(some.truths) == 12 and len(some.swaps) == 30
    assert {swap.axis for swap in some.swaps} == {swap.axis for swap in pack.swaps}
    assert [p for p in pack.benign if p in some.benign] == list(some.benign)
    assert drawn(pack, 12, 0) == some and drawn(pack, 12, 1) != some and drawn(pack, 1000, 0) == pack


def test_a_plan_says_how_much_is_asked(copy: Workspace, few: Settings) -> None:
    plan = stages.audit_policy(copy, few, plan=True)
    assert plan["answers"] == 2 * (30 + 30 + 60) and plan["memory_needed_bytes"] > 0


def test_what_is_no_policy_is_refused(copy: Workspace, few: Settings) -> None:
    with pytest.raises(MannersError, match="reward-1 is a reward version where a policy version is needed"):
        audited(copy, few, version="reward-1")
    with pytest.raises(MannersError, match="compare it with another version than itself"):
        audited(copy, few, against="policy-1")


def test_what_fails_blocks_a_promotion_and_may_be_overridden(
    copy: Workspace, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is kept, a failure blocks; one among thirty that fails by little does not."""
    rule = {"threshold": 0.0, "margin": 0.1, "required": False, "n": 60, "sentence": "It refuses. Asked: x; FAILS."}
    sure = {"name": "over_refusal", "value": 0.9, "low": 0.8, "high": 1.0, "verdict": "fail", **rule}
    near = {"name": "under_refusal", "value": 0.2, "low": 0.11, "high": 0.29, "verdict": "cannot_tell", **rule}
    fine = [
        {"name": f"swap_refusal_{n}", "value": 0.0, "low": -0.1, "high": 0.1, "verdict": "pass", **rule}
        for n in range(20)
    ]
    file = copy.models / "policy-1" / "checks.json"
    won = {"value": 0.7, "low": 0.6, "high": 0.8, "threshold": 0.5, "margin": 0.0, "verdict": "pass", "required": True}
    better = {"name": "win_rate", "sentence": "Better.", **won}
    evaluated = {"against": gate.replaced_by(copy, "policy-1"), "checks": [better]}
    for checks, failed in (([near, *fine], []), ([sure, near, *fine], ["over_refusal"])):
        file.write_text(
            json.dumps({"measured": {"evaluation": evaluated, "policy": {"against": "initial", "checks": checks}}}),
            encoding="utf-8",
        )
        found = gate.standing(copy, "policy-1")
        assert list(found.gate.failed) == failed
        assert {c.name: c.verdict for c in found.checks}["under_refusal"] == "cannot_tell"
    copy.toml.write_text(tiny.toml(settings), encoding="utf-8")
    assert main(["audit", "--gate", "policy-1", "--json", "--workspace", str(copy.root)]) == 1
    assert "over_refusal" in capsys.readouterr().err
    copy.start_from("initial")
    with pytest.raises(Blocked, match="over_refusal"):
        stages.models_promote(copy, "policy-1")
    (copy.root / "gate.toml").write_text("version = 1\n[policy.truthfulness]\nrequired = true\n", encoding="utf-8")
    assert "truthfulness" in gate.standing(copy, "policy-1").gate.cannot_tell


def test_a_short_audit_asks_less(settings: Settings) -> None:
    short = AuditOptions(what="policy", short=True).applied(settings).audit
    assert short.cases == 16 and short.tokens < settings.audit.tokens
    assert AuditOptions(what="policy", every=True).applied(settings).audit.cases == 1_000_000
