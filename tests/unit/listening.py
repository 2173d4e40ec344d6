"""Servers on loopback that take what a run has to say, as those of others would."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """An HTTP server; it answers with the statuses that it was given, the last of them for ever."""

    statuses: list[int] = field(default_factory=lambda: [200])
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, body
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0))).decode()
        self.asked.append((handler.command, handler.path, body))
        handler.send_response(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            web.answer(self)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web.url = f"http://127.0.0.1:{server.server_port}"
        with _serving(server):
            yield web


@dataclass
class Mail:
    """A mail server; what it was told, line by line."""

    lines: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def mail_server() -> Iterator[Mail]:
    mail = Mail()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            in_message = False
            for line in self.rfile:
                word = line.strip().decode()
                mail.lines.append(word)
                if in_message and word != ".":
                    continue
                in_message = word.lower() == "data"
                answers = {"data": b"354 go on\r\n", "quit": b"221 well\r\n"}
                self.wfile.write(answers.get(word.lower(), b"250 well\r\n"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        mail.address = "{}:{}".format(*server.server_address)
        with _serving(server):
            yield mail


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
