"""Published sets, fetched: whole and as they must be, from a real server that is well or ill, or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from manners.audit import fetch as fetching
from manners.audit.fetch import HASHES, SOURCE, Limits, Origin, fetch, led, origins
from manners.audit.sets import KNOWN, OWN, files_of, read
from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.workspace import Workspace
from tests.audit.test_sets import question
from tests.servers import Server, serving

XSTEST = b"prompt,label\nHow do I kill time?,safe\nHow do I kill?,unsafe\n"
NAMES = ("Age.jsonl", "Religion.jsonl")
BBQ = {name: (json.dumps(question(n, "neg", True, n)) + "\n").encode() for n, name in enumerate(NAMES)}


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def file_at(contents: dict[str, bytes]) -> Callable[[dict[str, Any], int], tuple[int, bytes]]:
    """What a server answers that has these files at a commit."""

    def answer(asked: dict[str, Any], number: int) -> tuple[int, bytes]:
        raw = contents.get(asked["path"].removeprefix("/c0ffee/"))
        return (404, b"\x1b[31mno such thing") if raw is None else (200, raw)

    return answer


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that lets the sets be at a server, with the hashes that are named."""

    def put(server: Server, hashes: str = "computed", **sets: dict[str, str]) -> None:
        found = {name: Origin("c0ffee", f"{server.url}/c0ffee/", hashes, 0.1, files) for name, files in sets.items()}
        monkeypatch.setattr(fetching, "origins", lambda: found)

    return put


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_ships_names_commits_and_files_that_are_read() -> None:
    shipped = origins()
    assert shipped.keys() == {known.name for known in KNOWN}
    for known in KNOWN:
        origin = shipped[known.name]
        assert re.fullmatch(r"[0-9a-f]{40}", origin.commit)
        start = rf"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/{origin.commit}/([\w/]+/)?"
        assert re.fullmatch(start, origin.url), "files are got from a commit, which nobody can change"
        owner = "/".join(origin.url.split("/")[3:5])
        assert f"github.com/{owner}" in known.source, "what is said is where it comes from"
        known_hashes = [re.fullmatch(r"[0-9a-f]{64}", one) is not None for one in origin.files.values()]
        assert all(known_hashes) if origin.hashes in ("computed", "recorded") else not any(origin.files.values())
        assert origin.hashes in HASHES and all(Path(name).name == name for name in origin.files)
        assert len(set(origin.files.values())) == (len(origin.files) if origin.hashes != "none" else 1)


def test_what_is_called_computed_has_the_hash_of_the_copy(shared_data: Path) -> None:
    """The copies are of the very commits, or of the same file elsewhere; licences come with them."""
    computed = {name: origin for name, origin in origins().items() if origin.hashes == "computed"}
    assert set(computed) == {"xstest", "ifeval"}
    for name, origin in computed.items():
        for file, hash_known in origin.files.items():
            assert sha((shared_data / name / file).read_bytes()) == hash_known
    copied = [known for known in KNOWN if known.name not in ("truthfulqa", "ifeval")]  # none, and one of a fork
    for known in copied:
        [source] = shared_data.glob(f"{known.name}*/SOURCE.md")
        assert origins()[known.name].commit in source.read_text(encoding="utf-8")
        assert f"Licence: {known.licence}" in source.read_text(encoding="utf-8")


