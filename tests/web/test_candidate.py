"""A candidate beside the promoted policy: who is asked about it, what is stored, and that nothing learns from it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect
from safetensors.torch import save_file
from starlette.testclient import TestClient

from manners.audit import gate
from manners.audit.record import change
from manners.cli import main
from manners.errors import MannersError
from manners.loop import tried
from manners.models.requests import EngineState, Event, GenerationRequest, Phase
from manners.results.audit import APPROVED, REJECTED, Review
from manners.reward.labelled import LeftOut
from manners.reward.verdicts import label
from manners.settings import ModelSettings, ServeSettings, Settings
from manners.store import Store, gold
from manners.store.files.formats import Format
from manners.store.files.prompts import PRIVATE, TRIED, export_prompts
from manners.store.files.transfer import export_comparisons, import_comparisons, preview
from manners.store.never import Never
from manners.store.records import VersionRecord
from manners.store.views import open_comparisons
from manners.types import (
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.web import chat
from manners.web.app import create_app
from manners.web.candidate import Question, Trial, question
from manners.web.engine import Engine
from manners.web.site import Site
from manners.workspace import Workspace
from tests.conftest import some
from tests.web.conftest import Place
from tests.web.scripted import Scripted
from tests.web.test_openai import listening

TRIAL = Trial("policy-3", "policy-2", 1.0)
BOTH = EngineState(Phase.READY, "policy-2", candidate="policy-3")


def site_of(place: Place, engine: Scripted, trial: Trial = TRIAL, *, ask: float = 0.0, local: bool = True) -> Site:
    settings = replace(Settings(), serve=ServeSettings(chat_ask=ask, shortest_view=0))
    workspace = Workspace.open(place.folder)
    return Site(workspace, settings, place.store, place.accounts, local, "http://127.0.0.1", engine, trial=trial)


def client_of(place: Place, engine: Scripted, trial: Trial = TRIAL, *, ask: float = 0.0) -> TestClient:
    return TestClient(create_app(site_of(place, engine, trial, ask=ask)), "http://127.0.0.1")


def begin(client: TestClient) -> str:
    return str(client.post("/chat/begin", json={}).json()["key"])


def say(client: TestClient, key: str, text: str) -> dict[str, Any]:
    """Say something, and return what comes last."""
    said = client.post(f"/chat/{key}/say", json={"text": text}).text
    last: dict[str, Any] = json.loads(said.strip().split("\n\n")[-1].removeprefix("data: "))
    return last


def choose(client: TestClient, key: str, asked: dict[str, Any], choice: Choice) -> None:
    body = {"comparison": asked["comparison"], "choice": choice.value, "seconds": 5.0}
    assert client.post(f"/chat/{key}/choose", json=body).status_code == 200


def test_both_answer_blind_the_choice_is_kept_and_the_chosen_one_goes_on(
    alone: Place, open_page: Callable[..., Page]
) -> None:
    engine = Scripted(("I am ChatGPT.", "Good."), BOTH)
    with listening(site_of(alone, engine)) as url:
        page = open_page(f"{url}/chat")
        page.get_by_role("button", name="I agree, begin").click()
        for text in ("How do I bake?", "And then?"):
            page.get_by_label("Your message").fill(text)
            page.get_by_label("Your message").press("Enter")
            expect(page.locator(".two .turn")).to_have_count(2)
            assert not re.search(r"policy|candidate|promoted", page.locator("#turns").inner_html())
            page.wait_for_selector("[data-choice=right][aria-disabled=false]")
            page.locator("[data-choice=right]").click()
            expect(page.locator(".two")).to_have_count(0)
    first, second = alone.store.comparisons(AskedHow.CANDIDATE)
    for one, request in zip((first, second), engine.asked, strict=True):
        sides = ["policy-2", "policy-2"]
        assert request.candidate is not None and request.count == 2
        sides[request.candidate] = "policy-3"
        assert [one.left.author, one.right.author] == sides and one.ask_probability == 1.0
        assert [verdict.choice for verdict in one.verdicts] == [Choice.RIGHT]
    assert engine.asked[1].prompt[1].text == first.right.text == "1: I am [model]. "
    assert alone.store.comparisons(AskedHow.CHAT) == []


@dataclass
class Waits(Scripted):
    """Goes no further than three words before it may."""

    may: threading.Event = field(default_factory=threading.Event)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Answer."""
        written = 0
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event
                written += 1
                while written == 3 and not self.may.is_set():
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("end", some(["done before it is read", "stop", "done"], 1))
def test_nothing_is_shown_of_either_before_both_are_done_so_that_no_pace_tells(
    alone: Place, open_page: Callable[..., Page], end: str
) -> None:
    engine = Waits(("one two three four five six",), BOTH)
    with listening(site_of(alone, engine)) as url:
        page = open_page(f"{url}/chat")
        page.get_by_role("button", name="I agree, begin").click()
        page.get_by_label("Your message").fill("Hello?")
        page.get_by_label("Your message").press("Enter")

        def ends_first(route: Route) -> None:
            engine.may.set()
            while httpx.get(route.request.url.removesuffix("/ongoing")).json()["ongoing"]:
                time.sleep(0.02)
            route.continue_()

        for again in (False, True):
            expect(page.locator("#notice")).to_contain_text("Both answers are being written")
            page.wait_for_timeout(500)
            assert page.locator(".two .plain").all_inner_texts() == ["", ""]
            if again and end == "done before it is read":
                page.route("**/ongoing", ends_first)
            page.reload()
        if end == "done before it is read":
            expect(page.locator("#asking")).to_be_visible()
        else:
            expect(page.locator("#notice")).to_contain_text("Both answers are being written")
        if end == "stop":
            page.get_by_role("button", name="Stop").click()
            expect(page.get_by_text("Stopped here.")).to_be_visible()
            assert alone.store.comparisons() == []
            return
        engine.may.set()
        expect(page.locator(".two .text")).to_contain_text(["0: one two three", "1: one two three"])
        expect(page.locator("#notice")).not_to_contain_text("Both answers")
    assert len(alone.store.comparisons(AskedHow.CANDIDATE)) == 1


