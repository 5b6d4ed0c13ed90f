"""The gate: what blocks, by intervals and rules worked out by hand; and that no door leads round it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import manners
from manners.audit import gate
from manners.audit.rules import EVALUATION, POLICY, REWARD, Rule, held, rules, together
from manners.cli import main
from manners.errors import Blocked, MannersError, UsageError
from manners.loop import stages
from manners.results.audit import CANNOT_TELL, FAIL, PASS, REJECTED, Check, Gate, Review
from manners.store import Store
from manners.types import Interval
from manners.workspace import Workspace

ROOT = Path(manners.__file__).parent


def version(workspace: Workspace, name: str, **more: Any) -> None:
    """Write the description of a version, with no tensor among its weights."""
    kind = name.partition("-")[0]
    described = {"name": name, "kind": kind, "base": "x", "trunk_hash": "t", "cut": 1, "template_hash": "h"}
    folder = workspace.models / name
    folder.mkdir()
    described |= {"dtype": "float32", "created_at": "2030-01-01", **more}
    (folder / "version.json").write_text(json.dumps(described), encoding="utf-8")
    save_file({}, folder / "branch-0.safetensors")


def test_a_policy_whose_weights_are_not_there_is_promoted_by_nobody(workspace: Workspace) -> None:
    """Not by who overrides the gate either, nor on the way back; half a file is none."""
    file = workspace.models / "policy-1" / "branch-0.safetensors"
    whole = file.read_bytes()
    for write in (file.unlink, lambda: file.write_bytes(whole[:-1])):
        write()
        with pytest.raises(MannersError, match=r"branch-0.safetensors is (not there|damaged)"):
            gate.promote(workspace, "policy-1", "I want it")
        assert workspace.current_policy() == "initial"
    workspace.promote("policy-1")
    with pytest.raises(MannersError, match=r"branch-0.safetensors is damaged"):
        gate.promote(workspace, "policy-1")


def found(name: str, value: float, low: float, high: float, part: str = EVALUATION) -> Check:
    return held(name, rules().of(part, name), Interval(value, low, high), 50, f"{name}.")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two policies, both taught by one reward model; the first was shown to be better than the initial model."""
    made = Workspace.create(tmp_path / "project")
    Store.create(made.database).close()
    version(made, "reward-1")
    for name in ("policy-1", "policy-2"):
        version(made, name, metrics={"reward": "reward-1"})
    gate.keep(made, "policy-1", EVALUATION, [found("win_rate", 0.6, 0.55, 0.65)], "initial")
    return made


@pytest.mark.parametrize(
    ("better", "low", "high", "verdict"),
    [
        ("above", 0.41, 0.9, PASS),  # the border is 0.5 - 0.1
        ("above", 0.40, 0.9, CANNOT_TELL),
        ("above", 0.1, 0.39, FAIL),
        ("above", 0.1, 0.41, CANNOT_TELL),
        ("below", 0.1, 0.6, PASS),  # 0.5 + 0.1
        ("below", 0.1, 0.61, CANNOT_TELL),
        ("below", 0.61, 0.9, FAIL),
        ("within", 0.4, 0.6, PASS),  # 0.5 -/+ 0.1
        ("within", 0.39, 0.6, CANNOT_TELL),
        ("within", 0.4, 0.61, CANNOT_TELL),
        ("within", 0.1, 0.39, FAIL),
        ("within", 0.61, 0.9, FAIL),
        ("within", 0.0, 1.0, CANNOT_TELL),
    ],
)
def test_an_interval_across_the_border_cannot_be_told(better: Any, low: float, high: float, verdict: str) -> None:
    rule = Rule(better=better, threshold=0.5, margin=0.1)
    assert rule.verdict(Interval((low + high) / 2, low, high)) == verdict
    assert rule.verdict(None) == CANNOT_TELL


def test_what_could_have_been_found_is_a_multiple_of_the_standard_error() -> None:
    """Of 100 tosses of a coin the standard error is 0.05: 2.8 of them are found in 8 of 10 tries."""
    check = held(
        "x", Rule(better="above", threshold=0.5), Interval(0.5, 0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), 100, "X."
    )
    assert check.detectable == pytest.approx(2.8 * 0.05) and "finds a distance of 0.14" in check.sentence
    assert held("x", Rule(better="above", threshold=0.5), None, None, "Nothing.").detectable is None


