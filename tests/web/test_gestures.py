"""A gesture judges one pair: what a person did is neither lost nor taken for something else."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from manners.store.flags import undecided
from manners.types import Choice, Verdict
from manners.web.shapes import problem
from tests.web.conftest import Held, Place
from tests.web.scripted import Scripted
from tests.web.test_chat import Open, begin, serving
from tests.web.test_label import OpenPage, judge, pages, pair, press, ready, settings, shown, stored

__all__ = ["serving"]
SOURCE = "**bold** and [a](https://example.org/path)\n\n```python\nx = 1\n```"


@pytest.fixture
def labelling(alone: Place, open_page: OpenPage) -> Iterator[Page]:
    """The labelling page with pairs that nobody has judged."""
    settings(alone, repeat_share=0.0, overlap=1, agree=1)
    alone.store.add_comparisons(pair(number) for number in range(12))
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        shown(page)
        yield page


def verdicts(place: Place) -> list[Verdict]:
    return [verdict for comparison in place.store.comparisons() for verdict in comparison.verdicts]


def held_key(page: Page) -> None:
    for _ in range(25):
        page.keyboard.down("1")
        page.wait_for_timeout(20)
    page.keyboard.up("1")


def key_pressed_twice(page: Page) -> None:
    page.keyboard.press("t")
    page.wait_for_timeout(137)
    page.keyboard.press("t")


def double_click(page: Page) -> None:
    page.locator("[data-choice=left]").dblclick()


def enter_held_on_a_button(page: Page) -> None:
    page.locator("[data-choice=right]").focus()
    for _ in range(25):
        page.keyboard.down("Enter")
        page.wait_for_timeout(20)
    page.keyboard.up("Enter")


def five_keys_at_once(page: Page) -> None:
    for key in "12tbs":
        page.keyboard.press(key)


def pressed_too_soon_and_released_late(page: Page) -> None:
    page.locator("[data-choice=tie]").hover()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(60)
    page.mouse.down()
    page.wait_for_timeout(500)
    page.mouse.up()


GESTURES = (
    held_key,
    key_pressed_twice,
    double_click,
    enter_held_on_a_button,
    five_keys_at_once,
    pressed_too_soon_and_released_late,
)


def test_a_gesture_judges_one_pair(labelling: Page, alone: Place) -> None:
    for count, gesture in enumerate(GESTURES, 1):
        before = shown(labelling)
        ready(labelling)
        gesture(labelling)
        labelling.wait_for_timeout(500)
        stored(labelling)
        assert len(verdicts(alone)) == count, gesture.__name__
        assert shown(labelling) != before


def test_a_double_tap_judges_one_pair(alone: Place, chromium: Browser) -> None:
    settings(alone, repeat_share=0.0, overlap=1, agree=1)
    alone.store.add_comparisons(pair(number) for number in range(5))
    with pages(alone) as url:
        context = chromium.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
        page = context.new_page()
        page.goto(f"{url}/label")
        before = shown(page)
        ready(page)
        box = page.locator("[data-choice=left]").bounding_box()
        assert box is not None
        for _ in range(2):
            page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.wait_for_timeout(90)
        page.wait_for_timeout(700)
        stored(page)
        assert len(verdicts(alone)) == 1 and shown(page) != before
        context.close()


def test_what_is_pressed_before_a_pair_was_seen_counts_for_nothing(labelling: Page, alone: Place) -> None:
    before = shown(labelling)
    press(labelling, "1")
    labelling.keyboard.press("2")  # at once, on a pair that has just come
    now = shown(labelling)
    labelling.wait_for_timeout(700)
    assert shown(labelling) == now != before
    press(labelling, "t")
    stored(labelling)
    found = verdicts(alone)
    assert len(found) == 2 and all((one.seconds or 0) >= 0.4 for one in found)


def test_the_server_refuses_what_nobody_can_have_seen(alone: Place) -> None:
    alone.store.add_comparisons(pair(number) for number in range(2))
    with pages(alone) as url, httpx.Client(base_url=url) as client:
        view = client.post("/label/next", json={}).json()["pair"]["view"]
        given = {"view": view, "choice": "left"}
        early = client.post("/label/verdict", json=given)
        assert early.status_code == 409 and early.json()["error"]["code"] == "too_soon"
        time.sleep(0.5)
        said = client.post("/label/verdict", json=given | {"seconds": 0.39})
        assert said.status_code == 409 and said.json()["error"]["code"] == "too_soon"
        assert client.post("/label/verdict", json=given | {"seconds": 0.4}).status_code == 200
        assert client.post("/label/verdict", json=given | {"seconds": 0.1}).status_code == 200, "it is stored already"
    assert len(verdicts(alone)) == 1


PRESSED: tuple[tuple[str, str, dict[str, object], str | None], ...] = (
    ("\u0435", "KeyT", {}, "tie"),  # a Russian keyboard
    ("\u0438", "KeyB", {}, "both_bad"),
    ("\u05d3", "KeyS", {}, "skip"),  # a Hebrew one
    ("&", "Digit1", {}, "left"),  # a French row of digits
    ("\u00e9", "Digit2", {}, "right"),
    ("T", "KeyT", {}, "tie"),  # CapsLock
    ("t", "KeyK", {}, "tie"),  # Dvorak: the letter counts
    ("1", "Numpad1", {}, "left"),
    ("ArrowLeft", "ArrowLeft", {}, None),
    ("ArrowRight", "ArrowRight", {}, None),
    ("y", "KeyT", {}, None),  # Dvorak: a letter of its own
    ("!", "Digit1", {"shiftKey": True}, None),
    ("Enter", "Enter", {}, None),
    ("3", "Digit3", {}, None),
    ("t", "KeyT", {"ctrlKey": True}, None),
    ("t", "KeyT", {"isComposing": True}, None),
    ("Process", "KeyT", {"keyCode": 229}, None),
    ("t", "KeyT", {"keyCode": 229}, None),
)
"""A key, its place, what goes with it, and the choice that it is."""


@pytest.mark.long
def test_shortcuts_are_letters_and_places(labelling: Page, alone: Place) -> None:
    expected = Counter[str]()
    for key, code, more, choice in PRESSED:
        ready(labelling)
        event = json.dumps({"key": key, "code": code, "bubbles": True, "cancelable": True} | more)
        labelling.evaluate(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {event}))")
        labelling.evaluate(f"document.body.dispatchEvent(new KeyboardEvent('keyup', {event}))")
        labelling.wait_for_timeout(100)
        stored(labelling)
        expected[{"left": "a side", "right": "a side"}.get(choice, choice) if choice else "nothing"] += 1
        said = Counter("a side" if one.choice in ("left", "right") else one.choice.value for one in verdicts(alone))
        assert said == expected - Counter(nothing=99), (key, code, more)


def test_two_tabs_with_a_backlog_lose_nothing(labelling: Page, alone: Place) -> None:
    other = labelling.context.new_page()
    other.goto(labelling.url)
    shown(other)
    labelling.context.set_offline(True)
    for tab in (labelling, other):
        tab.bring_to_front()
        ready(tab)
        tab.keyboard.press("1")
        expect(tab.locator("#notice")).to_contain_text("not stored yet")
    labelling.context.set_offline(False)
    stored(labelling)
    stored(other)
    assert len(verdicts(alone)) == 2


PROXYS: tuple[dict[str, Any], ...] = (
    {"status": 403, "content_type": "text/html", "body": "<h1>Forbidden</h1>"},
    {"status": 404, "json": {"error": "nothing here"}},
    {"status": 409, "json": {"error": {"message": "conflict", "code": 409}}},
    {"status": 200, "content_type": "text/html", "body": "<h1>Sign in to the house first</h1>"},
    {"status": 200, "json": {"view": "another"}},
    {"status": 200, "json": None},
)
"""What something before the server may answer in its place."""


def test_what_answers_in_the_servers_place_takes_no_verdict(labelling: Page, alone: Place) -> None:
    sent = 0

    def answer(route: Route) -> None:
        nonlocal sent
        sent += 1
        if sent > len(PROXYS):
            route.continue_()
        else:
            route.fulfill(**PROXYS[sent - 1])

    labelling.route("**/label/verdict", answer)
    press(labelling, "1")
    expect(labelling.locator("#notice")).to_contain_text("1 verdict not stored yet")
    stored(labelling)
    expect(labelling.locator("#notice")).to_be_hidden()
    assert len(verdicts(alone)) == 1 and sent == len(PROXYS) + 1
    labelling.unroute("**/label/verdict")
    gone = problem("it is gone", param="view", code="view_not_found")
    labelling.route("**/label/verdict", lambda route: route.fulfill(status=404, json=gone))
    press(labelling, "1")
    expect(labelling.locator("#notice")).to_contain_text("One verdict was refused: it is gone.")
    stored(labelling)


@pytest.mark.long
def test_an_older_pages_backlog_is_sent(labelling: Page, alone: Place) -> None:
    with alone.store.read() as connection:
        token = connection.exec_driver_sql("SELECT token FROM views ORDER BY id").scalars().first()
    old = json.dumps([{"view": token, "choice": "tie", "strength": None, "reasons": [], "comment": "", "seconds": 5}])
    labelling.wait_for_timeout(450)
    labelling.evaluate("old => localStorage.setItem(`manners-outbox ${document.body.dataset.visitor}`, old)", old)
    labelling.reload()
    stored(labelling)
    assert [one.choice for one in verdicts(alone)] == [Choice.TIE]


@pytest.mark.long
def test_what_is_taken_back_comes_with_what_was_said(labelling: Page, alone: Place) -> None:
    before = shown(labelling)
    labelling.get_by_label("clearly").check()
    labelling.get_by_label("kinder").check()
    labelling.get_by_label("Comment").fill("because")
    labelling.keyboard.press("Escape")
    press(labelling, "t")
    expect(labelling.get_by_label("Comment")).to_have_value("")
    stored(labelling)
    press(labelling, "u")
    assert shown(labelling) == before
    expect(labelling.get_by_label("clearly")).to_be_checked()
    expect(labelling.get_by_label("kinder")).to_be_checked()
    expect(labelling.get_by_label("clearer")).not_to_be_checked()
    expect(labelling.get_by_label("Comment")).to_have_value("because")
    press(labelling, "1")
    stored(labelling)
    (verdict,) = verdicts(alone)
    assert (verdict.strength, verdict.reasons, verdict.comment) == (2, ("kinder",), "because")


def judged(place: Place) -> list[str]:
    """What was asked of each pair that has a verdict."""
    return [one.prompt[-1].text for one in place.store.comparisons() for _ in one.verdicts]


def taken_back_is_judged(
    page: Page, place: Place, again: tuple[str, str, str], following: tuple[str, str, str]
) -> None:
    """Judge the pair taken back, which is on the screen: its verdict is the only one, and another pair comes."""
    assert shown(page) == again
    press(page, "1")
    assert shown(page) == following
    stored(page)
    [text] = judged(place)
    assert text in again[0]


@pytest.mark.long
def test_what_was_being_said_stays_with_its_pair_while_another_is_taken_back(labelling: Page) -> None:
    press(labelling, "t")
    stored(labelling)
    second = shown(labelling)
    labelling.get_by_label("clearly").check()
    labelling.get_by_label("kinder").check()
    labelling.get_by_label("Comment").fill("half a thought")
    labelling.keyboard.press("Escape")
    press(labelling, "u")
    expect(labelling.get_by_label("Comment")).to_have_value("")
    press(labelling, "1")
    assert shown(labelling) == second
    expect(labelling.get_by_label("clearly")).to_be_checked()
    expect(labelling.get_by_label("kinder")).to_be_checked()
    expect(labelling.get_by_label("Comment")).to_have_value("half a thought")


@pytest.mark.long
def test_what_is_taken_back_is_what_comes_whatever_was_on_its_way(labelling: Page, alone: Place) -> None:
    with labelling.expect_response("**/label/next"):
        labelling.reload()
    first = shown(labelling)
    third = Held(labelling, "**/label/next")
    press(labelling, "t")
    stored(labelling)
    second = shown(labelling)
    ready(labelling)
    undo = Held(labelling, "**/label/undo")
    labelling.keyboard.press("u")
    undo.sent()
    labelling.keyboard.press("1")  # while the pair on the screen is about to give way
    undo.go()
    expect(labelling.locator("#said")).to_have_text("Taken back. Judge this pair again.")
    with labelling.expect_response("**/label/next"):
        third.go()
    taken_back_is_judged(labelling, alone, first, second)


def test_while_a_report_is_on_its_way_nothing_is_taken_back(labelling: Page, alone: Place) -> None:
    first = shown(labelling)
    press(labelling, "t")
    stored(labelling)
    second = shown(labelling)
    report, sent = Held(labelling, "**/label/flag"), list[str]()
    labelling.on("request", lambda request: sent.append(request.url.rpartition("/")[2]))
    labelling.locator("#report").click()
    labelling.locator("#reporting input").first.check()
    labelling.locator("#reporting button[value=report]").click()
    report.sent()
    labelling.locator("#undo").click()
    labelling.wait_for_timeout(300)  # for what must not happen
    assert "undo" not in sent
    report.go(lost=True)
    expect(labelling.locator("#said")).to_have_text("Taken back. Judge this pair again.")
    expect(labelling.locator("#notice")).to_contain_text("Not reported")
    taken_back_is_judged(labelling, alone, first, second)


@pytest.mark.long
def test_what_somebody_is_reporting_stays_on_the_screen(labelling: Page, alone: Place) -> None:
    verdict = Held(labelling, "**/label/verdict")
    press(labelling, "t")
    verdict.sent()
    second = shown(labelling)
    labelling.keyboard.press("u")  # which waits for the verdict
    labelling.locator("#report").click()
    verdict.go()
    expect(labelling.locator("#notice")).to_contain_text("Nothing was taken back")
    assert shown(labelling) == second
    labelling.locator("#reporting input").first.check()
    judge(labelling, labelling.locator("#reporting button[value=report]").click)
    [flag] = undecided(alone.store)
    assert flag.prompt[-1].text in second[0] and len(judged(alone)) == 1


@pytest.mark.long
def test_a_gesture_takes_one_verdict_back(labelling: Page, alone: Place) -> None:
    for _ in range(3):
        press(labelling, "t")
    stored(labelling)
    labelling.locator("#undo").dblclick()
    expect(labelling.locator("#said")).to_have_text("Taken back. Judge this pair again.")
    labelling.wait_for_timeout(1000)  # for what would come after it
    assert len(verdicts(alone)) == 2
    labelling.context.set_offline(True)
    ready(labelling)
    labelling.keyboard.press("t")  # which waits, and the key that takes it back with it, however often
    for _ in range(3):
        labelling.keyboard.press("u")
        labelling.wait_for_timeout(300)
    labelling.context.set_offline(False)
    stored(labelling)
    labelling.wait_for_timeout(2000)
    assert len(verdicts(alone)) == 2


def test_a_page_that_is_loaded_anew_shows_the_same_pair_with_what_was_being_said(labelling: Page, alone: Place) -> None:
    before = shown(labelling)
    expect(labelling.locator("#undo")).to_be_hidden()  # there is nothing to take back
    labelling.keyboard.press("h")
    labelling.get_by_label("kinder").check()
    labelling.get_by_label("Comment").press_sequentially("half a th")
    labelling.reload()
    assert shown(labelling) == before
    expect(labelling.get_by_label("slightly")).to_be_checked()
    expect(labelling.get_by_label("kinder")).to_be_checked()
    expect(labelling.get_by_label("Comment")).to_have_value("half a th")
    press(labelling, "2")
    stored(labelling)
    (verdict,) = verdicts(alone)
    assert (verdict.strength, verdict.reasons, verdict.comment) == (1, ("kinder",), "half a th")
    after = shown(labelling)
    expect(labelling.get_by_label("Comment")).to_have_value("")
    labelling.reload()
    assert shown(labelling) == after != before
    expect(labelling.locator("#undo")).to_be_visible()


def test_strength_reasons_and_comment_have_keys(labelling: Page, alone: Place) -> None:
    ready(labelling)
    labelling.keyboard.press("h")
    labelling.keyboard.press("h")
    expect(labelling.get_by_label("clearly")).to_be_checked()
    labelling.keyboard.press("y")
    labelling.keyboard.press("Space")
    labelling.keyboard.press("c")
    labelling.keyboard.type("r t 1")
    labelling.keyboard.press("Escape")
    press(labelling, "b")
    stored(labelling)
    (verdict,) = verdicts(alone)
    assert (verdict.choice, verdict.strength, verdict.comment) == (Choice.BOTH_BAD, 2, "r t 1")
    assert verdict.reasons == ("more correct",)


def test_what_is_blurred_is_judged_once_it_is_shown(alone: Place, open_page: OpenPage) -> None:
    alone.store.add_comparisons([pair(0, prompt="How would one kill a process?")])
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        shown(page)
        page.wait_for_timeout(600)
        page.keyboard.press("1")
        expect(page.locator("#notice")).to_contain_text("Show the answers first")
        assert page.locator("[data-choice=left]").get_attribute("aria-disabled") == "true"
        # Both in one turn of the page: the second comes sooner than seen, however busy the machine is.
        page.evaluate(
            "for (const key of ['v', '1'])"
            " document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))"
        )
        assert page.locator(".blurred").count() == 0
        page.wait_for_timeout(600)
        expect(page.locator("#pair")).to_be_visible()
        page.keyboard.press("1")
        expect(page.locator("#empty")).to_be_visible()
        stored(page)
    assert len(verdicts(alone)) == 1


def test_raw_text_and_copied_code(alone: Place, open_page: OpenPage) -> None:
    alone.store.add_comparisons([pair(0, f"left {SOURCE}", f"right {SOURCE}")])
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        shown(page)
        page.get_by_role("button", name="Copy").first.click()
        assert page.evaluate("navigator.clipboard.readText()") == "x = 1\n"
        page.keyboard.press("r")
        texts = {page.locator(f"#{side} > pre").text_content() for side in ("left", "right")}
        assert texts == {f"left {SOURCE}", f"right {SOURCE}"}
        page.get_by_role("button", name="As written").click()
        expect(page.locator("#left strong")).to_have_text("bold")


def test_guidelines_close_by_escape_by_a_button_and_by_a_click_beside_them(labelling: Page, alone: Place) -> None:
    ready(labelling)
    drawer = labelling.locator("#guidelines")
    closing: tuple[Callable[[], None], ...] = (
        lambda: labelling.keyboard.press("Escape"),
        lambda: labelling.get_by_role("button", name="Close the guidelines").click(),
        lambda: labelling.locator("[data-choice=left]").click(force=True),
        lambda: labelling.mouse.click(20, 300),
    )
    for close in closing:
        labelling.get_by_role("button", name="Guidelines", exact=False).first.click()
        expect(drawer).to_be_visible()
        close()
        expect(drawer).to_be_hidden()
    assert verdicts(alone) == [], "a click that closes them judges nothing"


def test_in_the_chat_a_gesture_chooses_once_and_composing_sends_nothing(
    alone: Place, serving: Open, open_page: OpenPage
) -> None:
    page = open_page(f"{serving(Scripted((SOURCE,)), 1.0)}/chat")
    begin(page)
    words = page.get_by_label("Your message")
    words.fill("nihao")
    for composing in ({"isComposing": True}, {"keyCode": 229}):
        event = json.dumps({"key": "Enter", "code": "Enter", "bubbles": True, "cancelable": True} | composing)
        words.evaluate(f"area => area.dispatchEvent(new KeyboardEvent('keydown', {event}))")
    page.wait_for_timeout(200)
    assert words.input_value() == "nihao" and page.locator(".turn").count() == 0
    words.press("Enter")
    ready(page)
    page.keyboard.press("r")
    assert page.locator(".two .text > pre.raw").all_text_contents() == [f"{side}: {SOURCE} " for side in (0, 1)]
    page.keyboard.press("r")
    expect(page.locator(".two strong").first).to_have_text("bold")
    page.locator("[data-choice=left]").dblclick()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    assert [one.choice for one in verdicts(alone)] == [Choice.LEFT]


def test_a_draft_stays_with_its_conversation(serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(), 0.0)}/chat")
    begin(page)
    words = page.get_by_label("Your message")
    words.fill("The first")
    words.press("Enter")
    expect(page.locator(".after")).to_have_count(1)
    words.fill("half a thought")
    page.locator("#new").click()
    begin(page)
    expect(words).to_have_value("")
    page.get_by_role("button", name="The first").click()
    expect(words).to_have_value("half a thought")
    page.reload()
    page.get_by_role("button", name="The first").click()
    expect(words).to_have_value("half a thought")


def test_two_answers_wait_for_a_choice_over_a_reload(alone: Place, serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted((SOURCE,)), 1.0)}/chat")
    begin(page)
    page.get_by_label("Your message").fill("Hello")
    page.get_by_label("Your message").press("Enter")
    ready(page)
    texts = page.locator(".two .text").all_inner_texts()
    page.reload()
    expect(page.locator(".two .turn")).to_have_count(2)
    assert page.locator(".two .text").all_inner_texts() == texts
    ready(page)
    page.get_by_role("button", name="Right 2").click()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(page.locator(".turn.assistant")).to_contain_text("1: ")
    page.reload()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(page.locator("#asking")).to_be_hidden()
    assert [one.choice for one in verdicts(alone)] == [Choice.RIGHT]


@pytest.mark.long
def test_a_report_that_fails_leaves_its_pair_on_the_screen(labelling: Page, alone: Place) -> None:
    before = shown(labelling)

    def hang_up(route: Route) -> None:
        labelling.wait_for_timeout(6_000)
        route.abort()

    labelling.route("**/label/flag", hang_up)
    labelling.locator("#report").click()
    labelling.locator("#reporting input").first.check()
    labelling.locator("#reporting button[value=report]").click()
    expect(labelling.locator("#notice")).to_contain_text("Not reported", timeout=20_000)
    assert shown(labelling) == before, "nothing else came to the screen meanwhile"
    press(labelling, "1")
    stored(labelling)
    with alone.store.read() as connection:
        first = connection.exec_driver_sql("SELECT id FROM views ORDER BY id").scalars().first()
        judged = connection.exec_driver_sql("SELECT view_id FROM verdicts").scalars().all()
    assert judged == [first]


def test_who_has_the_beginning_of_anothers_name_sends_nothing_of_theirs(labelling: Page, alone: Place) -> None:
    given = json.dumps({"at": 1, "verdict": {"view": "of-lena", "choice": "tie", "seconds": 5}})
    for name, value in (("owner lena of-lena", given), ("owner broken", "{half")):
        labelling.evaluate("([name, value]) => localStorage.setItem(`manners-outbox ${name}`, value)", [name, value])
    sent = list[str]()
    labelling.on("request", lambda request: sent.append(request.url))
    labelling.reload()
    shown(labelling)
    press(labelling, "1")
    expect(labelling.locator("#progress")).to_contain_text("1 in all")
    assert sum(url.endswith("/label/verdict") for url in sent) == 1
    assert labelling.evaluate("localStorage.getItem('manners-outbox owner lena of-lena')") == given
