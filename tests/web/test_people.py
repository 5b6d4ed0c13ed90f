"""Links, keys, sessions and passwords: whose right they rest on, what they are good for, and how they end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from sqlalchemy import update
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store.tables import TokenRow
from manners.store.tokens import PROGRAMS, Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web.app import OPEN, create_app
from manners.web.auth import COOKIE
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import NOWHERE, Place, enter, serve
from tests.web.scripted import Scripted
from tests.web.test_roles import routes

PASSWORD = "correct horse"
HERE = "http://127.0.0.1:8000"
Browser = Callable[[], TestClient]
CHAT, FEEDBACK, EXPORT, METRICS, ADMIN = Scope
SCOPES = {
    "/": None,
    "/chat": CHAT,
    "/chat/state": CHAT,
    "/chat/all": CHAT,
    "/chat/export": EXPORT,
    "/chat/begin": CHAT,
    "/chat/thumb": CHAT,
    "/chat/report": CHAT,
    "/chat/{key}": CHAT,
    "/chat/{key}/say": CHAT,
    "/chat/{key}/ongoing": CHAT,
    "/chat/{key}/stop": CHAT,
    "/chat/{key}/choose": CHAT,
    "/chat/{key}/delete": CHAT,
    "/dashboard": EXPORT,
    "/dashboard.json": EXPORT,
    "/rounds": EXPORT,
    "/rounds.json": EXPORT,
    "/rounds/step": ADMIN,
    "/rounds/stop": ADMIN,
    "/metrics": METRICS,
    "/dashboard/promote": ADMIN,
    "/dashboard/rollback": ADMIN,
    "/accounts": ADMIN,
    "/log": ADMIN,
    "/accounts/invite": ADMIN,
    "/accounts/role": ADMIN,
    "/accounts/disable": ADMIN,
    "/accounts/enable": ADMIN,
    "/accounts/key": ADMIN,
    "/accounts/revoke": ADMIN,
    "/accounts/link": ADMIN,
    "/me": ADMIN,
    "/me/password": ADMIN,
    "/me/revoke": ADMIN,
    "/label": FEEDBACK,
    "/label/begin": FEEDBACK,
    "/label/next": FEEDBACK,
    "/label/verdict": FEEDBACK,
    "/label/undo": FEEDBACK,
    "/label/flag": FEEDBACK,
    "/label/progress": FEEDBACK,
    "/review": ADMIN,
    "/flags": ADMIN,
    "/flags/{token}": ADMIN,
    "/v1/models": CHAT,
    "/v1/models/{name}": CHAT,
    "/v1/health": CHAT,
    "/v1/chat/completions": CHAT,
    "/v1/feedback": FEEDBACK,
    "/v1/comparisons": FEEDBACK,
}
"""Written by hand: what a key must be good for to be let in, on each route that is not open to all."""


@pytest.fixture
def browser(place: Place) -> Iterator[Browser]:
    """A function that returns a browser that nobody has signed in with; three accounts beside olga, the owner."""
    for name, role in (("otto", AccountRole.OWNER), ("anna", AccountRole.ANNOTATOR), ("ben", AccountRole.ANNOTATOR)):
        place.accounts.add(name, role, PASSWORD)
    workspace = Workspace.open(place.folder)
    app = create_app(Site(workspace, Settings(), place.store, place.accounts, False, HERE, Scripted()))
    yield lambda: TestClient(app, base_url=HERE, follow_redirects=False)


def signed_in(browser: Browser, name: str, password: str = PASSWORD) -> TestClient:
    one = browser()
    assert one.post("/sign-in", data={"name": name, "password": password}).status_code == 303
    return one


def link_in(page: str, kind: str) -> str:
    found = re.search(rf"<code>{re.escape(HERE)}(/{kind}/[^<]+)</code>", page)
    assert found is not None
    return found[1]


def key_in(page: str) -> dict[str, str]:
    found = re.search(r"shown this once: <code>([^<]+)</code>", page)
    assert found is not None
    return {"authorization": f"Bearer {found[1]}"}


@pytest.mark.parametrize("scope", Scope)
def test_a_key_is_good_for_its_scopes_and_for_nothing_else(place: Place, browser: Browser, scope: Scope) -> None:
    key = place.accounts.issue(TokenUse.KEY, "olga", terms=Terms(scopes=(scope,)))
    client = browser()
    client.headers["authorization"] = f"Bearer {key}"
    walked = set(routes(client.app))
    assert {path for _, path in walked} - OPEN == SCOPES.keys()
    for method, path in walked:
        if path not in OPEN:
            body: dict[str, str] | None = None if method == "GET" else {}
            status = client.request(method, path.replace("{", "").replace("}", ""), json=body).status_code
            assert (status == 403) == (SCOPES[path] not in (None, scope)), (method, path, status)


def test_a_key_may_chat_and_give_verdicts_unless_it_is_said(place: Place, browser: Browser) -> None:
    owner = signed_in(browser, "olga")
    plain = key_in(owner.post("/accounts/key", data={"name": "anna"}).text)
    assert browser().get("/v1/models", headers=plain).status_code == 200
    refused = browser().get("/chat/export", headers=plain)
    assert refused.status_code == 403 and "this key is not for export: make one with" in refused.text
    reads = key_in(owner.post("/accounts/key", data={"name": "anna", "scope": ["export"], "days": "3"}).text)
    assert browser().get("/chat/export", headers=reads).status_code == 200
    assert browser().get("/v1/models", headers=reads).status_code == 403
    first, second = place.accounts.tokens(TokenUse.KEY)
    assert (first.scopes, second.scopes, first.issuer, second.issuer) == (PROGRAMS, (EXPORT,), "olga", "olga")
    assert second.expires_at is not None and timedelta(2) < second.expires_at - datetime.now(UTC) < timedelta(4)
    for wrong in ({"scope": "everything"}, {"days": "0"}, {"days": "99999"}):
        assert owner.post("/accounts/key", data={"name": "anna"} | wrong).status_code == 400


def test_a_role_is_a_limit_whatever_the_key_says(place: Place, browser: Browser) -> None:
    key = place.accounts.issue(TokenUse.KEY, "anna", terms=Terms(scopes=tuple(Scope)))
    for path in ("/accounts", "/dashboard.json", "/flags"):
        assert browser().get(path, headers={"authorization": f"Bearer {key}"}).status_code == 403


def issued_by_otto(place: Place, browser: Browser) -> dict[str, Callable[[], int]]:
    """What otto hands out, each as a function that says with which status it is taken."""
    otto = signed_in(browser, "otto")
    invitation = link_in(otto.post("/accounts/invite", data={"role": "owner"}).text, "join")
    link = link_in(otto.post("/accounts/link", data={"name": "olga"}).text, "sign-in")
    key = key_in(otto.post("/accounts/key", data={"name": "ben"}).text)
    followed = browser()
    used = link_in(otto.post("/accounts/link", data={"name": "anna"}).text, "sign-in")
    assert followed.post(used).status_code == 303
    form = {"name": "mole", "password": PASSWORD}
    return {
        "invitation": lambda: browser().get(invitation).status_code,
        "invitation taken up": lambda: browser().post(invitation, data=form).status_code,
        "link": lambda: browser().get(link).status_code,
        "link followed": lambda: browser().post(link).status_code,
        "key": lambda: browser().get("/v1/models", headers=key).status_code,
        "session from a link": lambda: followed.get("/label").status_code,
        "own session": lambda: otto.get("/accounts").status_code,
    }


GOOD = {"invitation": 200, "link": 200, "key": 200, "session from a link": 200, "own session": 200}


@pytest.mark.parametrize("how", ["disabled", "demoted", "disabled and enabled", "demoted and promoted", "on the page"])
def test_what_somebody_issued_ends_with_their_right_to(place: Place, browser: Browser, how: str) -> None:
    issued = issued_by_otto(place, browser)
    assert {name: issued[name]() for name in GOOD} == GOOD
    accounts = place.accounts
    match how:
        case "disabled" | "disabled and enabled":
            accounts.disable("otto")
        case "demoted" | "demoted and promoted":
            accounts.set_role("otto", AccountRole.REVIEWER)
        case _:
            assert signed_in(browser, "olga").post("/accounts/disable", data={"name": "otto"}).status_code == 303
    if how == "disabled and enabled":
        accounts.enable("otto")
    if how == "demoted and promoted":
        accounts.set_role("otto", AccountRole.OWNER)
    found = {name: now() for name, now in fresh(issued, browser).items()}
    own = found.pop("own session")
    assert own == {"demoted": 403, "demoted and promoted": 200}.get(how, 401)
    assert set(found.values()) == {400, 401}, found
    assert [token.issuer for token in accounts.tokens() if token.issuer == "otto"] == []
    assert "mole" not in {account.name for account in accounts.all()}


def fresh(issued: dict[str, Callable[[], int]], browser: Browser) -> dict[str, Callable[[], int]]:
    """Let nothing be believed from before, as a second later nothing is."""
    browser().app.state.site.remembered.clear()  # type: ignore[attr-defined]
    return issued


def test_a_link_is_taken_by_the_button_and_by_nothing_that_only_looks(place: Place, browser: Browser) -> None:
    invitation = f"/join/{place.accounts.issue(TokenUse.INVITATION, role=AccountRole.VIEWER)}"
    link = place.link("anna")
    for path in (invitation, link):
        for method in ("GET", "HEAD", "OPTIONS", "GET"):
            looked = browser()
            looked.request(method, path, headers={"user-agent": "scanner"})
            assert COOKIE not in looked.cookies
    anna, vera = browser(), browser()
    assert anna.post(link).status_code == vera.post(invitation, data={"name": "vera", "password": PASSWORD}).status_code
    assert (anna.get("/").headers["location"], vera.get("/").headers["location"]) == ("/label", "/dashboard")
    for path in (invitation, link):
        assert browser().post(path, data={"name": "eva", "password": PASSWORD}).status_code == 400


def test_a_sent_page_of_another_site_presses_no_button(place: Place, browser: Browser) -> None:
    link = place.link("anna")
    assert browser().post(link, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert browser().post(link).status_code == 303


def test_all_that_lets_somebody_in_is_listed_and_can_be_ended(place: Place, browser: Browser) -> None:
    owner, anna = signed_in(browser, "olga"), signed_in(browser, "anna")
    invitation = link_in(owner.post("/accounts/invite", data={"role": "viewer"}).text, "join")
    link = link_in(owner.post("/accounts/link", data={"name": "ben"}).text, "sign-in")
    key = key_in(owner.post("/accounts/key", data={"name": "ben", "label": "our app"}).text)
    page = owner.get("/accounts").text
    for shown in ("invitation as viewer", "sign-in link", "our app: chat, feedback", "testclient"):
        assert shown in page
    for token in place.accounts.tokens():
        if token.account != "olga":
            assert owner.post("/accounts/revoke", data={"number": token.id}).status_code == 303
    assert browser().get(invitation).status_code == browser().get(link).status_code == 400
    assert browser().get("/v1/models", headers=key).status_code == anna.get("/label").status_code == 401
    gone = owner.post("/accounts/revoke", data={"number": 10_000})
    assert gone.status_code == 400 and "nothing of number 10000 to end" in gone.text


def test_nobody_ends_what_is_not_theirs(place: Place, browser: Browser) -> None:
    anna, ben = signed_in(browser, "anna"), signed_in(browser, "ben")
    [his] = place.accounts.tokens(TokenUse.SESSION, account="ben")
    [hers] = place.accounts.tokens(TokenUse.SESSION, account="anna")
    assert anna.post("/me/revoke", data={"number": his.id}).status_code == 400
    assert ben.get("/label").status_code == 200
    assert anna.post("/me/revoke", data={"number": hers.id}).status_code == 303
    assert anna.get("/label").status_code == 401


def test_an_account_has_twenty_sessions_and_a_new_one_ends_the_oldest(place: Place, browser: Browser) -> None:
    def by_link() -> TestClient:
        one = browser()
        assert one.post(place.link("anna")).status_code == 303
        return one

    anna, ben = [by_link() for _ in range(20)], signed_in(browser, "ben")
    assert all(one.get("/label").status_code == 200 for one in anna)
    anna += [by_link() for _ in range(2)]
    browser().app.state.site.remembered.clear()  # type: ignore[attr-defined]
    assert [one.get("/label").status_code for one in anna] == [401] * 2 + [200] * 20
    assert ben.get("/label").status_code == 200, "nobody else's"
    assert len(place.accounts.tokens(TokenUse.SESSION, account="anna")) == 20
    keys = [place.accounts.issue(TokenUse.KEY, "anna") for _ in range(22)]
    assert all(place.accounts.admit(one, TokenUse.KEY) for one in keys), "of keys an owner makes as many as it takes"


def test_a_password_is_changed_by_who_knows_it(place: Place, browser: Browser) -> None:
    here, there = signed_in(browser, "anna"), signed_in(browser, "anna")
    key = place.accounts.issue(TokenUse.KEY, "anna")
    link = place.link("anna")
    new = "another horse"
    for old, wanted in (("wrong", new), (PASSWORD, "short"), (PASSWORD, "a" * 1001)):
        assert here.post("/me/password", data={"old": old, "new": wanted}).status_code == 400
    changed = here.post("/me/password", data={"old": PASSWORD, "new": new})
    assert (changed.status_code, changed.headers["location"]) == (303, "/me")
    assert here.get("/label").status_code == 200 and there.get("/label").status_code == 401
    assert browser().get(link).status_code == 400, "a link that somebody else may have"
    assert browser().get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert browser().post("/sign-in", data={"name": "anna", "password": PASSWORD}).status_code == 403
    signed_in(browser, "anna", new)


def test_a_password_is_reset_by_a_link(place: Place, browser: Browser) -> None:
    lost = signed_in(browser, "anna")
    link = place.link("anna")
    assert browser().post(link, data={"password": "short"}).status_code == 400
    anna = browser()
    assert anna.post(link, data={"password": "another horse"}).status_code == 303, "the mistake has cost nothing"
    assert anna.get("/label").status_code == 200 and lost.get("/label").status_code == 401
    signed_in(browser, "anna", "another horse")
    assert browser().post(place.link("anna"), data={"password": ""}).status_code == 303
    signed_in(browser, "anna", "another horse")


def test_a_password_is_no_key_to_guess_at_from_a_stolen_session(place: Place, browser: Browser) -> None:
    anna = signed_in(browser, "anna")
    answers = [anna.post("/me/password", data={"old": "wrong", "new": PASSWORD}).status_code for _ in range(12)]
    assert answers[0] == 400 and answers[-1] == 429


def test_what_has_run_out_is_good_for_nothing(place: Place, browser: Browser) -> None:
    secrets = {use: place.accounts.issue(use, "anna") for use in (TokenUse.KEY, TokenUse.SESSION, TokenUse.SIGN_IN)}
    secrets[TokenUse.INVITATION] = place.accounts.issue(TokenUse.INVITATION, role=AccountRole.OWNER)
    assert all(token.expires_at is not None for token in place.accounts.tokens())
    with place.store.write() as connection:
        connection.execute(update(TokenRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert place.accounts.tokens() == []
    assert all(place.accounts.admit(secret, use) is None for use, secret in secrets.items())
    assert place.accounts.invitation(secrets[TokenUse.INVITATION]) is None
    assert browser().post(f"/sign-in/{secrets[TokenUse.SIGN_IN]}").status_code == 400


def judged(**more: Any) -> dict[str, Any]:
    return {"prompt": "Bread?", "left": {"text": "a"}, "right": {"text": "b"}, "choice": "left"} | more


def test_verdicts_for_users_come_with_a_key_and_not_from_a_browser(place: Place, browser: Browser) -> None:
    anna = signed_in(browser, "anna")
    for path, body in (("/v1/comparisons", judged(user="u")), ("/v1/feedback", {"pair_id": "x", "choice": "left"})):
        refused = anna.post(path, json=body)
        assert refused.status_code == 403 and "for programs, which come with a key" in refused.text
        only_chat = place.accounts.issue(TokenUse.KEY, "anna", terms=Terms(scopes=(CHAT,)))
        both = {"authorization": f"Bearer {only_chat}"}
        assert anna.post(path, json=body, headers=both).status_code == 403, "the cookie lends the key nothing"
    assert place.store.comparisons() == []
    key = {"authorization": f"Bearer {place.accounts.issue(TokenUse.KEY, 'anna')}"}
    assert browser().post("/v1/comparisons", json=judged(user="u"), headers=key).status_code == 201
    anna_id = next(account.id for account in place.accounts.all() if account.name == "anna")
    [said] = [verdict.annotator for one in place.store.comparisons() for verdict in one.verdicts]
    assert (said.name, said.account) == ("anna:u", anna_id)


def test_a_user_named_like_somebody_is_the_programs_user(place: Place, browser: Browser) -> None:
    keys = {name: {"authorization": f"Bearer {place.accounts.issue(TokenUse.KEY, name)}"} for name in ("anna", "ben")}
    for name in ("anna", "ben"):
        for user in (None, "ben", "anna", "olga", "owner", ":", "ben:x", "\u200b"):
            sent = judged(prompt=f"{name} {user}", user=user)
            assert browser().post("/v1/comparisons", json=sent, headers=keys[name]).status_code == 201
    found = [verdict.annotator for one in place.store.comparisons() for verdict in one.verdicts]
    assert len(set(found)) == 16 and len({one.account for one in found}) == 2


@pytest.mark.long
def test_a_person_comes_by_a_link_sets_a_password_and_ends_a_session(
    place: Place, open_page: Callable[..., Page]
) -> None:
    place.accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    with serve(place.folder, "--upstream", NOWHERE) as server:
        page = open_page(server.url + place.link("anna"))
        page.get_by_label("New password").fill("another horse")
        enter(page)
        page.get_by_role("link", name="anna").click()
        expect(page.get_by_role("heading", name="anna")).to_be_visible()
        assert [v["id"] for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")] == []
        page.get_by_label("Password now").fill("another horse")
        page.get_by_label("New password").fill("a third horse")
        page.get_by_role("button", name="Change it").click()
        expect(page.get_by_role("heading", name="Where you are signed in")).to_be_visible()
        page.get_by_role("button", name=re.compile("End number")).click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        owner = enter(open_page(server.url + place.link("olga")))
        owner.get_by_role("link", name="Accounts").click()
        owner.get_by_label("Acts for").select_option("anna")
        owner.get_by_label("What for").fill("our app")
        owner.get_by_label("export").check()
        owner.get_by_role("button", name="Make a key").click()
        expect(owner.get_by_text("our app: chat, feedback, export")).to_be_visible()
        found = Axe().run(owner).response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
        owner.get_by_role("button", name=re.compile("End number .* of anna")).first.click()
        expect(owner.get_by_text("our app")).to_have_count(0)
