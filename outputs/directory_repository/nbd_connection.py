"""A connection to a server of a network block device: reads and writes, several in flight.

(https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md)
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from functools import partial
from pathlib import Path
from typing import Callable, TypeVar

from backup.errors import BackupError, TransientError
from backup.protocols import WrittenBytes
from backup.system.time_limit import STOP_POLL

from .errors import storage_error

GREETING = struct.Struct(">8s8sH")  # magic, magic of options, flags
CHOICE = struct.Struct(">I8sII")  # our flags, magic of options, option, length of its data
EXPORT = struct.Struct(">QH")  # the answer: its size, its flags
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
EXPORT_NAME = 1  # NBD_OPT_*
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6  # NBD_CMD_*
ACTIONS = {READ: "read", WRITE: "write", FLUSH: "write", WRITE_ZEROES: "write"}

Result = TypeVar("Result")


class ConnectionLost(BackupError):
    """The server has ended the connection, or does not keep to the protocol."""


class NbdConnection:
    """Reads and writes the only export of a server, from one thread.

    `size` is in bytes. `alive` is called while something is waited for, and may raise the reason to stop;
    what takes longer than `limit` seconds is a transient error. After an error of the connection it is of no
    use any more. The methods raise BackupError; `path` is the file that it names.
    """

    def __init__(
        self, connection: socket.socket, path: Path, limit: float, alive: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._path = path
        self._limit = limit
        self._alive = alive
        self._cookies = itertools.count(1)
        self._pending: dict[int, tuple[int, int]] = {}  # command and length of a request without a reply
        self._replies: dict[int, tuple[int, bytes]] = {}  # error and data
        connection.settimeout(STOP_POLL)
        self.size = self._chosen()

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start a read; the returned function waits for the bytes."""
        return partial(self._wait, self._start(READ, offset, length))

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start a write; the returned function waits for its end."""
        return self._waiting(self._start(WRITE, offset, len(data), data))

    def start_zeros(self, offset: int, length: int) -> Callable[[], None]:
        """Start to make a range read as zeros; the returned function waits for its end."""
        return self._waiting(self._start(WRITE_ZEROES, offset, length))

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        self._wait(self._start(FLUSH, 0, 0))

    def disconnect(self) -> None:
        """End the connection; the server then closes the file."""
        self._send(REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))

    def _chosen(self) -> int:
        """Choose the export, and return its size."""
        magic, options, _ = GREETING.unpack(self._received(GREETING.size))
        if (magic, options) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise ConnectionLost("qemu-nbd does not greet as a server of network block devices does")
        self._send(CHOICE.pack(FIXED_NEWSTYLE | NO_ZEROES, options, EXPORT_NAME, 0))
        size, _ = EXPORT.unpack(self._received(EXPORT.size))
        return int(size)

    def _start(self, command: int, offset: int, length: int, data: WrittenBytes = b"") -> int:
        cookie = next(self._cookies)
        self._pending[cookie] = command, length
        self._send(REQUEST.pack(REQUEST_MAGIC, 0, command, cookie, offset, length))
        self._send(data)
        return cookie

    def _waiting(self, cookie: int) -> Callable[[], None]:
        def wait() -> None:
            self._wait(cookie)

        return wait

    def _wait(self, cookie: int) -> bytes:
        """Return what was read. Replies come in any order."""
        command, _ = self._pending[cookie]
        while cookie not in self._replies:
            self._receive()
        del self._pending[cookie]
        error, data = self._replies.pop(cookie)
        if error:  # the numbers of the protocol are those of Linux
            raise storage_error(ACTIONS[command], self._path, error, os.strerror(error).lower())
        return data

    def _receive(self) -> None:
        magic, error, cookie = REPLY.unpack(self._received(REPLY.size))
        if magic != REPLY_MAGIC or cookie not in self._pending:
            raise ConnectionLost("qemu-nbd sends no reply to what it was asked")
        command, length = self._pending[cookie]
        data = self._received(length) if command == READ and not error else b""
        self._replies[cookie] = error, data

    def _send(self, data: WrittenBytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._patiently(partial(self._connection.send, left)) :]

    def _received(self, length: int) -> bytes:
        data = bytearray(length)
        left = memoryview(data)
        while left:
            count = self._patiently(partial(self._connection.recv_into, left))
            if not count:
                raise ConnectionLost("qemu-nbd has ended the connection")
            left = left[count:]
        return bytes(data)

    def _patiently(self, call: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._limit
        while True:
            try:
                return call()
            except socket.timeout as error:
                self._alive()
                if time.monotonic() > deadline:
                    message = f"{self._path}: qemu-nbd makes no progress for {self._limit:.0f} s"
                    raise TransientError(message, "does DIRECTORY_OUTPUT answer?") from error
            except OSError as error:
                raise ConnectionLost(f"the connection to qemu-nbd is lost: {error}") from error
