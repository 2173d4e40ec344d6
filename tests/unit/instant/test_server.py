"""backup/instant/server.py, nbd.py: QEMU's own programs read what is served, and nobody else does."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

from backup.errors import BackupError, NotDrillable
from backup.instant import server
from backup.instant.nbd import GREETING, OPTION, OPTION_REPLY, REPLY, REQUEST, REQUEST_MAGIC
from backup.instant.server import Server, served
from backup.mount.shown_file import File

from ..raising import raises
from ..samples import MIB
from ..transfer.test_backup_stream import noise
from ..waiting import wait_until

CONTENT = noise(3 * MIB + 513)
SIZE = 3 * MIB + 1024  # as it is served
HERE = {os.geteuid()}


@dataclass
class Memory:
    """A file's content; what begins at one of these offsets cannot be read. Satisfies Content."""

    content: bytes = CONTENT
    damaged: Collection[int] = ()
    at_once: bool = True
    bug: bool = False
    waits: threading.Event = field(default_factory=threading.Event)

    @property
    def size(self) -> int:
        return len(self.content)

    def is_there(self, offset: int, length: int) -> bool:
        return self.at_once

    def read(self, offset: int, length: int) -> bytes:
        if self.bug:
            raise ValueError("a bug")
        if any(offset <= one < offset + length for one in self.damaged):
            raise BackupError("the pack is missing")
        if not self.at_once and offset == 0:
            self.waits.wait(60)
        return self.content[offset : offset + length]


@dataclass
class Served:
    """What is served, and what could not be read."""

    path: str
    errors: list[tuple[str, str]]
    server: Server

    def uri(self, name: str = "vda") -> str:
        return f"nbd+unix:///{name}?socket={self.path}"

    def read(self, offset: int, length: int) -> subprocess.CompletedProcess[str]:
        command = ["qemu-io", "-r", "-f", "raw", "-c", f"read {offset} {length}", self.uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def connection(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(self.path)
        return connection


@contextmanager
def serving(
    tmp_path: Path, *, users: Collection[int] = HERE, disks: Mapping[str, Memory] = MappingProxyType({})
) -> Iterator[Served]:
    errors: list[tuple[str, str]] = []
    files = {name: File(name, one, one.size) for name, one in (disks or {"vda": Memory()}).items()}
    path = str(tmp_path / "nbd")

    def failed(file: File, offset: int, error: BackupError) -> None:
        errors.append((file.name, error.message))

    with served(files, path, users, failed) as running:
        yield Served(path, errors, running)


@pytest.mark.parametrize("at_once", [True, False])
def test_qemu_reads_every_byte_of_each_disk_by_its_name(tmp_path: Path, at_once: bool) -> None:
    other = noise(MIB)
    disks = {"vda": Memory(at_once=at_once), "vdb": Memory(other)}
    disks["vda"].waits.set()
    with serving(tmp_path, disks=disks) as running:
        for name, content in (("vda", CONTENT), ("vdb", other)):
            copy = tmp_path / name
            subprocess.run(
                ["qemu-img", "convert", "-f", "raw", "-O", "raw", running.uri(name), copy],
                check=True,
                timeout=60,
            )
            assert copy.read_bytes() == content.ljust(-(-len(content) // 512) * 512, b"\0")
        done = subprocess.run(["qemu-img", "info", running.uri("vdc")], capture_output=True, text=True)
        assert (done.returncode, "vdc" in done.stderr) == (1, True)
        assert running.errors == []


def test_nothing_is_ever_written(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 512", running.uri()], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "Permission denied" in done.stderr


def test_what_cannot_be_read_is_an_error_of_that_read_alone(tmp_path: Path) -> None:
    with serving(tmp_path, disks={"vda": Memory(damaged=[MIB])}) as running:
        assert "Input/output error" in running.read(MIB - 512, 1024).stdout
        assert running.errors == [("vda", "the pack is missing")]
        assert "read 512/512" in running.read(0, 512).stdout


def test_a_bug_is_answered_as_an_error_and_raised(tmp_path: Path) -> None:
    with serving(tmp_path, disks={"vda": Memory(bug=True)}) as running:
        running.server.check()
        assert "Input/output error" in running.read(0, 512).stdout
        with pytest.raises(ValueError, match="a bug"):
            running.server.check()


def test_a_process_of_another_user_gets_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, users={os.geteuid() + 1}) as running, running.connection() as connection:
        assert connection.recv(100) == b""


def chosen(connection: socket.socket, name: bytes = b"vda") -> bytes:
    """Choose an export with the oldest option, and return how it is described."""
    assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
    connection.sendall(struct.pack(">I", 3) + OPTION.pack(b"IHAVEOPT", 1, len(name)) + name)
    return connection.recv(10, socket.MSG_WAITALL)


def reply(connection: socket.socket, command: int, offset: int, length: int) -> tuple[int, bytes]:
    """Send a request, and return the error of its answer, and its data."""
    connection.sendall(REQUEST.pack(REQUEST_MAGIC, 0, command, 7, offset, length))
    _, error, cookie = REPLY.unpack(connection.recv(REPLY.size, socket.MSG_WAITALL))
    assert cookie == 7
    return error, b"" if error else connection.recv(length, socket.MSG_WAITALL)


def test_an_old_client_reads_too_and_unknown_options_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as running, running.connection() as connection:
        assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
        connection.sendall(struct.pack(">I", 3) + OPTION.pack(b"IHAVEOPT", 5, 0))
        answer = OPTION_REPLY.unpack(connection.recv(OPTION_REPLY.size, socket.MSG_WAITALL))
        assert answer[1:] == (5, 0x80000001, 0)
        connection.sendall(OPTION.pack(b"IHAVEOPT", 1, 3) + b"vda")
        size, flags = struct.unpack(">QH", connection.recv(10, socket.MSG_WAITALL))
        assert (size, flags & 3) == (SIZE, 3)
        assert reply(connection, 0, 5, 100) == (0, CONTENT[5:105])


@pytest.mark.parametrize(
    ("command", "offset", "length"),
    [
        (0, SIZE - 1, 2),
        (0, 1 << 63, 1),
        (0, 0, 0),
        (0, 0, (32 << 20) + 1),
        (4, 0, 512),
        (7, 0, 512),
        (99, 0, 0),
    ],
)
def test_a_wrong_request_is_an_error_and_the_next_one_is_answered(
    tmp_path: Path, command: int, offset: int, length: int
) -> None:
    with serving(tmp_path) as running, running.connection() as connection:
        chosen(connection)
        assert reply(connection, command, offset, length) == (22, b"")
        assert reply(connection, 0, 0, 3) == (0, CONTENT[:3])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.0\r\n\r\n" + bytes(50),
        struct.pack(">I", 3) + OPTION.pack(b"IHAVEOPT", 7, 1 << 30),
        struct.pack(">I", 3) + OPTION.pack(b"IHAVEOPT", 1, 4) + b"none",
        struct.pack(">I", 3) + OPTION.pack(b"IHAVEOPT", 1, 3) + b"vda" + bytes(28),
        struct.pack(">I", 3)
        + OPTION.pack(b"IHAVEOPT", 1, 3)
        + b"vda"
        + REQUEST.pack(REQUEST_MAGIC, 0, 1, 7, 0, 512),
    ],
)
def test_one_that_speaks_no_such_protocol_is_disconnected_and_others_are_served(
    tmp_path: Path, sent: bytes
) -> None:
    with serving(tmp_path) as running:
        with running.connection() as connection:
            connection.sendall(sent)
            with suppress(ConnectionResetError):  # not all of it was read
                while connection.recv(1000):
                    pass
        assert "read 512/512" in running.read(0, 512).stdout
        running.server.check()


def test_more_clients_than_qemu_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLIENTS", 1)
    with serving(tmp_path) as running, running.connection() as first:
        chosen(first)
        with running.connection() as second:
            assert second.recv(100) == b""
        assert reply(first, 0, 0, 3) == (0, CONTENT[:3])


def test_each_disk_may_have_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLIENTS", 1)
    with (
        serving(tmp_path, disks={"vda": Memory(), "vdb": Memory()}) as running,
        running.connection() as first,
        running.connection() as second,
    ):
        chosen(first)
        chosen(second)
        assert reply(second, 0, 0, 3) == (0, CONTENT[:3])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.ENOMEM])