def test_only_what_asks_about_a_candidate_is_held_back(alone: Place) -> None:
    for engine, kinds in ((Scripted(state=BOTH), {"begin", "done"}), (Scripted(), {"begin", "piece", "done"})):
        client = client_of(alone, engine, ask=1.0)
        said = client.post(f"/chat/{begin(client)}/say", json={"text": "Hello?"}).text.strip().split("\n\n")
        events = [json.loads(one.removeprefix("data: ")) for one in said]
        assert {one["kind"] for one in events} == kinds and events[-1]["comparison"] is not None
        assert events[0]["held"] is ("piece" not in kinds)


def test_what_a_reviewer_rejects_meanwhile_is_asked_about_no_more(alone: Place) -> None:
    workspace = Workspace.open(alone.folder)
    workspace.promote("policy-2")
    version(workspace, "policy-3")
    client = client_of(alone, Scripted(state=BOTH))
    key = begin(client)
    for decision, asked in ((APPROVED, True), (REJECTED, False), (APPROVED, True)):
        reviewed(workspace, "policy-3", decision)
        assert (say(client, key, decision)["comparison"] is not None) is asked
        found = client.get("/dashboard.json").json()["candidate"]
        assert found["asked"] is asked and ("policy-3 was rejected in its review" in found["sentence"]) is not asked
    (workspace.models / "policy-3" / "checks.json").write_text("{", encoding="utf-8")
    assert say(client, key, "And now?")["comparison"] is None, "nobody knows what they said"
    assert "checks.json is damaged" in client.get("/dashboard.json").json()["candidate"]["sentence"]


def reviewed(workspace: Workspace, name: str, decision: str) -> None:
    made = Review(decision=decision, reason="I read it", created_at="", by="account 1", against="policy-2", report=None)
    change(workspace, name, lambda record: replace(record, reviews=(*record.reviews, made)))


def test_the_candidate_stands_on_either_side_as_often_whatever_the_lot() -> None:
    drawn = [chat._drawn(b"secret", f"conversation {number}", 0, "Hello") for number in range(2000)]
    for part in (drawn, [one for one in drawn if one[1] < 0.1], [one for one in drawn if one[0] % 2]):
        sides = Counter(side for *_, side in part)
        assert sides.keys() == {0, 1} and abs(sides[0] - sides[1]) < 3 * len(part) ** 0.5