def test_every_rule_that_ships_has_its_reason_and_only_an_evaluation_is_required() -> None:
    shipped = rules()
    assert all(rule.why and rule.margin >= 0 for part in shipped.by_part.values() for rule in part.values())
    assert shipped.required(EVALUATION) == ["win_rate"] and shipped.required(REWARD) == []
    assert shipped.of(REWARD, "probe_empty") is shipped.of(REWARD, "probe_one_character")
    assert shipped.of(REWARD, "probe_negated") is not shipped.of(REWARD, "probe_empty")
    with pytest.raises(KeyError):
        shipped.of(REWARD, "unheard_of")


def test_one_failure_blocks_and_what_cannot_be_told_only_where_required() -> None:
    passed, failed, untold = (Check(name=v, verdict=v) for v in (PASS, FAIL, CANNOT_TELL))
    required = Check(name="needed", verdict=CANNOT_TELL, required=True)
    assert gate.decide([passed, untold]).verdict == PASS
    assert gate.decide([passed, failed, required]) == Gate(verdict=FAIL, failed=(FAIL,), cannot_tell=("needed",))
    assert gate.decide([passed, required]).verdict == CANNOT_TELL and gate.decide([required]).blocks


def test_who_was_shown_better_goes_through_and_who_was_not_measured_does_not(workspace: Workspace) -> None:
    with pytest.raises(Blocked, match=r"policy-2 .*win_rate.*not evaluated against initial") as refused:
        gate.promote(workspace, "policy-2")
    assert refused.value.facts["gate"] == {"verdict": CANNOT_TELL, "failed": [], "cannot_tell": ["win_rate"]}
    assert gate.promote(workspace, "policy-1").verdict == PASS and workspace.current_policy() == "policy-1"
    gate.keep(workspace, "policy-2", EVALUATION, [found("win_rate", 0.9, 0.8, 1.0)], "initial")
    with pytest.raises(Blocked, match="not evaluated against policy-1, which it would replace"):
        gate.promote(workspace, "policy-2")
    gate.keep(workspace, "policy-2", EVALUATION, [found("win_rate", 0.9, 0.8, 1.0)], "policy-1")
    gate.promote(workspace, "policy-2")
    assert workspace.promoted() == ["policy-1", "policy-2"]
    workspace.roll_back()
    for back in ("policy-1", "initial"):  # these go back
        gate.promote(workspace, back)


def test_an_audit_of_its_reward_model_that_fails_blocks_a_policy(workspace: Workspace) -> None:
    gate.keep(workspace, "reward-1", REWARD, [found("length_slope", 0.9, 0.7, 1.1, REWARD)])
    with pytest.raises(Blocked, match="fails: length_slope"):
        gate.promote(workspace, "policy-1")
    (workspace.root / "gate.toml").write_text("version = 1\n[reward.length_slope]\nmargin = 1.2\n", encoding="utf-8")
    looser = gate.standing(workspace, "policy-1")
    assert not looser.gate.blocks and "Since then gate.toml was changed" in looser.checks[-1].sentence
    (workspace.root / "gate.toml").write_text("version = 1\n[reward.ties]\nrequired = true\n", encoding="utf-8")
    assert gate.standing(workspace, "policy-1").gate.cannot_tell == ("ties",), "what was not measured is missing"


def test_a_smaller_audit_undoes_no_failure(workspace: Workspace) -> None:
    """A version does not change: what was shown stays until as much shows the opposite."""
    fails = found("length_slope", 2.0, 1.5, 2.5, REWARD)
    assert fails.verdict == FAIL and fails.n == 50
    gate.keep(workspace, "reward-1", REWARD, [fails])
    untold = found("length_slope", 0.4, -1.0, 2.0, REWARD)
    passes = found("length_slope", 0.0, -0.05, 0.05, REWARD)
    assert (untold.verdict, passes.verdict) == (CANNOT_TELL, PASS)
    for weaker in ([], [untold], [replace(passes, n=49)]):
        kept = gate.keep(workspace, "reward-1", REWARD, weaker)
        assert kept == (fails,) and gate.decide(kept).failed == ("length_slope",)
    assert gate.keep(workspace, "reward-1", REWARD, [passes]) == (passes,)
    assert gate.keep(workspace, "reward-1", REWARD, [untold]) == (untold,)