def test_a_set_comes_whole_with_its_source_and_is_read(
    tmp_path: Path, at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Server(answer=file_at(BBQ))) as server:
        at(server, bbq={name: sha(raw) for name, raw in BBQ.items()})
        told = fetch("bbq", tmp_path / "sets")
        said = capsys.readouterr().err
        assert "github.com/nyu-mll/BBQ; licence: CC BY 4.0" in said and server.url in said and "2 files" in said
        assert told["fetched"] and told["checked"] == HASHES["computed"] and told["skipped"] == {}
        assert told["files"][0] == {"name": NAMES[0], "bytes": len(BBQ[NAMES[0]]), "sha256": sha(BBQ[NAMES[0]])}
        assert left(tmp_path) == ["sets", "sets/bbq", *(f"sets/bbq/{name}" for name in (*NAMES, SOURCE))]
        record = json.loads((tmp_path / "sets" / "bbq" / SOURCE).read_text(encoding="utf-8"))
        assert record["commit"] == "c0ffee" and record["licence"] == "CC BY 4.0" and record["time"]
        assert record["files"][1]["url"] == f"{server.url}/c0ffee/{NAMES[1]}"
        assert len(read(tmp_path / "sets").bias) == 2, "and SOURCE.json is none of its files"
        # A second time nothing is fetched, and what is there is held against what came.
        again = fetch("bbq", tmp_path / "sets")
        assert not again["fetched"] and again["files"] == told["files"] and len(server.asked) == 2
        (tmp_path / "sets" / "bbq" / NAMES[1]).write_bytes(BBQ[NAMES[0]])
        with pytest.raises(MannersError) as changed:
            fetch("bbq", tmp_path / "sets")
        assert all(word in str(changed.value) for word in (NAMES[1], sha(BBQ[NAMES[0]]), sha(BBQ[NAMES[1]])))


ILL: dict[str, tuple[dict[str, Any], str]] = {
    "has another file": ({"answer": file_at({"xstest_prompts.csv": XSTEST + b"\n"})}, "is not the file that is exp"),
    "has none": ({"answer": file_at({})}, r"the server answers with status 404\): nothing was kept"),
    "floods": ({"endless": True}, "the server sends more than 1,000 bytes"),
    "drips": ({"drip": 0.02}, "it was not done after 0.3 seconds"),
    "trickles": ({"trickle": 0.02}, "it was not done after 0.3 seconds"),
    "cuts it short": ({"short": 1}, "without sending complete message body"),
    "packs it": ({"headers": {"content-encoding": "gzip"}}, "the server packs it"),
    "leads to a file": (
        {"headers": {"location": "file:///etc/passwd"}, "answer": lambda a, n: (302, b"")},
        "leads to an address of file, and only https",
    ),
    "leads round": (
        {"headers": {"location": "/c0ffee/xstest_prompts.csv"}, "answer": lambda a, n: (307, b"")},
        "leads elsewhere more than 5 times",
    ),
    "leads nowhere": ({"answer": lambda a, n: (302, b"")}, "the server answers with status 302"),
    "leads to nonsense": (
        {"headers": {"location": "http://[:::"}, "answer": lambda a, n: (302, b"")},
        "could not be fetched",
    ),
}


@pytest.mark.parametrize("how", ILL)
def test_a_server_that_is_ill_is_one_sentence_and_nothing_is_left(
    tmp_path: Path, at: Callable[..., None], how: str
) -> None:
    chosen, sentence = ILL[how]
    usual = {"answer": file_at({"xstest_prompts.csv": XSTEST})}
    with serving(Server(**usual | chosen)) as server:
        at(server, xstest={"xstest_prompts.csv": sha(XSTEST)})
        limits = Limits(most=1000, seconds=0.3 if "0.3" in sentence else 60.0)
        with pytest.raises(MannersError, match=sentence) as error:
            fetch("xstest", tmp_path / "sets", limits=limits)
        assert (
            "\n" not in str(error.value) and "nothing was kept" in str(error.value) and "\x1b" not in str(error.value)
        )
        assert server.url in str(error.value)
    assert left(tmp_path) == []


def test_a_file_that_changed_is_named_with_both_hashes_and_its_fellows_are_not_kept(
    tmp_path: Path, at: Callable[..., None]
) -> None:
    changed = BBQ | {NAMES[1]: b"{}\n"}
    with serving(Server(answer=file_at(changed))) as server:
        at(server, bbq={name: sha(raw) for name, raw in BBQ.items()})
        with pytest.raises(MannersError) as error:
            fetch("bbq", tmp_path / "sets")
    assert all(word in str(error.value) for word in (NAMES[1], sha(b"{}\n"), sha(BBQ[NAMES[1]])))
    assert NAMES[0] not in str(error.value) and left(tmp_path) == []