def test_the_share_is_that_of_turns_in_conversations_that_do_not_teach() -> None:
    trial = replace(TRIAL, share=0.2)
    asks = {"candidate": Question(AskedHow.CANDIDATE, 0.2, trial), "chat": Question(AskedHow.CHAT, 0.5 * 0.8)}

    def of(lot: float, before: AskedHow | None, here: Trial | None = trial) -> Question | None:
        return question(lot, 0.5, here, before)

    assert of(0.199, None) == asks["candidate"] and of(0.2, None) == of(0.599, None) == asks["chat"]
    assert of(0.601, None) is None
    assert of(0.1, AskedHow.CHAT) == of(0.499, AskedHow.CHAT) == Question(AskedHow.CHAT, 0.5)
    assert of(0.501, AskedHow.CHAT) is None
    assert of(0.199, AskedHow.CANDIDATE) == asks["candidate"] and of(0.2, AskedHow.CANDIDATE) is None
    assert of(0.0, AskedHow.CANDIDATE, None) is None, "also once there is no candidate any more"
    assert of(0.499, None, None) == Question(AskedHow.CHAT, 0.5)


def test_a_conversation_teaches_or_measures_and_never_both(alone: Place) -> None:
    engine = Scripted(state=BOTH)
    client = client_of(alone, engine, ask=1.0)
    measures = begin(client)
    say(client, measures, "One?")
    engine.state = replace(BOTH, candidate=None)
    assert say(client, measures, "Two?")["comparison"] is None, "what was asked here would be left out"
    teaches = begin(client)
    assert say(client, teaches, "Three?")["comparison"] is not None
    engine.state = BOTH
    say(client, teaches, "Four?")
    say(client, measures, "Five?")
    asked = [(one.asked_how, one.prompt[-1].text) for one in alone.store.comparisons()]
    chat, tried = AskedHow.CHAT, AskedHow.CANDIDATE
    assert asked == [(tried, "One?"), (chat, "Three?"), (chat, "Four?"), (tried, "Five?")]


def test_who_has_not_agreed_is_not_asked_and_never_gets_a_candidates_words(place: Place) -> None:
    engine = Scripted(state=BOTH)
    client = TestClient(create_app(site_of(place, engine, local=False)), "http://127.0.0.1")
    headers = {"authorization": f"Bearer {place.key('ben')}"}
    nobodys = client.post("/chat/none/say", json={"text": "Hello"}, headers=headers)
    assert nobodys.status_code == 400 and engine.asked == []
    anna = {"authorization": f"Bearer {place.key('anna')}"}
    hers = client.post("/chat/begin", json={}, headers=anna).json()["key"]
    assert client.post(f"/chat/{hers}/say", json={"text": "Hello"}, headers=headers).status_code == 400
    assert engine.asked == [] and place.store.comparisons() == []
    for count in (1, 2):  # a program's users have agreed to nothing here
        body = {"model": "manners", "messages": [{"role": "user", "content": "Hello"}], "n": count}
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    assert [request.candidate for request in engine.asked] == [None, None]
    assert client.post(f"/chat/{hers}/say", json={"text": "Hello"}, headers=anna).status_code == 200
    assert engine.asked[-1].candidate is not None


@pytest.mark.parametrize("promoted", ["policy-3", "policy-4", "policy-1"])
def test_what_is_promoted_meanwhile_ends_it_and_the_dashboard_says_so(alone: Place, promoted: str) -> None:
    workspace = Workspace.open(alone.folder)
    for name in ("policy-1", "policy-2"):
        workspace.promote(name)
    engine = Scripted(state=BOTH)
    client = client_of(alone, engine)
    key = begin(client)
    assert "policy-3 beside policy-2, on 100 % of turns" in client.get("/dashboard").text

    def promote() -> None:
        workspace.promote(promoted)
        engine.load(promoted)

    engine.meanwhile = promote
    assert say(client, key, "One?")["comparison"] is None, "an answer of another version than the two tells nothing"
    engine.meanwhile = lambda: None
    assert say(client, key, "Two?")["comparison"] is None and engine.asked[-1].count == 1
    assert alone.store.comparisons() == []
    why = "it was promoted" if promoted == "policy-3" else f"{promoted} answers now"
    assert f"policy-3 is no candidate any more, for {why}" in client.get("/dashboard").text
    assert client.get("/dashboard.json").json()["candidate"]["asked"] is False


