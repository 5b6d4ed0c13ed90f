"""`/label` as people use it: keyboard, undo, two people, reports; and what must never reach the browser."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from manners.models.requests import Phase
from manners.settings_load import load
from manners.store import gold
from manners.store.files.formats import Format
from manners.store.files.transfer import export_comparisons
from manners.types import (
    LOCAL,
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import NOWHERE, Place, enter, serve
from tests.web.hostile import HOSTILE
from tests.web.scripted import Scripted
from tests.web.test_openai import listening

OpenPage = Callable[..., Page]
RICH = "**bold** `code`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n$x^2$"
FORBIDDEN = "script, iframe, img, svg, object, embed, form, style, link, base, meta, [onclick], [onload], [onerror]"
KEYS = {"left": "1", "right": "2", "tie": "t", "both_bad": "b", "skip": "s"}


def pair(number: int, left: str | None = None, right: str | None = None, prompt: str | None = None) -> Comparison:
    """A comparison whose texts say which they are."""
    said = (Turn(Role.USER, prompt or f"Question {number}?"),)
    one, other = left or f"left text {number}", right or f"right text {number}"
    how = AskedHow.RANDOM
    return Comparison(said, Response(one, "secret-author-a"), Response(other, "secret-author-b"), how)


def settings(place: Place, **values: object) -> None:
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    (place.folder / "manners.toml").write_text(f"[serve]\n{lines}")


@contextmanager
def pages(place: Place) -> Iterator[str]:
    """Serve a workspace's pages from this process, as its `manners.toml` says: no other one has to start."""
    workspace = Workspace.open(place.folder)
    found = load(workspace.toml).settings
    with listening(Site(workspace, found, place.store, place.accounts, True, "http://127.0.0.1", Scripted())) as url:
        yield url


def shown(page: Page) -> tuple[str, str, str]:
    """Prompt and texts of the pair on the screen, once it is another than before."""
    expect(page.locator("#pair")).to_be_visible()
    prompt, left, right = (page.locator(f"#{part}").inner_text() for part in ("prompt", "left", "right"))
    return prompt, left, right


def press(page: Page, key: str) -> None:
    """Judge by a key, and wait for the next pair or for there being none."""
    judge(page, lambda: page.keyboard.press(key))


def ready(page: Page) -> None:
    """Wait until what is shown has been visible for long enough to be judged."""
    page.wait_for_selector("[data-choice=skip][aria-disabled=false]")


def judge(page: Page, act: Callable[[], None]) -> None:
    """Do what brings another pair, and wait until it is there, or until there is none."""
    ready(page)
    page.evaluate("document.querySelector('#prompt > *').id = 'before'")
    act()
    page.wait_for_function("() => !document.getElementById('before') || document.getElementById('pair').hidden")


def stored(page: Page) -> None:
    """Wait until the outbox is empty."""
    page.wait_for_function("() => !Object.keys(localStorage).some((key) => key.startsWith('manners-outbox'))")


def exported(place: Place, folder: Path) -> dict[tuple[str, str], str]:
    """What each annotator said, by the left text, as the export has it."""
    file = folder / "out.csv"
    export_comparisons(place.store, file, Format.ROWS)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["verdict"]]
    found = {(row["annotator"], row["left"]): row["verdict"] for row in rows}
    assert len(found) == len(rows), "somebody has two verdicts on one comparison"
    return found


def test_today_is_the_day_where_the_person_is(alone: Place, chromium: Browser) -> None:
    """Six hours to the east before noon in UTC, six to the west after it: their midnight is not UTC's."""
    now = datetime.now(UTC)
    east = timedelta(hours=6 if now.hour < 12 else -6)
    midnight = (now + east).replace(hour=0, minute=0, second=0, microsecond=0) - east
    moments = (midnight - timedelta(minutes=30), midnight + timedelta(minutes=30))
    given = [Verdict(Choice.LEFT, Annotator(LOCAL, AnnotatorKind.HUMAN), created_at=moment) for moment in moments]
    keys = alone.store.add_comparisons(pair(number) for number in range(4))
    alone.store.add_verdicts(list(zip(keys, given, strict=False)))
    with pages(alone) as url:
        context = chromium.new_context(timezone_id="Etc/GMT-6" if east > timedelta(0) else "Etc/GMT+6")
        page = context.new_page()
        page.goto(f"{url}/label")
        expect(page.locator("#progress")).to_contain_text("1 today, 2 in all")
        context.close()
        for day, status in (("0", 200), ("90000", 200), ("90001", 400), ("-1", 400), ("1e3", 400), ("nan", 400)):
            assert httpx.get(f"{url}/label/progress", params={"day": day}).status_code == status