def test_after_an_error_of_the_node_the_next_client_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with serving(tmp_path) as running:
        failures = [OSError(number, os.strerror(number)), RuntimeError("can't start new thread")]

        def user(connection: socket.socket) -> int:
            if failures:
                raise failures.pop(0)
            return os.geteuid()

        monkeypatch.setattr(server, "_user", user)
        for _ in range(2):
            with running.connection() as refused:
                assert refused.recv(100) == b"", "it does not wait for an answer"
        with running.connection() as connection:
            chosen(connection)
            assert reply(connection, 0, 0, 3) == (0, CONTENT[:3])


def test_it_knows_whether_anything_was_read(tmp_path: Path) -> None:
    with serving(tmp_path, disks={"vda": Memory(damaged=[0])}) as running, running.connection() as one:
        chosen(one)
        assert reply(one, 0, 0, 3) == (5, b"")
        assert not running.server.has_read
        assert reply(one, 0, 512, 3)[0] == 0
        assert running.server.has_read


def test_its_end_does_not_wait_for_a_read_that_hangs(tmp_path: Path) -> None:
    hanging = Memory(at_once=False)
    with serving(tmp_path, disks={"vda": hanging}) as running, running.connection() as connection:
        chosen(connection)
        connection.sendall(REQUEST.pack(REQUEST_MAGIC, 0, 0, 7, 0, 512))
        wait_until(lambda: running.server._readers._threads, 20, "it is being read")
        assert reply_of_another(connection) == (0, CONTENT[512:1024]), "others are answered meanwhile"
    hanging.waits.set()


def reply_of_another(connection: socket.socket) -> tuple[int, bytes]:
    return reply(connection, 0, 512, 512)


def test_at_its_end_clients_are_disconnected(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        connection = running.connection()
        chosen(connection)
    with connection:
        assert connection.recv(100) == b""
    with (
        raises(f"cannot listen on {running.path}: address already in use", NotDrillable),
        serving(tmp_path),
    ):
        pass