def test_the_engine_lets_it_go_with_the_policy_beside_it_and_tells_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    workspace.promote("policy-2")
    engine = Engine(tmp_path, ModelSettings(), "policy-2", beside=TRIAL.beside(16))
    assert not TRIAL.stands(engine.state) and "waits for the model" in TRIAL.sentence(engine.state, workspace)
    engine._hear(BOTH)
    assert TRIAL.stands(engine.state)
    engine.load("policy-2")
    assert TRIAL.stands(engine.state), "it is served already"
    engine.load("policy-4")
    assert not TRIAL.stands(engine.state)
    engine._hear(BOTH)  # which was on its way
    engine._hear(EngineState(Phase.READY, "policy-4"))
    assert engine.state == EngineState(Phase.READY, "policy-4")
    said = "policy-3 is no candidate any more, for policy-4 answers now: nobody is asked about it\n"
    assert capsys.readouterr().err == said


def test_a_candidate_that_cannot_be_loaded_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    workspace.promote("policy-2")
    engine = Engine(tmp_path, ModelSettings(), "policy-2", beside=TRIAL.beside(16))
    why = "the candidate policy-3 cannot be loaded: it is damaged"
    engine._hear(EngineState(Phase.READY, "policy-2", why))
    assert capsys.readouterr().err == f"{why}: nobody is asked about it\n"
    assert TRIAL.sentence(engine.state, workspace) == why
    engine._hear(EngineState(Phase.READY, "policy-2"))  # it was started again
    assert capsys.readouterr().err == "" and "nobody is asked about it" in TRIAL.sentence(engine.state, workspace)


def test_seats_are_as_large_a_part_as_the_share() -> None:
    assert [replace(TRIAL, share=share).beside(16).seats for share in (0.001, 0.1, 0.5, 1.0)] == [1, 2, 8, 16]


def test_the_same_words_of_both_are_no_question(alone: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(alone, Scripted(state=BOTH))
    monkeypatch.setattr("manners.web.answering.Neutral", Blank)
    answer = say(client, begin(client), "Hello?")
    assert answer["comparison"] is None and answer["texts"] == ["same"] and alone.store.comparisons() == []


class Blank:
    """Says the same whatever is said."""

    def __init__(self, names: object) -> None:
        self._said = ""

    def feed(self, piece: str) -> str:
        return ""

    def rest(self) -> str:
        return "same"


def fill(place: Place, candidate: int = 3) -> None:
    """Comparisons with a candidate, with a choice each, and an ordinary one on the same opening, and on another."""
    client = client_of(place, Scripted(state=BOTH))
    for number in range(candidate):
        key = begin(client)
        choose(client, key, say(client, key, f"Candidate {number}?"), Choice.LEFT)
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    said = (Verdict(Choice.LEFT, anna),)
    for text in ("candidate  0?", "Another?"):
        prompt = (Turn(Role.USER, text), Turn(Role.ASSISTANT, "Yes?"), Turn(Role.USER, "Go on."))
        pair = Response("yes", "initial"), Response("no", "initial")
        place.store.add_comparisons([Comparison(prompt, *pair, AskedHow.RANDOM, 1.0, said)])


def test_training_leaves_them_out_and_counts_them_also_after_an_export(
    alone: Place, new_workspace: Callable[[Path], Workspace], tmp_path: Path
) -> None:
    fill(alone)
    expected = {LeftOut.CANDIDATE: 3, LeftOut.KEPT: 1}
    found = label(alone.store.comparisons())
    assert found.left_out == expected and [pair.prompt[0].text for pair in found.pairs] == ["Another?"]
    for name, fmt, gone in (("all.jsonl", Format.ROWS, {}), ("pairs.jsonl", Format.PAIRS, expected)):
        file = tmp_path / name
        written = export_comparisons(alone.store, file, fmt)
        assert written.left_out == gone
        with closing(Store.open(new_workspace(tmp_path / fmt).database)) as other:
            import_comparisons(other, file, {}, False)
            again = label(other.comparisons())
            assert again.left_out == (expected if not gone else {})
            assert not any("Candidate" in pair.prompt[0].text for pair in again.pairs)
    before = alone.store.comparisons()
    import_comparisons(alone.store, tmp_path / "all.jsonl", {}, False)
    assert alone.store.comparisons() == before


def test_what_was_asked_about_a_candidate_is_in_no_file_to_train_on_whatever_became_of_it(
    alone: Place, tmp_path: Path, new_workspace: Callable[[Path], Workspace]
) -> None:
    fill(alone)
    one = alone.store.comparisons(AskedHow.CANDIDATE)[0]
    assert one.id is not None
    with pytest.raises(MannersError, match=f"comparison {one.id} asks about a candidate"):
        gold.add(alone.store, one.id, Choice.LEFT)
    alone.store.add_comparisons([replace(one.turned(), asked_how=AskedHow.GOLD, id=None)])
    for fmt in (Format.PAIRS, Format.HH):
        written = export_comparisons(alone.store, tmp_path / f"{fmt}.jsonl", fmt)
        assert written.left_out == {Never.CANDIDATE: 3, Never.GOLD: 1, Never.KEPT: 1}
        assert "andidate" not in (tmp_path / f"{fmt}.jsonl").read_text("utf-8")
    # Three are from chats, and one of the others begins as one does that was asked about a candidate.
    for use, count, gone in ((PromptUse.TRAIN, 1, {PRIVATE: 3, TRIED: 1}), (None, 2, {PRIVATE: 3})):
        exported = export_prompts(alone.store, tmp_path / "p.jsonl", use)
        assert (exported.rows, exported.left_out) == (count, gone)
    export_comparisons(alone.store, tmp_path / "rows.jsonl", Format.ROWS)
    rows = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(reversed(rows)), "utf-8")  # whichever comes first
    assert preview(tmp_path / "rows.jsonl", {}).left_out_of_training == 2
    with closing(Store.open(new_workspace(tmp_path / "other").database)) as other:
        assert import_comparisons(other, tmp_path / "rows.jsonl", {}, False).left_out_of_training == 2