def test_a_level_of_agreement_in_an_older_record_blocks_nothing(workspace: Workspace) -> None:
    """Verdicts that are one against one agree with any model by half: a calibrated one failed there."""
    whole = found("overconfidence", 0.0, -0.05, 0.05, REWARD)
    split = replace(found("overconfidence", 0.3, 0.2, 0.4, REWARD), name="overconfidence_split")
    assert split.verdict == FAIL
    gate.keep(workspace, "reward-1", REWARD, [whole, split])
    assert gate.read(workspace, "reward-1").measured[REWARD].checks == (whole,)
    assert gate.promote(workspace, "policy-1").verdict == PASS


def test_auditing_more_undoes_no_failure(workspace: Workspace) -> None:
    """Its p-value is just under 5 %: as one of three checks that are measured together it could not be told."""
    alone = found("swap_lean_age", 1.0, 0.51, 1.49, POLICY)
    others = [found(f"swap_lean_{axis}", 0.0, -0.1, 0.1, POLICY) for axis in ("faith", "gender")]
    beside = together([alone, *others], [rules().of(POLICY, check.name) for check in (alone, *others)])
    assert [check.verdict for check in (alone, *beside)] == [FAIL, CANNOT_TELL, PASS, PASS]

    gate.keep(workspace, "policy-1", POLICY, [alone], "initial")
    assert gate.standing(workspace, "policy-1").gate.failed == ("swap_lean_age",)
    for later in (others, beside):  # the last ones have it too
        gate.keep(workspace, "policy-1", POLICY, later, "initial")
        assert gate.standing(workspace, "policy-1").gate.failed == ("swap_lean_age",)
    for margin, verdict in ((0.495, FAIL), (0.505, CANNOT_TELL), (1.6, PASS)):  # a looser one is another question
        text = f"version = 1\n[policy.swap_lean]\nmargin = {margin}\n"
        (workspace.root / "gate.toml").write_text(text, encoding="utf-8")
        named = {check.name: check.verdict for check in gate.standing(workspace, "policy-1").checks}
        assert named["swap_lean_age"] == verdict


def test_what_is_said_of_a_check_is_what_it_comes_to_now(workspace: Workspace) -> None:
    """Whichever field of the rule was changed: by `fails` and `weight` border and margin stay."""
    fails = found("start", 0.4, 0.3, 0.49)
    gate.keep(workspace, "policy-2", EVALUATION, [fails], "policy-1")
    names = [f"swap_lean_{axis}" for axis in ("ages", "women_men", "countries")]
    near = [found(names[0], 1.0, 0.51, 1.49, POLICY), *(found(name, 0.0, -0.1, 0.1, POLICY) for name in names[1:])]
    corrected = together(near, [rules().of(POLICY, name) for name in names])
    assert corrected[0].verdict == CANNOT_TELL and "alone it fails" in corrected[0].sentence
    gate.keep(workspace, "policy-2", POLICY, corrected, "initial")
    workspace.promote("policy-1")

    def now(name: str) -> Check:
        return {check.name: check for check in gate.standing(workspace, "policy-2").checks}[name]

    assert (now("start"), now(names[0])) == (fails, corrected[0])
    text = "version = 1\n[evaluation.start]\nfails = 0.2\n[policy.swap_lean_ages]\nweight = 1000\n"
    (workspace.root / "gate.toml").write_text(text, encoding="utf-8")
    loosened, weighed = now("start"), now(names[0])
    assert loosened.verdict == CANNOT_TELL and "Since then gate.toml was changed" in loosened.sentence
    assert loosened.sentence.rpartition("Asked: ")[2].startswith("above 0.45; cannot tell.")
    assert weighed.verdict == FAIL and weighed.sentence.endswith("; FAILS.")


def test_what_could_not_be_told_among_many_is_corrected_still(workspace: Workspace) -> None:
    names = [f"swap_lean_{axis}" for axis in ("age", "faith", "gender")]
    alone = [found(names[0], 1.0, 0.51, 1.49, POLICY), *(found(name, 0.0, -0.1, 0.1, POLICY) for name in names[1:])]
    gate.keep(workspace, "policy-1", POLICY, together(alone, [rules().of(POLICY, name) for name in names]), "initial")
    assert not gate.standing(workspace, "policy-1").gate.blocks


