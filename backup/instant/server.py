"""Serves files of a restore point as read-only network block devices, on a socket for QEMU alone."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Callable

from ..errors import BackupError, NotDrillable, reason
from ..mount.shown_file import File
from .nbd import Client, ProtocolError, Read

READERS = 8  # reads at a time of all clients together
QUEUED = 32  # reads of one client that may wait for their data; QEMU has 16
CLIENTS = 64  # at a time, at least one for each file; QEMU has one for each image
PAUSE = 0.1  # seconds after an error of the node, such as too many open files
SECTOR = 512  # bytes; QEMU 7.2 waits for ever at the end of what is no multiple of it
PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid

Failed = Callable[[File, int, BackupError], None]


class Server:
    """Serves `files`, by their names, to processes of these users (UIDs)."""

    def __init__(self, files: Mapping[str, File], users: Collection[int], failed: Failed) -> None:
        self._files = files
        self._users = users
        self._failed = failed
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._bug: Exception | None = None
        self.has_read = False  # any data
        self._began: dict[object, float] = {}  # of the reads in flight, in time.monotonic()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="nbd")

    def listen(self, path: str) -> None:
        """Accept clients on a new socket. Raises OSError."""
        self._listener.bind(path)
        os.chmod(path, 0o666)  # QEMU runs as another user: each client's is checked
        self._listener.listen()
        threading.Thread(target=self._accept, name="nbd accept", daemon=True).start()

    def check(self) -> None:
        """Raise the bug that kept a read from being answered."""
        if self._bug:
            raise self._bug

    def oldest(self) -> float:
        """Return for how many seconds the oldest read that is not answered has been waiting."""
        with self._lock:
            return time.monotonic() - min(self._began.values(), default=time.monotonic())

    def close(self) -> None:
        """End all connections; a read in flight that hangs ends with the output."""
        with self._lock:
            self._closed = True
            ending = [self._listener, *self._connections]
        for one in ending:
            with suppress(OSError):  # not listening, or already ended by its client
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._readers.shutdown(wait=False)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed; or for a while: too many open files, a client that is gone
                time.sleep(PAUSE)
                continue
            try:
                self._begin(connection)
            except (OSError, RuntimeError):  # no memory for a thread
                self._end(connection)

    def _begin(self, connection: socket.socket) -> None:
        """Serve a client in a thread, or disconnect it. Raises OSError, RuntimeError."""
        with self._lock:
            refused = self._closed or len(self._connections) >= max(CLIENTS, len(self._files))
            if not (refused := refused or _user(connection) not in self._users):
                self._connections.add(connection)
        if refused:
            connection.close()
        else:
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _end(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(ProtocolError, OSError):  # its client has ended, or is none
                client = Client(connection)
                chosen = client.choice({name: size_of(file) for name, file in self._files.items()})
                self._answer(client, self._files[chosen])
        finally:
            self._end(connection)

    def _answer(self, client: Client, file: File) -> None:
        """Answer what is there at once, and have threads read the rest."""
        room = threading.Semaphore(QUEUED)
        for read in client.reads(size_of(file)):
            if file.content.is_there(read.offset, read.length):
                self._read(client, file, read)
                continue
            room.acquire()
            try:
                future = self._readers.submit(self._read, client, file, read)
            except RuntimeError:  # closed
                return
            future.add_done_callback(lambda _: room.release())

    def _read(self, client: Client, file: File, read: Read) -> None:
        data, mark = None, object()
        with self._lock:
            self._began[mark] = time.monotonic()
        try:
            data = file.content.read(read.offset, read.length)
            self.has_read = True
            if len(data) < read.length:
                data = bytes(data).ljust(read.length, b"\0")
        except BackupError as error:
            self._failed(file, read.offset, error)
        except Exception as error:  # a bug: without an answer the guest would wait for ever
            self._bug = error
        with self._lock:
            del self._began[mark]
        with suppress(OSError):  # the client has ended
            client.answer(read, data)


def size_of(file: File) -> int:
    """Return the size in bytes that a file is served with: all of its last sector."""
    return -(-file.content.size // SECTOR) * SECTOR


def _user(connection: socket.socket) -> int:
    """Return the UID of the client's process."""
    _, user, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return int(user)


@contextmanager
def served(files: Mapping[str, File], path: str, users: Collection[int], failed: Failed) -> Iterator[Server]:
    """Serve files, by their names, on a new socket during the block, for processes of these users (UIDs).

    `failed` is called with each file and offset that cannot be read. The socket's file stays. Raises
    NotDrillable.
    """
    server = Server(files, users, failed)
    try:
        try:
            server.listen(path)
        except OSError as error:
            raise NotDrillable(f"cannot listen on {path}: {reason(error)}", "see DRILL_DIR") from error
        yield server
    finally:
        server.close()