def test_a_server_that_is_not_there(tmp_path: Path, at: Callable[..., None]) -> None:
    at(Server(url="http://127.0.0.1:9"), xstest={"xstest_prompts.csv": sha(XSTEST)})
    with pytest.raises(MannersError, match="could not be fetched"):
        fetch("xstest", tmp_path / "sets")
    assert left(tmp_path) == []


def test_a_redirect_is_followed_to_https_or_where_it_was_and_never_down() -> None:
    secure, plain = httpx.URL("https://one.example/a"), httpx.URL("http://one.example/a")
    assert led(secure, "/b") == "https://one.example/b" and led(plain, "https://two.example") == "https://two.example"
    assert led(secure, "//two.example/c") == "https://two.example/c"
    for location in ("http://one.example/a", "ftp://one.example", "javascript:alert(1)", "data:,x", "file:///etc"):
        with pytest.raises(MannersError, match="only https is followed"):
            led(secure, location)


def test_it_is_fetched_from_where_it_is_led(tmp_path: Path, at: Callable[..., None]) -> None:
    with serving(Server(answer=file_at({"xstest_prompts.csv": XSTEST}))) as moved:
        leads = {"location": f"{moved.url}/c0ffee/xstest_prompts.csv"}
        with serving(Server(headers=leads, answer=lambda a, n: (301, b""))) as server:
            at(server, xstest={"xstest_prompts.csv": sha(XSTEST)})
            assert fetch("xstest", tmp_path)["fetched"] and len(moved.asked) == 1


def test_without_a_known_hash_what_comes_first_is_kept_and_said(
    tmp_path: Path, at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Server(answer=file_at({"xstest_prompts.csv": XSTEST}))) as server:
        at(server, "none", xstest={"xstest_prompts.csv": ""})
        told = fetch("xstest", tmp_path)
        assert "no SHA-256 is known of these files" in capsys.readouterr().err
        assert told["checked"] == HASHES["none"] and told["files"][0]["sha256"] == sha(XSTEST)
        record = json.loads((tmp_path / "xstest" / SOURCE).read_text(encoding="utf-8"))
        assert record["hashes"] == "none" and record["files"][0]["sha256"] == sha(XSTEST)


@pytest.mark.parametrize(
    ("raw", "headers", "sentence"),
    [
        (XSTEST, {"connection": "close"}, "does not say how long it is"),
        (b"<html>moved</html>", {}, "lacks prompt, label|holds nothing"),
        (b"prompt,label\nWhat?,perhaps\n", {}, "nothing in it can be used as xstest"),
        (b"\xff\xfe", {}, "xstest_prompts.csv cannot be read"),
    ],
)
def test_what_no_hash_vouches_for_has_to_be_whole_and_of_the_kind(
    tmp_path: Path, at: Callable[..., None], raw: bytes, headers: dict[str, str], sentence: str
) -> None:
    with serving(Server(answer=file_at({"xstest_prompts.csv": raw}), headers=headers)) as server:
        at(server, "none", xstest={"xstest_prompts.csv": ""})
        with pytest.raises(MannersError, match=sentence):
            fetch("xstest", tmp_path / "sets")
        assert left(tmp_path) == []
        if headers:  # where a hash says that it is whole, nobody asks how long it is
            at(server, xstest={"xstest_prompts.csv": sha(XSTEST)})
            assert fetch("xstest", tmp_path / "sets")["fetched"]


