"""A published set, fetched: files of a stated commit, each held against its SHA-256, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from anyio import fail_after
from anyio.from_thread import start_blocking_portal

from manners import connecting
from manners.audit.sets import KNOWN, usable
from manners.data import origins_of_sets
from manners.errors import MannersError, UsageError
from manners.progress import track
from manners.workspace import atomic_folder, atomic_write

SOURCE = "SOURCE.json"
"""Beside the files: where each came from, when, under which licence, and its SHA-256."""
REDIRECTS = 5
HASHES = {
    "computed": "each file must have the SHA-256 that ships with manners, computed over a copy of it",
    "recorded": "each file must have the SHA-256 that ships with manners, on which public records of this commit agree;"
    " it was not computed for manners",
    "none": "no SHA-256 is known of these files: what comes first is taken as it is, and its own is kept in"
    f" {SOURCE} (--sha256 HEX, once for each file, demands yours)",
    "given": "each file must have one of the SHA-256 that you gave",
}
"""How it is known what the files must be, and what is said of that."""


@dataclass(frozen=True)
class Limits:
    """What a server may take before it is given up."""

    most: int = 32_000_000
    """Bytes of one file; the longest, of BBQ, has 13 million."""
    stalled: float = 30.0
    """Seconds in which nothing comes."""
    seconds: float = 600.0
    """Seconds that one file takes in all, from the connection on."""


@dataclass(frozen=True)
class Origin:
    """Where a set is fetched from."""

    commit: str
    url: str
    """What its files' names are put behind; the commit is in it."""
    hashes: str
    """How those below are known: a key of `HASHES`."""
    megabytes: float
    """Of all files, about."""
    files: Mapping[str, str]
    """A file's name, and its SHA-256; empty where it is not known."""


@dataclass(frozen=True)
class Fetched:
    """A file as it came."""

    name: str
    url: str
    bytes: int
    sha256: str


def origins() -> dict[str, Origin]:
    """Return where each set is fetched from, as it ships (`sets.toml`)."""
    return {
        name: Origin(
            one["commit"],
            one["from"].format(commit=one["commit"]),
            one["hashes"],
            float(one["megabytes"]),
            one["files"],
        )
        for name, one in origins_of_sets().items()
    }


def fetch(name: str, folder: Path, sha256: Sequence[str] = (), limits: Limits | None = None) -> dict[str, Any]:
    """Take a published set into its place in a folder of sets, and return what came, from where.

    With `sha256` each of its files must have one of these, in place of those that ship. A set that was fetched before
    is held against what came then, and nothing is fetched.

    Raises:
        UsageError: no set has this name.
        MannersError: a file is not the one that is expected, did not come, or has been changed; nothing was kept.
    """
    known = next((one for one in KNOWN if one.name == name), None)
    if known is None:
        raise UsageError(f"no published set is called {name}: --fetch takes {', '.join(one.name for one in KNOWN)}.")
    place, origin = folder / name, origins()[name]
    if here := place.exists():
        record = _kept(place, name, sha256)
        contents = {file["name"]: (place / file["name"]).read_bytes() for file in record["files"]}
    else:
        how = "given" if sha256 else origin.hashes
        print(
            f"fetching {name} ({known.source}; licence: {known.licence}): {len(origin.files)} files,"
            f" {origin.megabytes:g} MB in all, from {origin.url}; {HASHES[how]}",
            file=sys.stderr,
        )
        contents = _all(name, origin, sha256, limits or Limits())
        record = {
            "set": name,
            "source": known.source,
            "licence": known.licence,
            "commit": origin.commit,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "hashes": how,
            "files": [asdict(Fetched(file, origin.url + file, len(raw), _hash(raw))) for file, raw in contents.items()],
        }
    skipped = usable(known, contents).skipped or {}
    if not here:
        _write(place, contents | {SOURCE: (json.dumps(record, indent=1) + "\n").encode()})
    return record | {
        "folder": str(place),
        "fetched": not here,
        "checked": HASHES.get(record["hashes"], record["hashes"]),
        "files": [{key: file[key] for key in ("name", "bytes", "sha256")} for file in record["files"]],
        "skipped": dict(skipped),
        "next": "manners audit policy",
    }