FIGURES = {
    "collapse": ((0.9, 0.8, 0.95), (0.5, 0.1, 0.9), (0.1, 0.05, 0.2)),
    "perplexity": ((0.2, 0.1, 0.3), (0.05, 0.0, 0.1), (0.01, 0.0, 0.02)),
    "variety": ((0.05, 0.02, 0.08), (0.1, 0.05, 0.15), (0.9, 0.8, 1.0)),
    "start": ((0.4, 0.3, 0.44), (0.5, 0.4, 0.6), (0.6, 0.55, 0.65)),
    "matched_length": ((0.4, 0.3, 0.44), (0.5, 0.4, 0.6), (0.6, 0.55, 0.65)),
}
"""Guards of an evaluation: what fails, what cannot be told and what passes."""


def guards(name: str) -> list[Check]:
    checks = [found(name, *figures) for figures in FIGURES[name]]
    assert [check.verdict for check in checks] == [FAIL, CANNOT_TELL, PASS]
    return checks


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"start"}))  # which rests beside the start version
def test_a_smaller_evaluation_undoes_no_failure(workspace: Workspace, name: str) -> None:
    """It wins each time, and cannot tell, or passes on fewer, what had failed."""
    won = found("win_rate", 0.6, 0.55, 0.65)
    fails, untold, passes = guards(name)
    gate.keep(workspace, "policy-1", EVALUATION, [won, fails], "initial")
    for weaker in (untold, replace(untold, n=500), replace(passes, n=49)):
        assert gate.keep(workspace, "policy-1", EVALUATION, [won, weaker], "initial") == (won, fails)
        with pytest.raises(Blocked, match=f"fails: {name}"):
            gate.promote(workspace, "policy-1")
    assert gate.keep(workspace, "policy-1", EVALUATION, [won, passes], "initial") == (won, passes)
    assert gate.promote(workspace, "policy-1").verdict == PASS


@pytest.mark.parametrize("name", FIGURES)
def test_beside_another_version_a_failure_is_another_question_unless_that_has_no_part_in_it(
    workspace: Workspace, name: str
) -> None:
    fails, untold, _ = guards(name)
    gate.keep(workspace, "policy-1", EVALUATION, [fails], "initial")
    stays = name in ("perplexity", "start")
    assert gate.keep(workspace, "policy-1", EVALUATION, [untold], "policy-2") == (fails if stays else untold,)


def test_where_the_start_version_would_be_replaced_its_own_check_rests(workspace: Workspace) -> None:
    """As after a roll-back: `win_rate` has the word, and what was shown is there again beside another version."""
    fails, untold, _ = guards("start")
    gate.keep(workspace, "policy-1", EVALUATION, [fails], "policy-2")
    won = found("win_rate", 0.6, 0.55, 0.65)
    assert gate.keep(workspace, "policy-1", EVALUATION, [won], "initial") == (won, fails)
    assert "start" not in {check.name for check in gate.standing(workspace, "policy-1").checks}
    assert gate.keep(workspace, "policy-1", EVALUATION, [won, untold], "policy-2") == (won, fails)


@pytest.mark.parametrize("name", FIGURES)
def test_of_what_people_judge_the_newest_word_is_the_whole_one(workspace: Workspace, name: str) -> None:
    """Their verdicts add up, and are counted by no n; what is measured of texts had none once, and stays all the same.

    An AI annotator's word that promotes nothing goes once people judge.
    """
    fails, untold, passes = (replace(check, n=None) for check in guards(name))
    gate.keep(workspace, "policy-1", EVALUATION, [fails, Check(name="judge", verdict=FAIL)], "initial")
    stays = name in ("collapse", "perplexity", "variety")
    assert gate.keep(workspace, "policy-1", EVALUATION, [untold], "initial") == (fails if stays else untold,)
    assert gate.keep(workspace, "policy-1", EVALUATION, [passes], "initial") == (passes,)


@pytest.mark.parametrize(("before", "failed"), [(0.2, ("collapse",)), (0.35, ()), (None, ())])
def test_a_stricter_file_binds_how_alike_answers_may_be(
    workspace: Workspace, before: float | None, failed: tuple[str, ...]
) -> None:
    """Unless the version before said as much to everyone; an older record does not tell that from the threshold."""
    checks = [found("win_rate", 0.6, 0.55, 0.65), replace(found("collapse", 0.28, 0.26, 0.3), before=before)]
    gate.keep(workspace, "policy-1", EVALUATION, checks, "initial")
    assert not gate.standing(workspace, "policy-1").gate.blocks
    stricter = "version = 1\n[evaluation.collapse]\nthreshold = 0.25\n"
    (workspace.root / "gate.toml").write_text(stricter, encoding="utf-8")
    assert gate.standing(workspace, "policy-1").gate.failed == failed