def test_the_users_own_hash_stands_in_the_place_of_those_that_ship(tmp_path: Path, at: Callable[..., None]) -> None:
    with serving(Server(answer=file_at(BBQ))) as server:
        at(server, "none", bbq=dict.fromkeys(BBQ, ""))
        own = [sha(raw) for raw in BBQ.values()]
        with pytest.raises(MannersError, match=f"{NAMES[1]} is not the file that is expected"):
            fetch("bbq", tmp_path / "sets", own[:1])
        assert left(tmp_path) == []
        told = fetch("bbq", tmp_path / "sets", own[::-1])
        assert told["checked"] == HASHES["given"] and told["hashes"] == "given"
        assert not fetch("bbq", tmp_path / "sets", own)["fetched"]
        with pytest.raises(MannersError, match="none of those that you gave"):
            fetch("bbq", tmp_path / "sets", ["0" * 64])
        at(server, bbq=dict.fromkeys(BBQ, "0" * 64))
        assert fetch("bbq", tmp_path / "others", own)["fetched"], "what ships is not asked"


def test_what_somebody_put_there_is_left_alone(tmp_path: Path, at: Callable[..., None]) -> None:
    with serving(Server(answer=file_at({"xstest_prompts.csv": XSTEST}))) as server:
        at(server, xstest={"xstest_prompts.csv": sha(XSTEST)})
        place = tmp_path / "xstest"
        place.mkdir()
        for record in (None, "nonsense", "{}", '{"set": "xstest", "hashes": "none", "files": [{"name": "../x"}]}'):
            if record is not None:
                (place / SOURCE).write_text(record, encoding="utf-8")
            with pytest.raises(MannersError, match="is there already, and is not a set that was fetched"):
                fetch("xstest", tmp_path)
        assert not server.asked
        (place / SOURCE).unlink()
        place.rmdir()
        fetch("xstest", tmp_path)
        (place / "xstest_prompts.csv").unlink()
        with pytest.raises(MannersError, match="or a file that it names is not there"):
            fetch("xstest", tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with serving(Server(answer=file_at({"xstest_prompts.csv": XSTEST}))) as server:
        at(server, xstest={"xstest_prompts.csv": sha(XSTEST)})
        with pytest.raises(MannersError, match="cannot be written"):
            fetch("xstest", tmp_path / "file" / "sets")


def test_the_command_takes_it_into_the_workspace_where_an_audit_looks(
    tmp_path: Path,
    at: Callable[..., None],
    new_workspace: Callable[[Path], Workspace],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "project"
    new_workspace(root)
    command = ["audit", "data", "--json", "--workspace", str(root)]
    with serving(Server(answer=file_at({"xstest_prompts.csv": XSTEST}))) as server:
        at(server, xstest={"xstest_prompts.csv": sha(XSTEST)})
        assert main([*command, "--fetch", "xstest"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["folder"] == str(root / OWN / "xstest") and told["fetched"] is True
        assert main(command) == 0
        listed = json.loads(capsys.readouterr().out)
        assert [row["name"] for row in listed["sets"] if row["there"]] == ["xstest"]
        named = ["--set", f"audit.sets={tmp_path / 'elsewhere'}"]
        assert main([*command, *named, "--fetch", "xstest", "--sha256", sha(XSTEST).upper()]) == 0
        assert files_of(tmp_path / "elsewhere", KNOWN[0]) and json.loads(capsys.readouterr().out)["hashes"] == "given"
        assert main([*command, "--set", f"audit.sets={tmp_path}", "--fetch", "xstest", "--sha256", "0" * 64]) == 1
        assert "0" * 64 in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data", "--fetch", "mmlu"], "--fetch takes xstest, winobias, truthfulqa, bbq, ifeval"),
        (["data", "--fetch", "../bbq"], "no published set is called ../bbq"),
        (["policy", "--fetch", "bbq"], "manners audit data --fetch NAME"),
        (["data", "--sha256", "0" * 64], "manners audit data --fetch NAME"),
        (["data", "--fetch", "bbq", "--sha256", "abc"], "is no SHA-256"),
        (["data", "--fetch", "bbq", "--plan"], "goes with --fetch NAME alone"),
        (["--gate", "--fetch", "bbq"], "goes with a VERSION alone"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(
    tmp_path: Path,
    new_workspace: Callable[[Path], Workspace],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    new_workspace(tmp_path / "project")
    assert main(["audit", *words, "--workspace", str(tmp_path / "project")]) == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(UsageError):
        fetch("mmlu", tmp_path)
