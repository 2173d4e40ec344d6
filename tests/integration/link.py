"""A TCP connection that is slow, or breaks: between a client and a server on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PIECE = 64 << 10  # bytes


@dataclass
class Link:
    """Forwards what arrives at `port` to the server, each piece `delay` seconds later."""

    server: int
    delay: float = 0
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    forwarded: int = 0
    _open: set[socket.socket] = field(default_factory=set)

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def cut(self) -> None:
        """Break all connections; new ones are accepted."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", self.server))
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE):
                time.sleep(self.delay)
                sink.sendall(data)
                self.forwarded += len(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def link_to(server: int, delay: float = 0) -> Iterator[Link]:
    """Have a link to a port of this machine during the block."""
    link = Link(server, delay)
    threading.Thread(target=link.accept, daemon=True).start()
    try:
        yield link
    finally:
        link.listening.shutdown(socket.SHUT_RDWR)  # which ends accept
        link.listening.close()
        link.cut()
