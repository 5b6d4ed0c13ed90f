"""Any server that speaks OpenAI's chat completions as a judge: asked with patience, and never for more than allowed.

Where it tells the probabilities of tokens the verdict is read off these, else off verdicts that it draws.
Source: OpenAI API reference, "Chat".
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from anyio import fail_after
from anyio.from_thread import BlockingPortal, start_blocking_portal

from manners import connecting
from manners.errors import MannersError
from manners.feedback.judge import SHOWN, Reading, letter
from manners.types import Dialogue

MOST_BYTES = 1_000_000
"""Of one answer: who sends more is not read on."""
REPLY_TOKENS = 8
"""Asked for at most: one letter, and what a model puts around it."""
MASS = 0.1
"""What A and B must have together of a token's probability for it to be the verdict."""
TOP = 20
"""Tokens whose probabilities are asked for, the most that the API allows."""
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which it is asked again."""
LONGEST_PAUSE = 60.0
MOST_TOKENS = 1_000_000
"""That a server may say one answer took: who counts more cannot count."""
NONSENSE = 20
"""Answers after which a server that has said neither A nor B even once is asked no more."""


class Spent(Exception):
    """What may be spent has been spent."""


@dataclass
class Budget:
    """What may be spent on a run; for several threads."""

    requests: int
    tokens: int
    asked: int = 0
    """Requests, those that failed included."""
    used: int = 0
    """Tokens, as the server counts them; where it does not, a third of the characters sent and received."""
    keep: Callable[[int, int], None] = lambda asked, used: None
    """Told both each time that one of them grows, and of a request before it is sent."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self) -> None:
        """Count a request; raises Spent where there is none left."""
        with self.lock:
            if self.asked >= self.requests or self.used >= self.tokens:
                raise Spent
            self.asked += 1
            self.keep(self.asked, self.used)

    def use(self, tokens: int) -> None:
        """Count tokens."""
        with self.lock:
            self.used += tokens
            self.keep(self.asked, self.used)