def test_an_unfinished_run_goes_on_with_what_it_began_with_also_where_a_candidate_was_compared_since(
    alone: Place,
) -> None:
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    pair = Response("yes", "initial"), Response("no", "initial")
    prompt = (Turn(Role.USER, "Candidate 0?"),)
    alone.store.add_comparisons([Comparison(prompt, *pair, AskedHow.RANDOM, 1.0, (Verdict(Choice.LEFT, anna),))])
    begun = alone.store.comparisons()
    watermark, newest = alone.store.watermark(), begun[-1].id
    fill(alone, 1)
    assert alone.store.comparisons(as_of=watermark, newest=newest) == begun
    assert [one.kept for one in alone.store.comparisons() if one.asked_how is AskedHow.RANDOM] == [True, True, False]


def test_nothing_else_learns_from_them_or_shows_them_to_others(alone: Place) -> None:
    fill(alone)
    shared = [dialogue[0].text for dialogue in alone.store.answerable(PromptUse.TRAIN, chats=True)]
    assert shared == ["Another?"], "nor what begins alike"
    assert "candidate 0?" in alone.store.kept_openings()
    with alone.store.read() as connection:
        opened = {one.comparison for one in open_comparisons(connection, 0, chats=True)}
    assert opened == {one.id for one in alone.store.comparisons() if one.asked_how is AskedHow.RANDOM}


def test_a_deleted_conversation_is_gone_and_no_version_had_learned_from_it(alone: Place) -> None:
    client = client_of(alone, Scripted(("a secret",), BOTH))
    key = begin(client)
    choose(client, key, say(client, key, "My secret?"), Choice.LEFT)
    alone.store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "models/reward-1", None, {}, 99))
    assert client.post(f"/chat/{key}/delete", json={}).json()["learned_by"] == []
    [one] = alone.store.comparisons(AskedHow.CANDIDATE)
    assert "secret" not in f"{one.prompt} {one.left.text} {one.right.text}" and len(one.verdicts) == 1