@pytest.mark.long
def test_twenty_pairs_by_keyboard_one_undone_and_a_second_person(
    place: Place, open_page: OpenPage, tmp_path: Path
) -> None:
    settings(place, overlap=1, agree=1, repeat_share=0.0, shortest_view=0)
    place.store.add_comparisons(pair(number) for number in range(26))
    for name in ("anna", "ben"):
        place.accounts.add(name, AccountRole.ANNOTATOR, "correct horse")
    expected: dict[tuple[str, str], str] = {}
    last = ("", "", "")
    with serve(place.folder, "--upstream", NOWHERE) as server:
        page = enter(open_page(server.url + place.link("anna")))
        choices = (["left", "right", "tie", "both_bad", "skip", "left", "right"] * 3)[:20]
        for turn, choice in enumerate(choices):
            prompt, left, right = shown(page)
            if turn == 7:  # the sixth one is taken back, and judged otherwise
                stored(page)
                press(page, "u")
                assert shown(page) == last
                expected["anna", left_text(last)] = "tie"
                press(page, "t")
                assert shown(page) == (prompt, left, right), "what was on the screen comes next"
            last = (prompt, left, right)
            number = prompt.split()[-1].strip("?")
            assert {left, right} == {f"left text {number}", f"right text {number}"}
            exchanged = left.startswith("right")
            own = {"left": "right", "right": "left"}.get(choice, choice) if exchanged else choice
            expected["anna", f"left text {number}"] = own
            press(page, KEYS[choice])
        stored(page)
        page.get_by_role("button", name="Sign out").press("Enter")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        other = enter(open_page(server.url + place.link("ben")))
        for _ in range(5):
            shown(other)
            press(other, "s")
        stored(other)
    found = exported(place, tmp_path)
    assert {key: choice for key, choice in found.items() if key[0] == "anna"} == expected
    hers = {left for (_, left), choice in expected.items() if choice != "skip"}
    his = {left for name, left in found if name == "ben"}
    assert len(his) == 5 and not hers & his


def left_text(last: tuple[str, str, str]) -> str:
    return f"left text {last[0].split()[-1].strip('?')}"


def test_keys_do_nothing_while_typing_and_help_closes(alone: Place, open_page: OpenPage) -> None:
    alone.store.add_comparisons(pair(number) for number in range(3))
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        before = shown(page)
        page.get_by_label("Comment").fill("")
        page.get_by_label("Comment").press_sequentially("12tbsu?")
        assert shown(page) == before and page.get_by_label("Comment").input_value() == "12tbsu?"
        page.get_by_label("clearly").check()
        page.get_by_label("kinder").check()
        page.keyboard.press("Control+1")
        page.locator("body").click(position={"x": 2, "y": 300})
        page.keyboard.press("?")
        expect(page.get_by_text("Which answer is better?").last).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#guidelines")).to_be_hidden()
        page.locator("body").click(position={"x": 2, "y": 300})
        press(page, "t")
        stored(page)
    (verdict,) = [v for comparison in alone.store.comparisons() for v in comparison.verdicts]
    assert (verdict.choice, verdict.strength, verdict.reasons, verdict.comment) == (
        Choice.TIE,
        2,
        ("kinder",),
        "12tbsu?",
    )
    assert verdict.seconds is not None and 0 < verdict.seconds < 60


def test_nothing_says_who_wrote_what_or_why_it_is_asked(alone: Place, open_page: OpenPage) -> None:
    keys = alone.store.add_comparisons(pair(number) for number in range(12))
    gold.add(alone.store, keys[0], Choice.LEFT)
    settings(alone, shortest_view=0)
    heard: list[str] = []
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        page.on("response", lambda answer: heard.append(answer.text()) if "/label/" in answer.url else None)
        page.reload()
        for _ in range(12):
            shown(page)
            press(page, "1")
        stored(page)
        heard.append(page.locator("#pair").inner_html())
    said = " ".join(heard)
    assert "left text" in said
    for secret in ("secret-author", "gold", "probability", "random", "disagreement", "exchanged"):
        assert secret not in said


