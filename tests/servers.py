"""A real server that answers, well or ill: in drips, without an end, cut short, or leading elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, TypeVar


@dataclass
class Server:
    """What is posted is JSON; what is got is asked for as `{"path": ...}`."""

    answer: Callable[[dict[str, Any], int], tuple[int, bytes] | None] = lambda asked, number: None
    """What it says instead of what it `says`, by the number of the request."""
    drip: float = 0.0
    """Seconds between two bytes."""
    trickle: float = 0.0
    """Seconds between two lines of its header, which has a hundred."""
    endless: bool = False
    short: int = 0
    """Bytes that it announces and does not send."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What it says beside the length; with `connection: close` it says no length."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    url: str = ""

    def says(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return what it answers, as JSON."""
        return asked


AnyServer = TypeVar("AnyServer", bound=Server)


class Handler(BaseHTTPRequestHandler):
    """Answers one request as its server does."""

    of: ClassVar[Any]
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply({"path": self.path})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def reply(self, asked: dict[str, Any]) -> None:
        with self.lock:
            self.of.asked.append(asked)
            self.of.keys.add(self.headers.get("authorization", ""))
            number = len(self.of.asked)
        status, body = self.of.answer(asked, number) or (200, json.dumps(self.of.says(asked)).encode())
        try:
            self.send_response(status)
            self.begin(len(body))
            for byte in body if self.of.drip else ():
                self.wfile.write(bytes([byte]))
                time.sleep(self.of.drip)
            if not self.of.drip:
                self.wfile.write(body)
            self.close_connection |= bool(self.of.short)
        except OSError:
            self.close_connection = True

    def begin(self, length: int) -> None:
        for name, value in self.of.headers.items():
            self.send_header(name, value)
        if self.of.endless:
            self.send_header("connection", "close")
            self.end_headers()
            while True:
                self.wfile.write(b"A" * 65536)
        for number in range(100 if self.of.trickle else 0):
            self.send_header(f"x-{number}", "y")
            self.flush_headers()
            time.sleep(self.of.trickle)
        if self.of.headers.get("connection") != "close":
            self.send_header("content-length", str(length + self.of.short))
        self.end_headers()


class Quiet(ThreadingHTTPServer):
    """Says nothing of whoever goes away."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(server: AnyServer) -> Iterator[AnyServer]:
    """Let it answer at an address of its own."""
    http = Quiet(("127.0.0.1", 0), type("Of", (Handler,), {"of": server}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
