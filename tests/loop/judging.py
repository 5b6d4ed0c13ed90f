"""A real server that judges, well or ill, and a project whose comparisons have a better side that is known."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from manners.loop.session import Session
from manners.settings import JudgeSettings, Settings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from manners.workspace import Workspace

ANSWERS = re.compile(r"(\[\[\w{16}\]\]) ANSWER A[^\n]*\n(.*)\n\1 ANSWER B[^\n]*\n(.*)\n\1 END", re.DOTALL)


@dataclass
class Server:
    """Judges by `prefers`: the probability that answer A is better, of the texts of both."""

    prefers: Callable[[str, str], float] = lambda a, b: 0.95 if "good" in a and "good" not in b else 0.05
    logprobs: bool = True
    answer: Callable[[dict[str, Any], int], tuple[int, bytes] | None] = lambda asked, number: None
    """What it says instead of judging, by the number of the request."""
    drip: float = 0.0
    """Seconds between two bytes."""
    trickle: float = 0.0
    """Seconds between two lines of its header, which has a hundred."""
    endless: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    url: str = ""

    def says(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return a chat completion."""
        found = ANSWERS.search(asked["messages"][-1]["content"])
        assert found, "the fences are whole"
        p = min(max(self.prefers(found.group(2), found.group(3)), 1e-6), 1 - 1e-6)
        rng = random.Random(f"{asked['seed']} {found.group(0)}")
        told = None
        letter = "A" if p > 0.5 else "B"
        if self.logprobs and asked.get("logprobs"):
            top = [{"token": x, "logprob": math.log(q * 0.9)} for x, q in (("A", p), (" B", 1 - p))]
            told = {"content": [{"token": letter, "logprob": 0.0, "top_logprobs": top}]}
        else:
            letter = "A" if rng.random() < p else "B"
        choice = {"index": 0, "message": {"role": "assistant", "content": letter}, "finish_reason": "stop"}
        return {"choices": [{**choice, "logprobs": told}], "usage": {"total_tokens": 100}}


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Let it answer at an address of its own."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                server.asked.append(asked)
                server.keys.add(self.headers.get("authorization", ""))
                number = len(server.asked)
            status, body = server.answer(asked, number) or (200, json.dumps(server.says(asked)).encode())
            try:
                self.send_response(status)
                if server.endless:
                    self.send_header("connection", "close")
                    self.end_headers()
                    while True:
                        self.wfile.write(b"A" * 65536)
                for number in range(100 if server.trickle else 0):
                    self.send_header(f"x-{number}", "y")
                    self.flush_headers()
                    time.sleep(server.trickle)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                for byte in body if server.drip else ():
                    self.wfile.write(bytes([byte]))
                    time.sleep(server.drip)
                if not server.drip:
                    self.wfile.write(body)
            except OSError:
                self.close_connection = True

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def comparisons(count: int, people: int = 2, right: float = 0.9, start: int = 0) -> list[Comparison]:
    """Make comparisons of a good and another answer, of any length, judged by so many people who are often right."""
    found = []
    for number in range(start, start + count):
        rng = random.Random(number)
        more = [" And so on." * rng.randrange(6) for _ in range(2)]
        texts = [f"A {what} answer, {rng.randrange(10**6)}.{m}" for what, m in zip(("good", "poor"), more, strict=True)]
        better = Choice.LEFT if rng.random() < 0.5 else Choice.RIGHT
        left, right_text = texts if better is Choice.LEFT else texts[::-1]
        verdicts = tuple(
            Verdict(better if rng.random() < right else better.swapped(), Annotator(f"person {n}", AnnotatorKind.HUMAN))
            for n in range(people)
        )
        prompt = (Turn(Role.USER, f"What of {number}?"),)
        found.append(
            Comparison(
                prompt, Response(left, "policy-1"), Response(right_text, "initial"), AskedHow.RANDOM, verdicts=verdicts
            )
        )
    return found


def project(root: Path, empty: Path, address: str, some: list[Comparison], **chosen: Any) -> Session:
    """Make a workspace with comparisons, whose judge is a server."""
    workspace = Workspace.create(root)
    shutil.copyfile(empty, workspace.database)
    usual: dict[str, Any] = {"url": address, "model": "m", "retries": 0, "timeout": 5.0}
    settings = Settings(judge=JudgeSettings(**(usual | chosen)))
    session = Session(workspace, settings)
    session.store.add_comparisons(some)
    return session