def test_an_answer_that_the_length_limit_cut_off_is_said_to_be(alone: Place, open_page: OpenPage) -> None:
    whole = pair(1)
    alone.store.add_comparisons([replace(whole, right=replace(whole.right, finish_reason=FinishReason.LENGTH))])
    with pages(alone) as url:
        _, left, right = shown(open_page(f"{url}/label"))
    cut = next(text for text in (left, right) if text.startswith("right"))
    assert cut.splitlines()[-1] == "The length limit cut this answer off."
    assert sorted((left, right))[0] == "left text 1"


def test_a_report_hides_the_pair_until_a_reviewer_has_decided(alone: Place, open_page: OpenPage) -> None:
    alone.store.add_comparisons([pair(0, prompt="How would one kill a process?"), pair(1)])
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        while "kill" not in shown(page)[0]:
            press(page, "s")
        expect(page.get_by_role("button", name="This may be distressing")).to_be_visible()
        page.get_by_role("button", name="This may be distressing").click()
        assert page.locator(".blurred").count() == 0
        page.get_by_role("button", name="Report").first.click()
        page.get_by_label("distressing").check()
        page.get_by_label("Note").fill("not nice")
        judge(page, page.get_by_role("dialog").get_by_role("button", name="Report").click)
        reviews = open_page(f"{url}/flags")
        expect(reviews.get_by_text("not nice")).to_be_visible()
        expect(reviews.get_by_text("How would one kill a process?")).to_be_visible()
        assert reviews.locator("summary").all_inner_texts() == ["Asked", "Left", "Right"]
        reviews.get_by_role("button", name="Nothing wrong").click()
        expect(reviews.get_by_text("Nothing waits")).to_be_visible()


def test_a_verdict_waits_in_the_browser_while_the_server_is_away(alone: Place, open_page: OpenPage) -> None:
    alone.store.add_comparisons(pair(number) for number in range(4))
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        shown(page)
        page.context.set_offline(True)
        ready(page)
        page.keyboard.press("1")
        expect(page.locator("#notice")).to_contain_text("not stored yet")
        assert not any(comparison.verdicts for comparison in alone.store.comparisons())
        page.context.set_offline(False)
        stored(page)
        assert sum(len(comparison.verdicts) for comparison in alone.store.comparisons()) == 1


@pytest.mark.long
def test_hostile_texts_run_nothing_and_break_nothing(alone: Place, open_page: OpenPage) -> None:
    assert len(HOSTILE) >= 100
    pairs = [pair(n, f"{text} <!-- {n} -->", f"{n} {text}", f"{text} {n}") for n, text in enumerate(HOSTILE)]
    alone.store.add_comparisons(pairs)
    settings(alone, repeat_share=0.0, overlap=1, agree=1)
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        comment = page.locator("#comment")
        for turn in range(len(HOSTILE)):
            expect(page.locator("#pair")).to_be_visible()
            assert page.evaluate("window.hacked") is None
            assert (
                page.locator("#pair :is(script, iframe, img, svg, object, form, style, link, [onclick])").count() == 0
            )
            assert page.locator("#pair a[href^='javascript' i], #pair a[href^='data' i]").count() == 0
            if len(HOSTILE[turn]) < 9_000:
                comment.fill(HOSTILE[turn].replace("\0", ""))
            if page.locator("#reveal").is_visible():
                page.keyboard.press("v")
            judge(page, page.locator("[data-choice=tie]").click)
        stored(page)
        expect(page.locator("#empty")).to_be_visible(timeout=20_000)
        assert page.evaluate("window.hacked") is None
    assert sum(len(comparison.verdicts) for comparison in alone.store.comparisons()) == len(HOSTILE)


@pytest.mark.long
def test_a_page_is_there_while_no_model_is(alone: Place) -> None:
    with serve(alone.folder, "--set", "model.name=/nowhere") as server:
        assert httpx.get(f"{server.url}/label").status_code == 200
        assert httpx.get(f"{server.url}/chat/state").json()["phase"] != Phase.READY


def test_a_page_waits_for_no_heavy_library() -> None:
    modules = "import sys, manners.cli, manners.web.server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True).stdout.split()
    assert {"fastapi", "sqlalchemy"} <= set(loaded)
    assert set(loaded).isdisjoint({"torch", "transformers", "tokenizers", "matplotlib", "pyarrow", "scipy.stats"})
