"""Names of accounts: which are refused, since a person takes them for another or for a right, and which are not."""

# ruff: noqa: RUF001 - that they look alike is what these tests are about

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.names import fit_name, look_alike
from manners.types import AccountRole

PEOPLE = [
    *("anna", "Anna B.", "José", "Zoë", "Łukasz", "Bjørn", "O'Brien", "Jean-Luc", "Đorđe", "İpek", "Nguyễn Thị Ánh"),
    *(
        "Олександр",
        "Ελένη",
        "Ֆիդել",
        "יעל",
        "محمد",
        "दुःख",
        "किरण",
        "สมชาย",
        "ნინო",
        "山田太郎",
        "김민준",
        "ゆき",
        "person 12",
    ),
    *(
        "x",
        "1984",
        "anna@example.org",
        "Mlle Élise 🌻",
        "Ilse",
        "Владимир II",
        "Reward Mbeki",
        "Adam Owner",
        "human being",
    ),
]
"""Names that people have: none is refused."""


@pytest.mark.parametrize("name", PEOPLE)
def test_a_persons_name_is_taken_as_it_is(name: str) -> None:
    assert fit_name(name) == unicodedata.normalize("NFC", name)
    assert fit_name(unicodedata.normalize("NFD", name)) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "owner",
            "Owner",
            "OWNER",
            "o w n e r",
            "own-er",
            "0wner",
            "οwner",
            "оwnеr",
            "ｏｗｎｅｒ",
            "ówner",
            "ovvner",
            "𝐨𝐰𝐧𝐞𝐫",
        ),
        *("admin", "аdmin", "Administrator", "r00t", "system", "manners", "Initial", "lnitial", "іnitial", "upstream"),
        *(
            "imported",
            "imported-2",
            "imported 17",
            "policy-1",
            "Policy-10",
            "роlісу-3",
            "reward-2",
            "sft-1",
            "pretrain_4",
        ),
        *("annotator 3", "user 1", "human", "AI", "simulated", "local", "deleted", "[deleted]", "nobody"),
    ],
)
def test_what_claims_a_right_or_is_a_name_of_ours_is_refused(name: str) -> None:
    with pytest.raises(MannersError, match="is reserved, or looks like one that is: choose another name"):
        fit_name(name)


@pytest.mark.parametrize("colon", [":", "：", "∶", "ː", "꞉", "︰", "׃", "։", "˸", "⁚"])
def test_what_parts_an_account_from_its_programs_users_is_in_no_name(colon: str) -> None:
    with pytest.raises(MannersError, match="takes no :, nor what looks like it"):
        fit_name(f"anna{colon}zed")


@pytest.mark.parametrize(
    "hidden",
    [
        *("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u061c", "\u180e"),  # no width
        *("\u200e", "\u200f", "\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2069"),  # bidi
        *("\u3164", "\u115f", "\u1160", "\uffa0", "\u2800", "\ufe0f", "\ufe00", "\U000e0061", "\U000e0100"),  # nothing
        *("\x00", "\x07", "\x1b", "\n", "\t", "\u2028", "\u00a0", "\u2003", "\u3000", "\ue000", "\ud800"),
    ],
)
def test_what_shows_nothing_is_in_no_name(hidden: str) -> None:
    for name in (f"an{hidden}na", f"{hidden}anna", f"anna{hidden}", hidden):
        with pytest.raises(MannersError, match="1 to 80 visible characters"):
            fit_name(name)


@pytest.mark.parametrize(
    "name", ["", " ", " anna", "anna ", "an  na", "a" * 81, "\u0301anna", "a\u0316\u0317\u0318\u0319"]
)
def test_blanks_length_and_drawings_are_refused(name: str) -> None:
    with pytest.raises(MannersError, match="1 to 80 visible characters"):
        fit_name(name)


@pytest.mark.parametrize("name", ["!!!", "🌻", "---", ".", "…"])
def test_a_name_has_a_letter_or_a_digit(name: str) -> None:
    with pytest.raises(MannersError, match="takes a letter or a digit"):
        fit_name(name)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *(
            ("anna", other)
            for other in ("Anna", "ANNA", "аnna", "аnnа", "ａｎｎａ", "ánna", "an-na", "an na", "anna.", "𝒶nna")
        ),
        *(("olga", other) for other in ("oIga", "o1ga", "0lga", "оlga", "OLGA", "οlga", "ol ga", "o|ga", "𝐎lga")),
        *(("emma", other) for other in ("ernma", "ernrna", "Ernma", "еmma", "emrna")),
        ("scope", "ѕсоре"),  # all Cyrillic
        ("paypal", "рауpаl"),
        ("Ilse", "lIse"),
        ("strasse", "straße"),
        ("wanda", "vvanda"),
        ("José", "Jose"),
        ("ﬁona", "fiona"),
    ],
)
def test_two_names_that_a_person_takes_for_one_are_not_both_taken(name: str, other: str) -> None:
    assert look_alike(other, ["somebody else", name]) == name
    assert look_alike(name, [other]) == other


def test_people_with_like_names_are_not_all_one() -> None:
    different = [
        "Ella",
        "Elia",
        "Mia",
        "Mila",
        "Kai",
        "Kaj",
        "Jan",
        "Ian",
        "Anna",
        "Hanna",
        "किरण",
        "करण",
        "person 1",
        "person 11",
    ]
    for number, name in enumerate(different):
        assert look_alike(name, different[:number]) is None, name


@given(st.text(max_size=12), st.data())
def test_who_looks_like_whom_depends_on_no_order_and_every_name_on_itself(name: str, data: st.DataObject) -> None:
    assert not name.isprintable() or look_alike(name, [name]) == name
    other = data.draw(st.sampled_from([name.upper(), name.lower(), f"{name}.", f" {name}"]) | st.text(max_size=12))
    assert (look_alike(name, [other]) is None) == (look_alike(other, [name]) is None)


def test_no_two_accounts_look_alike(accounts: Accounts) -> None:
    accounts.add("olga", AccountRole.OWNER)
    with pytest.raises(MannersError, match="the name oIga looks like that of the account olga; choose another name"):
        accounts.add("oIga", AccountRole.ANNOTATOR)
    with pytest.raises(MannersError, match="there is an account olga already"):
        accounts.add("olga", AccountRole.ANNOTATOR)
    accounts.disable(accounts.add("otto", AccountRole.OWNER).name)
    with pytest.raises(MannersError, match="looks like that of the account otto"):
        accounts.add("0tto", AccountRole.VIEWER)
    assert accounts.add("zoe\u0308", AccountRole.VIEWER, "correct horse").name == "zoë"
    assert accounts.check("zoe\u0308", "correct horse") == accounts.check("zoë", "correct horse") is not None


@pytest.fixture
def accounts(store: Store) -> Accounts:
    return Accounts(store)