@pytest.mark.parametrize("later", [[], [("cases", 2)]])
def test_what_failed_on_reported_answers_goes_with_the_case(workspace: Workspace, later: list[tuple[str, int]]) -> None:
    """Three cases, of which one is given again; then its words are deleted, or all three reports are taken back."""
    gate.keep(workspace, "policy-1", POLICY, [replace(found("cases", 0.3, 0.3, 0.3, POLICY), verdict=FAIL, n=3)])
    assert "cases" in gate.standing(workspace, "policy-1").gate.failed
    newest = [replace(found(name, 0.0, 0.0, 0.0, POLICY), verdict=PASS, n=n) for name, n in later]
    assert gate.keep(workspace, "policy-1", POLICY, newest) == tuple(newest)
    assert not gate.standing(workspace, "policy-1").gate.blocks


def test_cases_that_are_required_are_not_there_before_one_is(workspace: Workspace) -> None:
    (workspace.root / "gate.toml").write_text("version = 1\n[policy.cases]\nrequired = true\n", encoding="utf-8")
    gate.keep(workspace, "policy-1", POLICY, [])
    with pytest.raises(Blocked, match=r"cannot tell, which is required: cases.*without a reported answer"):
        gate.promote(workspace, "policy-1")


@pytest.mark.parametrize("override", [None, "the judges fell ill"])
@pytest.mark.parametrize("meanwhile", ["another is promoted", "it is rejected"])
def test_what_happens_while_a_policy_is_promoted_is_held_against_it_too(
    workspace: Workspace, meanwhile: str, override: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both promotions were let through against the same version; or a reviewer says no at the last moment."""
    policy = "policy-1" if override is None else "policy-2"
    looked, done = gate.standing, list[str]()

    def standing(*args: Any) -> gate.Standing:
        found = looked(*args)
        if not done:
            done.append(meanwhile)
            if meanwhile == "another is promoted":
                workspace.promote("policy-3")
            else:
                word = Review(decision=REJECTED, reason="It lies.", created_at="", by="account 1", against="initial")
                gate.decide_on(workspace, policy, word)
        return found

    version(workspace, "policy-3")
    monkeypatch.setattr(gate, "standing", standing)
    before = "policy-3" if meanwhile == "another is promoted" else "initial"
    said = "was to replace initial, and would policy-3 now" if before == "policy-3" else "fails: review"
    with pytest.raises(MannersError, match=said):
        gate.promote(workspace, policy, override)
    assert done and workspace.current_policy() == before
    assert gate.read(workspace, policy).overrides == (), "nothing was overridden"


def test_who_goes_back_to_what_is_rejected_meanwhile_does_not(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("policy-1", "policy-2"):
        workspace.promote(name)
    answers = iter([True, False])
    monkeypatch.setattr(gate, "goes_back", lambda *_: next(answers))
    with pytest.raises(MannersError, match="was rejected, or rolled back, meanwhile"):
        gate.promote(workspace, "policy-1")
    assert workspace.current_policy() == "policy-2"


def test_an_override_needs_a_reason_and_is_kept(workspace: Workspace) -> None:
    for reason in ("", "   ", "x" * 1001):
        with pytest.raises(UsageError, match="takes a reason"):
            gate.promote(workspace, "policy-2", reason)
    assert workspace.current_policy() == "initial"
    gate.promote(workspace, "policy-2", "the judges\nfell ill", "account 3")
    [kept] = gate.read(workspace, "policy-2").overrides
    assert (kept.reason, kept.by, kept.against) == ("the judges fell ill", "account 3", ("win_rate",))
    assert workspace.current_policy() == "policy-2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 1\n[reward.length_slope\n", "is not TOML"),
        ("[reward.length_slope]\nmargin = 1\n", "does not say `version = 1`"),
        ("version = 2\n", "does not say `version = 1`"),
        ("version = 1\n[police.x]\nmargin = 1\n", "police is none of"),
        ("version = 1\n[reward.lenght_slope]\nmargin = 1\n", "there is no check reward.lenght_slope"),
        ("version = 1\n[reward.ties]\nmargins = 1\n", "margins = 1 will not do"),
        ("version = 1\n[reward.ties]\nmargin = -1\n", "below 0"),
        ("version = 1\n[reward.ties]\nmargin = true\n", "margin = True will not do"),
        ("version = 1\n[reward.ties]\nmargin = nan\n", "margin = nan will not do"),
        ('version = 1\n[reward.ties]\nrequired = "no"\n', "required = no will not do"),
        ('version = 1\n[reward.ties]\nbetter = "up"\n', "better = up will not do"),
        ("version = 1\nreward = 3\n", "reward is none of"),
    ],
)
def test_a_mistake_in_the_file_is_named_and_opens_nothing(workspace: Workspace, text: str, said: str) -> None:
    (workspace.root / "gate.toml").write_text(text, encoding="utf-8")
    with pytest.raises(MannersError, match=said):
        gate.promote(workspace, "policy-1")
    assert workspace.current_policy() == "initial"


def ruled(root: Path, part: str, names: Iterable[str]) -> list[str]:
    """Require checks by their own names in a gate.toml; return what it requires then."""
    tables = "".join(f"[{part}.{name}]\nrequired = true\n" for name in names)
    (root / "gate.toml").write_text(f"version = 1\n{tables}", encoding="utf-8")
    return rules(root).required(part)


def test_a_rule_is_for_something_that_is_measured(workspace: Workspace) -> None:
    """A misspelt name whose beginning is one would bind nothing, and seem to."""
    for known in (
        "reward.probe_empty",
        "reward.shift_markdown",
        "reward.group_size",
        "policy.bias_bbq",
        "policy.cases",
    ):
        part, _, name = known.partition(".")
        assert name in ruled(workspace.root, part, [name])
    for wrong, near in (
        ("reward.probe_emtpy", "probe_empty"),
        ("reward.shift_typo", "shift_typos"),
        ("reward.accuracy_of_pairs", "gain_over_longer"),
        ("policy.swap_lean_sex", "swap_lean_women_men"),
        ("policy.swap", "swap_lean"),
        ("evaluation.win_rate_now", "matched_length"),
    ):
        part, _, name = wrong.partition(".")
        with pytest.raises(MannersError, match=f"there is no check {wrong} .*{near}.*: rename it"):
            ruled(workspace.root, part, [name])


@pytest.mark.parametrize("text", ["{", "[]", '{"measured": {"evaluation": {"checks": 3}}}'])
def test_a_damaged_record_lets_nothing_through(workspace: Workspace, text: str) -> None:
    (workspace.models / "policy-1" / "checks.json").write_text(text, encoding="utf-8")
    with pytest.raises(MannersError, match=r"checks.json is damaged"):
        gate.promote(workspace, "policy-1")


def test_the_command_and_the_function_come_by_the_gate(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "promote", "policy-2", "--workspace", str(workspace.root), "--json"]
    assert main(command) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["gate"]["cannot_tell"] == ["win_rate"] and "win_rate" in said.err
    assert workspace.current_policy() == "initial"
    with pytest.raises(Blocked):
        stages.models_promote(workspace, "policy-2")
    assert main([*command, "--override", ""]) == 2 and workspace.current_policy() == "initial"
    capsys.readouterr()
    assert main([*command, "--override", "a holiday"]) == 0
    assert json.loads(capsys.readouterr().out) == {"current": "policy-2", "overridden": ["win_rate"]}


def calls(tree: ast.AST, name: str) -> list[str]:
    """Return what a method of this name is called on."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == name]
    return [ast.unparse(node.value) for node in found]


def test_no_door_leads_round_the_gate() -> None:
    """Read from the source: who promotes asks the gate, and who writes down what is promoted is the workspace."""
    promoting, writing = dict[str, list[str]](), set[str]()
    for file in ROOT.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        name, tree = str(file.relative_to(ROOT)), ast.parse(text)
        promoting |= {name: asked} if (asked := calls(tree, "promote")) else {}
        named = calls(tree, "_set_promoted") + calls(tree, "start_from") + calls(tree, "standing_file")
        writing |= {name} if named or "current.json" in text else set()
    assert set(promoting) == {"audit/gate.py", "loop/evaluate.py", "loop/standing.py", "web/dashboard.py"}
    assert {asked for name, some in promoting.items() if name != "audit/gate.py" for asked in some} == {"gate"}
    knowing = {"workspace.py", "backup/take.py", "upkeep/checks.py"}
    assert writing == knowing, "a backup copies it, the doctor looks whether it is there, and nothing else knows where"