def test_figures_are_on_the_dashboard_in_status_and_on_the_card(
    alone: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.open(alone.folder)
    assert status(workspace, capsys)["candidate"] is None
    for name in ("policy-2", "policy-3"):
        version(workspace, name)
        alone.store.add_version(VersionRecord(name, VersionKind.POLICY, f"models/{name}", None, {}, 0))
    engine = Scripted(state=BOTH)
    client = client_of(alone, engine)
    for number, choice in enumerate((Choice.LEFT, Choice.RIGHT, Choice.TIE, Choice.SKIP, Choice.BOTH_BAD)):
        key = begin(client)
        choose(client, key, say(client, key, f"{number}?"), choice)
    won = sum(request.candidate == side for request, side in zip(engine.asked, (0, 1), strict=False))
    found = status(workspace, capsys)["candidate"]
    counted = {name: found[name] for name in ("version", "against", "comparisons", "people", "wins", "losses", "ties")}
    expected = {"version": "policy-3", "against": "policy-2", "comparisons": 5, "people": 1}
    assert counted == expected | {"wins": won, "losses": 2 - won, "ties": 2}
    assert found["unanswered"] == 1 and found["win_rate"] is None and found["decision"] == "cannot_tell"
    facts = client.get("/dashboard.json").json()
    assert facts["tried"] == [found] and facts["candidate"]["asked"] is True
    assert "which nothing is trained on" in client.get("/dashboard").text
    said = tried.words(workspace, alone.store, "policy-3")
    assert said.endswith(found["sentence"]) and not tried.words(workspace, alone.store, "policy-2")
    assert [one.sentence for one in gate.read(workspace, "policy-3").tried] == [found["sentence"]]
    assert found["sentence"] in (workspace.models / "policy-3" / "card.html").read_text(encoding="utf-8")
    assert gate.standing(workspace, "policy-3").gate.cannot_tell == ("win_rate",), "the gate goes by its own"


def status(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["status", "--json", "--workspace", str(workspace.root)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def version(workspace: Workspace, name: str, **more: Any) -> None:
    """Keep a version that has no tensor among its weights."""
    kind = name.partition("-")[0]
    described = {"name": name, "kind": kind, "base": "x", "trunk_hash": "t", "cut": 1, "template_hash": "h"}
    folder = workspace.models / name
    folder.mkdir()
    text = json.dumps(described | {"dtype": "float32", "created_at": "2030-01-01"} | more)
    (folder / "version.json").write_text(text, encoding="utf-8")
    save_file({}, folder / "branch-0.safetensors")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--candidate", "policy-9"), "there is no version policy-9"),
        (("--candidate", "../models"), "there is no version ../models"),
        (("--candidate", "policy-2"), "policy-2 is the promoted policy itself"),
        (("--candidate", "reward-1"), "reward-1 is no policy of the model at hand"),
        (("--candidate", "policy-7"), "policy-7 was rejected in its review: nobody is asked about it before"),
        (("--candidate", "policy-3", "--share", "0"), "--share 0 is no share of the turns"),
        (("--candidate", "policy-3", "--share", "1.01"), "--share 1.01 is no share of the turns"),
        (("--candidate", "policy-3", "--share", "nan"), "--share nan is no share of the turns"),
        (("--share", "0.1"), "--share goes with --candidate VERSION"),
        (("--candidate", "policy-4"), "branch-0.safetensors is not there: put policy-4 back from a backup"),
        (("--candidate", "policy-5"), "policy-5 grew on another model (y, cut 1) than policy-2"),
        (("--candidate", "policy-6"), "policy-6 grew on another model (x, cut 2) than policy-2"),
        (("--candidate", "policy-3", "--upstream", "http://127.0.0.1:9/v1"), "--candidate needs a model of this work"),
        (("--candidate", "policy-3", "--set", "serve.seats=1"), "serve.seats is 1: set it to 2 or more"),
    ],
)
def test_what_cannot_be_a_candidate_is_refused_in_one_sentence(
    alone: Place, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.open(alone.folder)
    for name in ("policy-2", "policy-3", "policy-4", "policy-7", "reward-1"):
        version(workspace, name)
    reviewed(workspace, "policy-7", REJECTED)
    version(workspace, "policy-5", base="y", trunk_hash="other")
    version(workspace, "policy-6", cut=2)
    (workspace.models / "policy-4" / "branch-0.safetensors").unlink()
    workspace.promote("policy-2")
    assert main(["serve", "--port", "0", "--workspace", str(workspace.root), *words]) == 1
    told = capsys.readouterr().err
    assert sentence in told and "Traceback" not in told and "manners is at" not in told


def test_viewers_may_see_the_figures_and_nobody_else_the_dashboard(place: Place) -> None:
    site = site_of(place, Scripted(state=BOTH), local=False)
    with listening(site) as url:
        keys = {role: place.key(f"the {role}", role) for role in (AccountRole.VIEWER, AccountRole.ANNOTATOR)}
        codes = {
            role: httpx.get(f"{url}/dashboard.json", headers={"authorization": f"Bearer {key}"}).status_code
            for role, key in keys.items()
        }
    assert codes == {AccountRole.VIEWER: 200, AccountRole.ANNOTATOR: 403}