def _kept(place: Path, name: str, sha256: Sequence[str]) -> dict[str, Any]:
    """Return the record of what was fetched before; raises MannersError where it is another thing, or was changed."""
    try:
        record: dict[str, Any] = json.loads((place / SOURCE).read_text(encoding="utf-8"))
        files = [Fetched(**file) for file in record["files"]]
        plain = all(Path(file.name).name == file.name for file in files)
        if (record["set"], type(record["hashes"])) != (name, str) or not files or not plain:
            raise ValueError(name)
        now = {file.name: _hash((place / file.name).read_bytes()) for file in files}
    except (OSError, ValueError, KeyError, TypeError):
        raise MannersError(
            f"{place} is there already, and is not a set that was fetched ({SOURCE} or a file that it names is not"
            f" there): leave it as it is, or move it away and fetch {name}."
        ) from None
    for file in files:
        if now[file.name] != file.sha256:
            raise MannersError(
                f"{place / file.name} has been changed since it was fetched (its SHA-256 is {now[file.name]}, and was"
                f" {file.sha256}): move {place} away and fetch {name} again."
            )
        if sha256 and file.sha256 not in sha256:
            raise MannersError(
                f"{place / file.name} is there already with the SHA-256 {file.sha256}, none of those that you gave:"
                f" move {place} away to fetch {name} again."
            )
    return record


def _all(name: str, origin: Origin, sha256: Sequence[str], limits: Limits) -> dict[str, bytes]:
    """Return the contents of all files of a set."""
    client = connecting.client(httpx.AsyncClient, headers={"accept-encoding": "identity"}, timeout=limits.stalled)
    came = {}
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        for file, shipped in track(origin.files.items(), f"fetching {name}", len(origin.files)):
            wanted = sha256 or ([shipped] if shipped else [])
            came[file] = portal.call(_one, client, origin.url + file, wanted, limits)
    return came


async def _one(client: httpx.AsyncClient, url: str, wanted: Sequence[str], limits: Limits) -> bytes:
    """Return a file; raises MannersError where it does not come, whole and in time, or is not one of those wanted."""
    try:
        with fail_after(limits.seconds):
            raw, ended = await _followed(client, url, limits)
    except TimeoutError:
        raise _failed(url, f"it was not done after {limits.seconds:g} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise _failed(url, str(error) or type(error).__name__) from error
    if not wanted and not ended:
        raise _failed(url, "the server does not say how long it is, and nobody could tell whether all of it came")
    if wanted and _hash(raw) not in wanted:
        raise MannersError(
            f"{url} is not the file that is expected (its SHA-256 is {_hash(raw)}, and must be {' or '.join(wanted)}):"
            " nothing was kept; try again later, or give --sha256 HEX, once for each file, with what somebody you trust"
            " tells you."
        )
    return raw


async def _followed(client: httpx.AsyncClient, url: str, limits: Limits) -> tuple[bytes, bool]:
    """Return what is at an address, or where that leads, and whether the server said where it ends."""
    at = httpx.URL(url)
    for _ in range(REDIRECTS + 1):
        async with client.stream("GET", at) as response:
            if not response.has_redirect_location:
                return await _body(response, url, limits)
            at = led(at, response.headers["location"])
    raise _failed(url, f"the server leads elsewhere more than {REDIRECTS} times")


def led(at: httpx.URL, location: str) -> httpx.URL:
    """Return the address that one leads to; raises MannersError where that is neither https nor as the one before."""
    there = at.join(location)
    if there.scheme not in ("https", at.scheme):
        raise _failed(str(at), f"the server leads to an address of {there.scheme}, and only https is followed")
    return there


async def _body(response: httpx.Response, url: str, limits: Limits) -> tuple[bytes, bool]:
    if response.status_code != httpx.codes.OK:
        raise _failed(url, f"the server answers with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _failed(url, "the server packs it, though asked not to")
    read = bytearray()
    async for piece in response.aiter_raw():
        read += piece
        if len(read) > limits.most:
            raise _failed(url, f"the server sends more than {limits.most:,} bytes")
    return bytes(read), not {"content-length", "transfer-encoding"}.isdisjoint(response.headers)


def _write(place: Path, contents: Mapping[str, bytes]) -> None:
    try:
        with atomic_folder(place) as partial:
            for name, raw in contents.items():
                atomic_write(partial / name, raw)
    except OSError as error:
        raise MannersError(
            f"{place} cannot be written ({error.strerror}): nothing was kept; name another folder in audit.sets."
        ) from error


def _failed(url: str, why: str) -> MannersError:
    return MannersError(f"{url} could not be fetched ({why}): nothing was kept; try again, or take it by hand.")


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
