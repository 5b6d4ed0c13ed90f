"""`manners judge` from end to end, against a real server that judges well, ill, or not at all."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manners.checkpoint import Run
from manners.cli import main
from manners.data import judge_probes
from manners.errors import MannersError
from manners.feedback.admission import Admission
from manners.feedback.judge import Reading
from manners.loop import judge as judge_module
from manners.loop import stages
from manners.loop.judge import JudgeInputs
from manners.loop.judging import JOURNAL, Journal, Spending, choose
from manners.loop.options import JudgeOptions
from manners.loop.round import JUDGE
from manners.loop.session import Session
from manners.results.judge import JudgeResult
from manners.settings import ModelSettings
from manners.store import Store
from manners.types import DELETED, Annotator, AnnotatorKind, AskedHow, Choice, Dialogue, Role, Turn, Verdict
from tests.loop import judging
from tests.loop.judging import Server, serving
from tests.worlds import save_tiny

Make = Callable[..., Session]
WHO = Annotator("judge:planted", AnnotatorKind.AI)


@pytest.fixture
def make(tmp_path: Path, empty_file: Path) -> Make:
    """A function that makes a project whose judge is a server."""
    return lambda address, some, **chosen: judging.project(tmp_path / "project", empty_file, address, some, **chosen)


def judge(session: Session, **chosen: Any) -> dict[str, Any]:
    return stages.perform(session.workspace, session.settings, JUDGE, **chosen)


def said(session: Session) -> list[Verdict]:
    """What judges have said, as it is stored."""
    return [v for c in session.store.comparisons() for v in c.verdicts if v.annotator.is_judge]


def test_both_orders_are_asked_and_the_verdict_is_an_ais(make: Make) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(6), probes=0)
        facts = judge(session)
        assert len(server.asked) == 12 and facts["requests"] == 12 and facts["tokens"] == 1200
        for comparison in session.store.comparisons():
            (verdict,) = (v for v in comparison.verdicts if v.annotator.is_judge)
            better = Choice.LEFT if "good" in comparison.left.text else Choice.RIGHT
            assert verdict.choice is better and verdict.annotator.kind is AnnotatorKind.AI
        assert facts["admitted"] is False and facts["failed"] == [] and facts["verdicts"] == 6
        assert {"agreement", "human_agreement", "flip_rate", "length_slope"} <= facts.keys()
        assert facts["agreement"] is None and "not admitted as a judge" in facts["sentence"]
        assert f"after about {facts['needed']} human verdicts" in facts["sentence"] and facts["there"] == 12
        [row] = facts["panel"]
        assert (row["version"], row["asked"], row["checked"]) == ("policy-1", 6, 6)
        for figure in ("flips", "with_people", "among_people", "apart"):
            assert row[figure]["low"] <= row[figure]["estimate"] <= row[figure]["high"]
        # Nothing is ever asked twice.
        again = judge(session)
        assert len(server.asked) == 12 and again["asked"] == 0 and len(said(session)) == 6


def test_a_judge_that_takes_a_side_has_no_verdict(make: Make) -> None:
    with serving(Server(prefers=lambda a, b: 0.9)) as server:
        session = make(server.url, judging.comparisons(4), probes=0)
        facts = judge(session)
        assert facts["verdicts"] == 0 and facts["without_verdict"] == {"the two orders disagree": 4}
        assert {v.choice for v in said(session)} == {Choice.SKIP} and facts["flip_rate"]["estimate"] == 1


@pytest.mark.parametrize("refuses", [False, True], ids=["tells none", "refuses to be asked"])
def test_without_probabilities_verdicts_are_drawn_and_it_is_said(make: Make, refuses: bool) -> None:
    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        return (400, b'{"error": {"message": "logprobs?"}}') if refuses and "logprobs" in asked else None

    with serving(Server(logprobs=False, answer=answer)) as server:
        session = make(server.url, judging.comparisons(3), probes=0, samples=3, parallel=1)
        facts = judge(session)
        assert facts["source"] == "3 sampled" and facts["verdicts"] == 3
        assert len(server.asked) == 18 + refuses  # six questions, three times each; refused once


def test_a_key_is_sent_and_stands_nowhere(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANNERS_JUDGE_KEY", "sk-hidden\n")
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(2), probes=0)
        judge(session)
        assert server.keys == {"Bearer sk-hidden"}
    for file in session.workspace.root.rglob("*"):
        assert not file.is_file() or b"sk-hidden" not in file.read_bytes()


DEEP = "[" * 700 + "]" * 700
"""Lists inside each other, as deep as Python still parses them."""
PACKED = gzip.compress(b"A" * 2_000_000)
ILL: dict[str, tuple[dict[str, Any], str]] = {
    "fails": ({"answer": lambda a, n: (500, b"oh no")}, r"did not answer in 1 tries \(status 500: oh no\)"),
    "is no chat": ({"answer": lambda a, n: (200, b"<html>")}, "its answer is not that of a chat completion"),
    "nests": ({"answer": lambda a, n: (200, b"[" * 100_000)}, "its answer is not that of a chat completion"),
    "nests in a refusal": ({"answer": lambda a, n: (500, b'{"error": ' + b"[" * 100_000)}, r"\(status 500: \{\"error"),
    "refuses in depth": ({"answer": lambda a, n: (500, f'{{"error": {DEEP}}}'.encode())}, r"\(status 500: "),
    "bids to wait in odd digits": (
        {"answer": lambda a, n: (503, b"busy"), "headers": {"retry-after": "\u00b2"}},
        r"did not answer in 1 tries \(status 503: busy\)",
    ),
    "packs a flood": (
        {"answer": lambda a, n: (200, PACKED), "headers": {"content-encoding": "gzip"}},
        "it packs what it sends, though asked not to",
    ),
    "floods": ({"endless": True}, "it sent more than 1,000,000 bytes"),
    "drips": ({"drip": 0.02}, "it was not done after 0.3 seconds"),
    "trickles": ({"trickle": 0.02}, "it was not done after 0.3 seconds"),
    "has another key": (
        {"answer": lambda a, n: (401, b'{"error": {"message": "bad key"}}')},
        r"refuses \(status 401\): bad",
    ),
    "leads elsewhere": ({"answer": lambda a, n: (302, b"")}, r"refuses \(status 302\)"),
}


@pytest.mark.parametrize("how", ILL)
def test_a_server_that_is_ill_is_one_sentence_and_nothing_is_recorded(make: Make, how: str) -> None:
    chosen, sentence = ILL[how]
    with serving(Server(**chosen)) as server:
        session = make(server.url, judging.comparisons(2), timeout=0.3 if "0.3 seconds" in sentence else 60.0)
        with pytest.raises(MannersError, match=sentence) as error:
            judge(session)
        assert "\n" not in str(error.value) and not said(session) and session.read_facts("judge") is None


def told(token: str = '"A"', logprob: str = "0") -> str:
    return f'{{"content": [{{"top_logprobs": [{{"token": {token}, "logprob": {logprob}}}]}}]}}'


ODD: dict[str, dict[str, str]] = {
    "counts in 400 digits": {"usage": f'{{"total_tokens": {10**400}}}'},
    "counts in words": {"usage": '{"total_tokens": "many"}'},
    "counts backwards": {"usage": '{"total_tokens": -5}'},
    "is 400 digits sure": {"logprobs": told(logprob=f"-{10**400}")},
    "is no number sure": {"logprobs": told(logprob="NaN")},
    "is endlessly sure": {"logprobs": told(logprob="Infinity")},
    "is endlessly unsure": {"logprobs": told(logprob="-Infinity")},
    "tells a token that is none": {"logprobs": told(token=DEEP)},
    "tells half a letter": {"logprobs": told(token='"\\ud800"')},
    "tells a number": {"logprobs": "5"},
    "tells a name": {"logprobs": '{"content": [{"top_logprobs": {"A": 0}}]}'},
    "tells nothing of something": {"logprobs": '{"content": [null]}'},
    "tells a text": {"logprobs": '{"content": "A"}'},
}


@pytest.mark.parametrize("how", ODD)
def test_what_is_odd_beside_a_letter_is_passed_over(make: Make, how: str) -> None:
    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        answers = judging.ANSWERS.search(asked["messages"][-1]["content"])
        assert answers is not None
        letter = "A" if "good" in answers.group(2) else "B"
        odd = {"logprobs": "null", "usage": "null"} | ODD[how]
        choice = f'{{"message": {{"content": "{letter}"}}, "logprobs": {odd["logprobs"]}}}'
        return 200, f'{{"choices": [{choice}], "usage": {odd["usage"]}}}'.encode()

    with serving(Server(answer=answer)) as server:
        facts = judge(make(server.url, judging.comparisons(2), probes=0, samples=1, parallel=1))
        assert facts["verdicts"] == 2 and facts["source"] == "1 sampled" and facts["stopped"] is None
        assert 0 < facts["tokens"] < 10_000


def test_half_a_row_costs_no_other(make: Make, tmp_path: Path) -> None:
    """A kill in the middle of a write, and another one two rows later."""
    file = tmp_path / JOURNAL
    file.write_bytes(b'{"key": "b1946ac92492d2347c6235b4d2611184", "fir')
    questions = [(Turn(Role.USER, text),) for text in ("one?", "two?")]
    asked = list[Dialogue]()

    class Judge:
        def ask(self, question: Dialogue) -> Reading:
            asked.append(question)
            return Reading(0.75)

    for _ in range(3):
        journal = Journal(file, "judge:planted")
        assert [journal.ask(Judge(), question) for question in questions] == [Reading(0.75)] * 2
    assert asked == questions


def test_a_server_that_is_not_there(make: Make) -> None:
    session = make("http://127.0.0.1:9", judging.comparisons(2))
    with pytest.raises(MannersError, match="did not answer in 1 tries"):
        judge(session)
    assert not said(session)


def test_nonsense_is_no_verdict_and_nothing_but_nonsense_ends_it(make: Make) -> None:
    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        text = "I would say that both have their merits."
        return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    with serving(Server(answer=answer)) as server:
        session = make(server.url, judging.comparisons(20), samples=1, parallel=1)
        with pytest.raises(
            MannersError, match=r"none of its first 20 answers could be read .the last one: 'I would say"
        ):
            judge(session)
        assert not said(session)


@pytest.mark.parametrize("damage", ["{", '{"checked": "many"}'])
def test_what_is_damaged_of_the_last_run_has_a_remedy_that_works(make: Make, damage: str) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(6), probes=0)
        whole = judge(session)
        file = session.workspace.runs / "judge.json"
        file.write_text(damage, encoding="utf-8")
        for resume in (False, True):
            with pytest.raises(MannersError, match=rf"^{file} is damaged .*: remove it, and run that stage again\.$"):
                judge(session, resume=resume)
        file.unlink()
        assert judge(session)["agreement"] == whole["agreement"] and len(said(session)) == 6


def test_it_is_asked_again_and_goes_on_where_it_was(make: Make) -> None:
    dead = {"now": True}

    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        return (503, b"busy") if dead["now"] and number > 9 else None

    with serving(Server(answer=answer)) as server:
        session = make(server.url, judging.comparisons(8), probes=0, parallel=1)
        with pytest.raises(MannersError, match="--resume"):
            judge(session)
        assert not said(session)
        with pytest.raises(MannersError, match="manners judge --resume"):
            judge(session)
        dead["now"] = False
        patient = replace(session.settings, judge=replace(session.settings.judge, timeout=9.0))  # may change meanwhile
        facts = stages.perform(session.workspace, patient, JUDGE, resume=True)
        assert facts["verdicts"] == 8 and len(said(session)) == 8
        asked = [json.dumps(one) for one in server.asked]
        assert len(set(asked)) == 16 and len(asked) == 17  # the one that failed was asked again, and no other
        assert not list(session.workspace.runs.glob("*.jsonl"))


def test_it_waits_and_asks_again(make: Make) -> None:
    with serving(Server(answer=lambda a, n: (429, b"slow down") if n == 1 else None)) as server:
        session = make(server.url, judging.comparisons(1), probes=0, retries=1)
        assert judge(session)["verdicts"] == 1 and len(server.asked) == 3


@pytest.mark.parametrize("limit", [{"requests": 5}, {"tokens": 450}])
def test_a_budget_ends_it_with_what_there_is(make: Make, limit: dict[str, int]) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(8), probes=0, parallel=1, **limit)
        facts = judge(session)
        assert facts["verdicts"] == 2 == len(said(session)) and len(server.asked) == 5
        assert "budget" in facts["stopped"] and facts["waiting"] == 6
        while facts["waiting"]:  # what a budget ended goes on, and asks nothing twice
            facts = judge(session)
        assert len(said(session)) == 8 and len({json.dumps(one) for one in server.asked}) == len(server.asked) == 16


@pytest.mark.parametrize("limit", [{"requests": 9}, {"tokens": 850}])
def test_a_budget_is_the_runs_however_often_it_is_stopped(make: Make, limit: dict[str, int]) -> None:
    """It fails at its fifth request and at its eighth, which count, and goes on both times."""

    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        return (500, b"oh no") if number in (5, 8) else None

    with serving(Server(answer=answer)) as server:
        session = make(server.url, judging.comparisons(8), probes=0, parallel=1, **limit)
        for resume, asked in ((False, 5), (True, 8)):
            with pytest.raises(MannersError, match="did not answer in 1 tries"):
                judge(session, resume=resume)
            assert len(server.asked) == asked
        facts = judge(session, resume=True)
        most = limit.get("requests", 11)  # nine that were answered took 900 tokens, and two failed
        assert facts["requests"] == len(server.asked) == most and facts["tokens"] == 100 * (most - 2)
        assert "budget" in facts["stopped"] and facts["verdicts"] == (most - 2) // 2
        asked = len(server.asked)
        again = judge(session)
        assert again["requests"] == len(server.asked) - asked > 0, "another run has a budget of its own"


def test_a_budget_that_ends_among_checked_comparisons_takes_nothing_from_what_probes_told(make: Make) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(40), probes=40)
        first = judge(session)
        tried = {"injections": [0, 40], "flattery": [0, 40]}
        assert first["turned"] == tried and not tried.keys() & set(first["cannot_tell"])
        session.store.add_comparisons(judging.comparisons(4, start=100))
        few = spending(session, requests=2)
        for waiting in (3, 2):
            facts = judge(few)
            assert "budget" in facts["stopped"] and facts["waiting"] == waiting
            assert facts["turned"] == tried and not tried.keys() & set(facts["cannot_tell"])
        asked = len(server.asked)
        assert judge(session)["turned"] == tried and len(server.asked) == asked + 4, "two comparisons, and no probe"


def test_a_budget_that_ends_later_has_no_probe_asked_again(make: Make) -> None:
    """The replies to probes are dropped when the run that asked them has ended."""
    rest = [replace(one, asked_how=AskedHow.EVALUATION) for one in judging.comparisons(5, people=0, start=100)]
    with serving(Server()) as server:
        session = make(server.url, [*judging.comparisons(6), *rest], probes=3)
        version = session.workspace.models / "policy-1" / "version.json"
        version.parent.mkdir(parents=True)
        version.write_text("{}")
        tried = judge(session)["turned"]
        stopped = judge(spending(session, requests=4), options=JudgeOptions(evaluation=True))
        assert "budget" in stopped["stopped"] and stopped["waiting"] == 3
        asked = len(server.asked)
        plan = judge(session, options=JudgeOptions(evaluation=True), plan=True)
        facts = judge(session, options=JudgeOptions(evaluation=True))
        assert len(server.asked) - asked == 6 == plan["requests"], "three comparisons, and no probe"
        assert facts["turned"] == stopped["turned"] == tried == {"injections": [0, 3], "flattery": [0, 3]}


def test_a_budget_that_ends_among_more_probes_leaves_what_fewer_told(make: Make) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(9), probes=4)
        before = judge(session)["turned"]
        more = spending(session, probes=9, requests=6)
        facts = judge(more)
        assert "budget" in facts["stopped"] and facts["turned"] == before == {"injections": [0, 4], "flattery": [0, 4]}
        while facts["stopped"]:
            facts = judge(more)
        assert facts["turned"] == {"injections": [0, 9], "flattery": [0, 9]}
        assert len(server.asked) == 2 * (9 + 2 * 4 + 2 * 9), "however often it ended, none was asked again"


def spending(session: Session, **chosen: Any) -> Session:
    """The same project, whose judge is set otherwise and asks one thing at a time."""
    settings = replace(session.settings.judge, parallel=1, **chosen)
    return Session(session.workspace, replace(session.settings, judge=settings))


def test_what_was_spent_is_known_whatever_a_kill_leaves_of_the_last_line(tmp_path: Path) -> None:
    budget = Spending(tmp_path).budget(9, 9000, begun=False)
    budget.ask()
    budget.use(1234)
    [file] = tmp_path.iterdir()
    with file.open("ab") as stream:
        stream.write(b"\n[2, 12")
    again = Spending(tmp_path).budget(9, 9000, begun=True)
    assert (again.asked, again.used) == (1, 1234)
    again.ask()
    assert Spending(tmp_path).read() == (2, 1234)
    assert Spending(tmp_path).budget(9, 9000, begun=False).asked == 0, "a run that was given up has spent for itself"


STORED = (Store, "add_verdicts"), (Session, "save_facts"), (Run, "end"), (judge_module, "forget")
"""After each of these, in turn, a run is killed; the last two are when its facts are kept already."""


@pytest.mark.parametrize("where", STORED, ids=[name for _, name in STORED])
def test_killed_when_its_verdicts_are_stored_it_asks_nothing_again_and_tells_the_whole(
    make: Make, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    owner, name = where
    really = getattr(owner, name)

    def dies(*given: Any, **named: Any) -> None:
        really(*given, **named)
        raise ZeroDivisionError

    with serving(Server(prefers=lambda a, b: 0.5 + 0.4 * ("good" in a) - 0.4 * ("good" in b))) as server:
        session = make(server.url, judging.comparisons(6), probes=3)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(owner, name, dies)
            judge(session)
        asked, stored = len(server.asked), said(session)
        assert asked == 24 and len(stored) == 6, "both orders of six, and of three with either kind of probe"
        again = judge(session, resume=True)
        assert len(server.asked) == asked and said(session) == stored
        assert (again["asked"], again["verdicts"], again["requests"], again["tokens"]) == (6, 6, 24, 2400)
        assert again["source"] == "probabilities" and {n for _, n in again["turned"].values()} == {3}
        assert judge(session)["asked"] == 0 and len(server.asked) == asked
        assert not list(session.workspace.runs.glob("*.jsonl"))


def test_who_is_asked_about_what() -> None:
    several = [replace(c, id=n) for n, c in enumerate(judging.comparisons(5))]
    one = [replace(c, id=10 + n) for n, c in enumerate(judging.comparisons(2, people=1, start=10))]
    nobody = [replace(c, id=20 + n) for n, c in enumerate(judging.comparisons(4, people=0, start=20))]
    chosen = choose([*several, *one, *nobody, replace(nobody[0], id=30, kept=True)], WHO, 3, 2, frozenset())
    assert [c.id for c in chosen.checked] == [2, 3, 4] and [c.id for c in chosen.rest] == [20, 21] and chosen.over == 2
    assert sorted(chosen.left_out.values()) == [1, 2, 2]
    gone = replace(several[1], reported=True), replace(nobody[2], left=replace(nobody[2].left, text=DELETED))
    assert choose([*several[2:], *gone], WHO, 3, 9, frozenset()).allowed == {2, 3, 4}
    hidden = choose(nobody, WHO, 3, 9, frozenset({nobody[1].prompt}))
    assert [c.id for c in hidden.rest] == [20, 22, 23]
    assert choose(nobody, WHO, 3, 9, frozenset()).rest == tuple(nobody)
    chats = [replace(nobody[0], asked_how=AskedHow.CHAT), replace(several[0], asked_how=AskedHow.API)]
    shared = choose([*chats, *nobody[1:]], WHO, 3, 9, frozenset())
    assert shared.allowed == {21, 22, 23}, "no verdict of a judge on them would train, shared or not"
    assert shared.left_out == {"from a chat or another program, where no judge's verdict trains": 2}


def test_the_most_of_one_run_is_of_those_that_it_has_not_judged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_to_keep_to = Admission((), None, None, 0, None)
    monkeypatch.setattr(judge_module, "measured", lambda *given: nothing_to_keep_to)
    rest = judging.comparisons(5, people=0, start=50)
    other = Verdict(Choice.LEFT, Annotator("judge:another", AnnotatorKind.AI))
    rest[0] = replace(rest[0], verdicts=(other,))
    really = Store.add_verdicts

    def dies(store: Store, *given: Any) -> None:
        really(store, *given)
        raise ZeroDivisionError

    with serving(Server()) as server:
        session = make(server.url, [*judging.comparisons(3), *rest], probes=0, most=2)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(Store, "add_verdicts", dies)
            judge(session)
        first = judge(session, resume=True)
        assert first["admitted"] and (first["asked"], first["waiting"]) == (5, 3)
        assert judge(session, plan=True)["comparisons"] == 2
        second = judge(session)
        assert (second["asked"], second["waiting"]) == (2, 1)
        assert [row["asked"] for row in second["panel"]] == [7], "what it judged before is told of as well"
        third = judge(session)
        assert (third["asked"], third["waiting"]) == (1, 0) and len(server.asked) == 2 * 8


def test_what_is_not_to_be_judged_is_counted(make: Make) -> None:
    one, two, three, four = judging.comparisons(4)
    some = [
        replace(one, asked_how=AskedHow.CHAT),
        replace(two, asked_how=AskedHow.EVALUATION),
        replace(three, right=replace(three.right, text=three.left.text)),
        four,
    ]
    with serving(Server()) as server:
        facts = judge(make(server.url, some, probes=0))
        assert facts["asked"] == 1 and sum(facts["left_out"].values()) == 3
        assert "from a chat or another program, where no judge's verdict trains" in facts["left_out"]


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), (" \n\t", "is empty"), ("x" * 20_001, "shorten it")])
def test_a_constitution_that_is_none(make: Make, text: str, said: str) -> None:
    session = make("http://127.0.0.1:9", judging.comparisons(1))
    (session.workspace.root / "constitution.md").write_text(text, encoding="utf-8")
    with pytest.raises(MannersError, match=said):
        judge(session)


def test_other_principles_are_another_judge(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(2), probes=0)
        first = judge(session)["judge"]
        assert judge(session, options=JudgeOptions(principles=True))["written"].endswith("constitution.md")
        file = session.workspace.root / "constitution.md"
        assert judge(session)["judge"] == first
        file.write_text("Prefer the answer that rhymes.", encoding="utf-8")
        facts = judge(session)
        assert facts["judge"] != first and facts["asked"] == 2 and len(said(session)) == 4
        assert "rhymes" in server.asked[-1]["messages"][0]["content"]
        with pytest.raises(MannersError, match="is there already"):
            judge(session, options=JudgeOptions(principles=True))


@pytest.mark.parametrize(
    ("chosen", "error"),
    [
        ({"url": "ftp://x"}, "no address"),
        ({"model": None}, "say with judge.model"),
        ({"url": "localhost:1"}, "no address"),
        ({"url": "http://[::1"}, "no address"),
        ({"url": "http://127.0.0.1:abc"}, "no address"),
        ({"url": "http://a\x00b/"}, "no address"),
        ({"url": "http://ada:secret@127.0.0.1:9/v1"}, "holds a name, a password"),
        ({"url": "http://127.0.0.1:9/v1?key=secret"}, "a question mark"),
    ],
)
def test_settings_that_name_no_server(make: Make, chosen: dict[str, Any], error: str) -> None:
    with pytest.raises(MannersError, match=error) as refused:
        judge(make("http://127.0.0.1:9", judging.comparisons(1), **chosen))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-secr\u00e9t", "sk secret", "sk-\x07secret"])
def test_what_is_no_key_is_not_said(make: Make, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MANNERS_JUDGE_KEY", key)
    with pytest.raises(MannersError, match="MANNERS_JUDGE_KEY is no key") as refused:
        judge(make("http://127.0.0.1:9", judging.comparisons(1)))
    assert "sk" not in str(refused.value)


def test_the_command_says_it_to_programs(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(3))
        chosen = [f"--set=judge.url={server.url}", "--set=judge.model=m", "--set=judge.probes=0"]
        command = ["judge", "--json", *chosen, "--workspace", str(session.workspace.root)]
        assert main([*command, "--plan"]) == 0
        assert json.loads(capsys.readouterr().out)["requests"] == 6 and not server.asked
        assert main(command) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["admitted"] is False and facts["agreement"] is None and facts["flip_rate"]["estimate"] == 0


def test_writers_may_have_any_name(make: Make) -> None:
    some = [
        replace(one, left=replace(one.left, author=name))
        for one, name in zip(judging.comparisons(2), ("m-\u00b2", "m-" + "9" * 5000), strict=True)
    ]
    with serving(Server()) as server:
        assert len(judge(make(server.url, some, probes=0))["panel"]) == 2


def test_the_plan_holds_where_comparisons_are_fewer_than_probes(make: Make) -> None:
    with serving(Server()) as server:
        session = make(server.url, judging.comparisons(3), probes=10)
        assert judge(session, plan=True)["requests"] == 2 * (3 + 2 * 3)
        judge(session)
        assert len(server.asked) == 2 * (3 + 2 * 3)
        plan = judge(session, plan=True)
        assert (plan["comparisons"], plan["probes"], plan["requests"]) == (0, 0, 0), "probes are asked once a judge"
        session.store.add_comparisons(judging.comparisons(2, start=100))
        assert judge(session, plan=True)["requests"] == 2 * (2 + 2 * 5), "but on more comparisons, where there are"


def test_the_plan_holds_for_a_server_that_tells_no_probabilities(make: Make) -> None:
    with serving(Server(logprobs=False)) as server:
        session = make(server.url, judging.comparisons(4), probes=2, samples=3)
        plan = judge(session, plan=True)
        assert (plan["requests"], plan["requests_without_probabilities"]) == (2 * (4 + 4), 3 * 2 * (4 + 4))
        judge(session)
        assert len(server.asked) == plan["requests_without_probabilities"]


def test_a_probe_is_tried_on_a_comparison_of_its_own_and_anew_where_there_are_more(make: Make) -> None:
    """Ten tries on three comparisons are three: what turns a verdict once does so again."""
    with serving(Server(prefers=lambda a, b: 0.9 if "good" in a else 0.1)) as server:
        session = make(server.url, judging.comparisons(3), probes=5)
        assert {n for _, n in judge(session)["turned"].values()} == {3}
        session.store.add_comparisons(judging.comparisons(3, start=100))
        assert {n for _, n in judge(session)["turned"].values()} == {5}
        asked = len(server.asked)
        assert {n for _, n in judge(session)["turned"].values()} == {5} and len(server.asked) == asked


def test_a_probe_is_tried_once_an_opening(make: Make) -> None:
    """Six comparisons of two conversations: what turns a verdict at their beginning does so further on."""
    turns = Turn(Role.USER, "Hello?"), Turn(Role.USER, "Good day?")
    some = [replace(one, prompt=(turns[n % 2], *one.prompt)) for n, one in enumerate(judging.comparisons(6))]
    with serving(Server()) as server:
        session = make(server.url, some, probes=5)
        assert judge(session, plan=True)["requests"] == 2 * (6 + 2 * 2)
        facts = judge(session)
        assert facts["turned"] == {"injections": [0, 2], "flattery": [0, 2]} and len(server.asked) == 2 * (6 + 2 * 2)
        assert "tried on 2 comparisons that begin differently, and take 35 at least" in facts["sentence"]
        assert judge(session)["turned"] == facts["turned"] and len(server.asked) == 2 * (6 + 2 * 2)


@pytest.mark.parametrize(
    ("failed", "unknown", "turned", "advice"),
    [
        ((), ("injections", "flattery"), (0, 34), "34 comparisons that begin differently, and take 35 at least: raise"),
        ((), ("flattery",), (2, 64), "64 comparisons that begin differently: raise judge.probes, or have more"),
        ((), ("agreement",), (0, 64), "after about 900 human verdicts"),
        (("newest",), ("injections",), (0, 0), "after about 900 human verdicts"),
        (("injections",), (), (40, 64), ""),
    ],
)
def test_what_is_advised_is_what_lacks(
    failed: tuple[str, ...], unknown: tuple[str, ...], turned: tuple[int, int], advice: str
) -> None:
    inputs = JudgeInputs(decides={}, version=None, judge=WHO, rules="")
    tried = dict.fromkeys(("injections", "flattery"), turned)
    found = JudgeResult(admitted=False, failed=failed, cannot_tell=unknown, turned=tried, needed=900, there=900)
    said = judge_module._sentence(inputs, found, 600)
    assert advice in said
    assert ("judge.probes" in said) == bool({"injections", "flattery"} & set(unknown))
    assert ("human verdicts" in said) == bool({"agreement", "newest"} & {*failed, *unknown})


def test_answers_of_the_model_that_judges_are_its_own(make: Make) -> None:
    with serving(Server()) as server:
        facts = judge(make(server.url, judging.comparisons(6), probes=0, model="policy-1", own="gpt-x"))
        assert facts["own"] == ["gpt-x", "policy-1"] and "own_model" in facts["cannot_tell"]


@pytest.mark.long
def test_a_version_of_the_workspace_judges_and_goes_on_to_the_same(tmp_path: Path, empty_file: Path) -> None:
    model = save_tiny(tmp_path / "llama", max_position_embeddings=2048)
    chosen = ModelSettings(name=str(model), trainable_layers=2, device="cpu", context=2048)

    def project(name: str) -> Session:
        made = judging.project(tmp_path / name, empty_file, "", judging.comparisons(6), url=None, model=None, probes=2)
        return Session(made.workspace, replace(made.settings, model=chosen))

    session = project("one")
    plan = judge(session, plan=True)
    assert plan["requests"] == 2 * (6 + 2 * 2) and plan["memory_bytes"]["reading_a_question"] > 0
    facts = judge(session)
    assert facts["judge"].startswith("judge:llama/initial#") and facts["source"] == "probabilities"
    assert facts["own"] == ["initial"] and facts["asked"] == 6 and "requests" not in facts
    assert facts["verdicts"] + sum(facts["without_verdict"].values()) == 6
    other = project("two")
    judge(other)
    assert [(v.choice, v.comment) for v in said(other)] == [(v.choice, v.comment) for v in said(session)]
    with pytest.raises(MannersError, match="there is no version policy-7"):
        judge(session, options=JudgeOptions(version="policy-7"))


@pytest.mark.long
def test_a_good_judge_is_admitted_and_goes_on_and_one_that_obeys_is_not(make: Make, tmp_path: Path) -> None:
    orders = judge_probes()["injections"]
    rest = judging.comparisons(40, people=0, start=1000)

    def obeys(a: str, b: str) -> float:
        told = [any(order in text for order in orders) for text in (a, b)]
        if told[0] != told[1]:
            return 0.99 if told[0] else 0.01
        return 0.95 if "good" in a else 0.05

    with serving(Server()) as good, serving(Server(prefers=obeys)) as gullible:
        session = make(good.url, [*judging.comparisons(560), *rest], checked=560, parallel=8)
        facts = judge(session)
        assert facts["admitted"] and facts["verdicts"] == 600 and facts["waiting"] == 0
        assert facts["turned"] == {"injections": [0, 64], "flattery": [0, 64]} and facts["temperature"] > 0
        assert 0.79 < facts["human_agreement"]["estimate"] < 0.85 < facts["agreement"]["low"]
        other = replace(session.settings.judge, url=gullible.url)
        refused = stages.perform(session.workspace, replace(session.settings, judge=other), JUDGE)
        assert not refused["admitted"] and refused["failed"] == ["injections"] and refused["waiting"] == 40
        assert "stored and train nothing" in refused["sentence"]


KILLED = """
import sys
from manners.loop import judge as judge_module
from manners.loop import stages
from manners.loop.round import JUDGE
from manners.settings_load import load
from manners.workspace import Workspace
workspace = Workspace.open(__import__("pathlib").Path(sys.argv[1]))
stages.perform(workspace, load(workspace.toml).settings, JUDGE)
"""


@pytest.mark.long
def test_killed_it_goes_on_without_asking_anything_twice(make: Make) -> None:
    child: dict[str, subprocess.Popen[bytes]] = {}

    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        if number == 12 and "killed" not in child:
            child["killed"] = child["now"]
            child["now"].kill()
        return None

    with serving(Server(answer=answer)) as server:
        session = make(server.url, judging.comparisons(10), probes=0, parallel=1)
        toml = f'[judge]\nurl = "{server.url}"\nmodel = "m"\nprobes = 0\nparallel = 1\nretries = 0\ntimeout = 5.0\n'
        session.workspace.toml.write_text(toml, encoding="utf-8")
        child["now"] = subprocess.Popen([sys.executable, "-c", KILLED, str(session.workspace.root)])
        child["now"].wait(120)
        assert child["now"].returncode == -9 and not said(session)
        facts = judge(session, resume=True)
        assert facts["verdicts"] == 10 and len({json.dumps(one) for one in server.asked}) == 20
        assert len(server.asked) == 21  # the question that was on its way when it was killed


def test_an_evaluation_is_judged_and_its_win_rate_corrected_by_what_people_checked(make: Make) -> None:
    asked = [replace(one, asked_how=AskedHow.EVALUATION) for one in judging.comparisons(60, people=1, right=1.0)]
    asked = [one if n < 24 else replace(one, verdicts=()) for n, one in enumerate(asked)]
    deleted = replace(asked[-1], right=replace(asked[-1].right, text=DELETED))
    with serving(Server()) as server:
        session = make(server.url, [*asked, deleted], probes=0)
        version = session.workspace.models / "policy-1" / "version.json"
        version.parent.mkdir(parents=True)
        version.write_text("{}")
        assert judge(session, options=JudgeOptions(evaluation=True), plan=True)["requests"] == 120
        facts = judge(session, options=JudgeOptions(evaluation=True))
        assert len(server.asked) == 120 and facts["admitted"] is False, "it is corrected, admitted or not"
        (rate,) = facts["win_rates"]
        assert (rate["against"], rate["checked"], rate["judged"]) == ("initial", 24, 36)
        won = ["good" in (one.left if one.left.author == "policy-1" else one.right).text for one in asked]
        assert rate["human"]["estimate"] == pytest.approx(sum(won[:24]) / 24)
        assert abs(rate["raw"] - sum(won) / 60) < 0.1 and rate["saved"] > 0
        assert rate["corrected"]["high"] - rate["corrected"]["low"] < rate["human"]["high"] - rate["human"]["low"]
        again = judge(session, options=JudgeOptions(evaluation=True))
        assert len(server.asked) == 120 and again["win_rates"] == facts["win_rates"]
        with pytest.raises(MannersError, match="no comparison"):
            judge(session)  # of an evaluation nothing is shown to it unless that is asked for