@dataclass
class Endpoint:
    """A server with the model to ask for."""

    url: str
    model: str
    key: str
    timeout: float
    """Seconds that one answer may take in all."""
    retries: int
    samples: int
    """Verdicts that are drawn where no probabilities are told."""
    budget: Budget
    pause: float = 1.0
    """Seconds before it is asked again; twice as many each time, or as the server says."""
    plain: bool = False
    """Whether it refuses to be asked for probabilities."""
    refused: str = ""
    """What it said last to a question that it refused."""
    read: int = 0
    nonsense: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    portal: BlockingPortal = field(init=False)

    def __post_init__(self) -> None:
        """Raise MannersError where the address is none."""
        self.url = address(self.url)
        self.key = self.key.strip()  # a key that was read from a file ends with its line
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise MannersError("MANNERS_JUDGE_KEY is no key: one is a single word of ASCII letters and digits")
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        secure = self.url.startswith("https")  # reading certificates takes a quarter of a second
        # No time limit but that of `_posted`.
        self.client = connecting.client(httpx.AsyncClient, headers=headers, timeout=None, verify=secure)

    @contextmanager
    def connected(self) -> Iterator[Endpoint]:
        """Keep connections while the block lasts, in which alone it can be asked."""
        with start_blocking_portal() as self.portal:
            try:
                yield self
            finally:
                self.portal.call(self.client.aclose)

    def ask(self, question: Dialogue) -> Reading:
        """Ask once where probabilities are told, or `samples` times; raises Spent, or MannersError where it fails."""
        messages = [{"role": turn.role.value, "content": turn.text} for turn in question]
        if (said := self._said(messages, seed=0)) is None:
            return self._noted(Reading(None), self.refused)
        if (first := probability(said)) is not None:
            return self._noted(Reading(round(first, SHOWN)), "")
        drawn = [said, *(self._said(messages, seed) for seed in range(1, self.samples))]
        votes = [vote for one in drawn if one is not None and (vote := letter(_text(one))) is not None]
        if 2 * len(votes) <= self.samples:
            return self._noted(Reading(None, self.samples), _text(said))
        share = (sum(votes) + 0.5) / (len(votes) + 1)
        return self._noted(Reading(round(share, SHOWN), self.samples), "")

    def _noted(self, reading: Reading, said: str) -> Reading:
        """Count what could not be read; raises MannersError where nothing ever can."""
        with self.lock:
            self.read += 1
            self.nonsense += reading.first is None
            if self.nonsense == self.read == NONSENSE:
                raise MannersError(
                    f"the judge at {self.url} answers neither A nor B: none of its first {NONSENSE} answers could be"
                    f" read (the last one: {said[:60]!r}); ask for another model with judge.model"
                )
        return reading

    def _said(self, messages: list[dict[str, str]], seed: int) -> dict[str, Any] | None:
        """Return an answer's first choice, asking again where that may help; None where it refuses the question."""
        reason, plain = "", self.plain
        failed = 0
        while failed <= self.retries:
            wait = 0.0
            self.budget.ask()
            try:
                status, body, wait = self._post(self._body(messages, seed, plain))
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                status, reason = 0, _short(str(error)) or type(error).__name__
            if status == 200:
                if (choice := self._choice(messages, body)) is not None:
                    self.plain = plain
                    return choice
                reason = "its answer is not that of a chat completion"
            elif status in (400, 413, 422):
                self.refused = _message(body)
                if plain:
                    return None
                plain = True  # some refuse to be asked for probabilities, and say so in words of their own
                continue
            elif status in AGAIN:
                reason = f"status {status}: {_message(body)}"
            elif status:
                raise MannersError(f"the judge at {self.url} refuses (status {status}): {_message(body)}")
            failed += 1
            if failed <= self.retries:
                time.sleep(min(max(wait, self.pause * 2 ** (failed - 1)), LONGEST_PAUSE))
        raise MannersError(
            f"the judge at {self.url} did not answer in {self.retries + 1} tries ({reason}): what it has answered is"
            " kept, and `manners judge --resume` goes on when it is well again"
        )

    def _body(self, messages: list[dict[str, str]], seed: int, plain: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": REPLY_TOKENS, "seed": seed}
        body |= {"temperature": 1.0, "stream": False}
        return body if plain or seed else body | {"logprobs": True, "top_logprobs": TOP}

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes, float]:
        """Return status, body, and the seconds after which the server wants to be asked again."""
        try:
            answer: tuple[int, bytes, float] = self.portal.call(self._posted, body)
            return answer
        except TimeoutError:
            raise httpx.ReadTimeout(f"it was not done after {self.timeout:g} seconds") from None

    async def _posted(self, body: dict[str, Any]) -> tuple[int, bytes, float]:
        """Post once; raises TimeoutError where the whole of it, from the connection on, takes longer than it may."""
        with fail_after(self.timeout):
            async with self.client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.headers.get("content-encoding", "").lower() not in ("", "identity"):
                    raise httpx.DecodingError("it packs what it sends, though asked not to")  # a little may hold a lot
                read = bytearray()
                async for piece in response.aiter_raw():
                    read += piece
                    if len(read) > MOST_BYTES:
                        raise httpx.ReadError(f"it sent more than {MOST_BYTES:,} bytes")
                after = re.fullmatch(r"[0-9]{1,9}", response.headers.get("retry-after", ""))
                return response.status_code, bytes(read), float(after[0]) if after else 0.0

    def _choice(self, messages: list[dict[str, str]], body: bytes) -> dict[str, Any] | None:
        """Return an answer's first choice, counting its tokens; None where it is none."""
        sent = sum(len(one["content"]) for one in messages)
        try:
            found = json.loads(body)
            choice: dict[str, Any] = found["choices"][0]
            choice["message"]["content"] = str(choice["message"].get("content") or "")
            usage = (found.get("usage") or {}).get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self.budget.use((sent + len(body)) // 3)
            return None
        told = usage if isinstance(usage, int) and 0 < usage <= MOST_TOKENS else 0
        self.budget.use(told or (sent + len(choice["message"]["content"])) // 3)
        return choice


def address(url: str) -> str:
    """Return the address that paths are put behind; raises MannersError, without saying it, for what is none."""
    wanted = "write judge.url like http://127.0.0.1:8001/v1"
    try:
        parts, _ = urlsplit(url), httpx.URL(url)
        said = parts.port is None or parts.port > 0
    except (ValueError, httpx.InvalidURL):  # a UnicodeError is a ValueError
        said = False
    if not said or parts.scheme not in ("http", "https") or not parts.hostname:
        raise MannersError(f"judge.url is no address of a server: {wanted}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise MannersError(
            f"judge.url holds a name, a password or a question mark: {wanted}, and the key into MANNERS_JUDGE_KEY"
        )
    base = url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def probability(choice: Mapping[str, Any]) -> float | None:
    """Return P(A) / (P(A) + P(B)) of the first token where these have `MASS`; None where nothing of the kind is."""
    try:
        for token in choice["logprobs"]["content"]:
            mass = {0.0: 0.0, 1.0: 0.0}
            for other in token["top_logprobs"]:
                named, logprob = letter(str(other["token"])), float(other["logprob"])
                if named is not None and logprob <= 0.01:
                    mass[named] += math.exp(logprob)
            if sum(mass.values()) >= MASS:
                return mass[1.0] / sum(mass.values())
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return None


def _text(choice: Mapping[str, Any]) -> str:
    return str(choice["message"]["content"])


def _message(body: bytes) -> str:
    """Return what a refusal says, in short."""
    try:
        error = json.loads(body)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        said = body.decode(errors="replace")
    return _short(said) or "nothing"


def _short(said: str) -> str:
    return " ".join(said.split())[:200]
