"""Writing bytes and zeros into a pipe without a copy, with a timeout for a reader that makes no progress."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import os
import select
import time
from collections import deque
from contextlib import suppress
from typing import Callable

from ..errors import BackupError

PIPE_SIZE = 1 << 20  # bytes; the most that an unprivileged process gets (man 7 pipe)
ZEROS = bytes(256 << 10)  # for holes; less than a whole pipe, as the reader waits while they are passed on
WRITE_POLL = 0.5  # seconds between two checks whether the job has to stop

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032  # fcntl.h; Python names them from 3.10 on
SPLICE_F_NONBLOCK = 2  # fcntl.h

_libc = ctypes.CDLL(None, use_errno=True)


class ReaderClosed(BackupError):
    """The reader closed the pipe; its own output explains why."""


class Stalled(BackupError):
    """The output has made no progress for too long."""

    transient = True


class _Vector(ctypes.Structure):
    """struct iovec (man 3 iovec)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class PipeWriter:
    """Writes bytes and zeros into a pipe. `sent` counts both.

    The pipe refers to the written memory until that has been read: do not release the writer before the
    reader has ended, even after the block.
    """

    def __init__(self, pipe: int, check_stop: Callable[[], None], timeout: float = math.inf) -> None:
        """`timeout`: seconds within which the reader has to take a byte."""
        self.sent = 0
        self._pipe = pipe
        self._check_stop = check_stop
        self._timeout = timeout
        os.set_blocking(pipe, False)
        # if this user's pipe memory is used up: a smaller pipe is only slower
        with suppress(PermissionError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
        self._capacity = fcntl.fcntl(pipe, F_GETPIPE_SZ)
        self._writable = select.poll()
        self._writable.register(pipe, select.POLLOUT)
        self._unread: deque[tuple[int, bytes]] = deque()  # (end, data) that the pipe may refer to
        self._splices = True
        self._zeros = os.memfd_create("zeros")
        os.ftruncate(self._zeros, len(ZEROS))

    def __enter__(self) -> PipeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._zeros)

    def write(self, data: bytes) -> None:
        """Write all of it. Raises ReaderClosed, Stalled, and the reason to stop."""
        self._unread.append((self.sent + len(data), data))
        rest = memoryview(data)
        while rest:
            rest = rest[self._push(self._write, data, rest) :]
        # a page of the pipe holds at most a page of data: what is a whole capacity back has been read
        while self._unread and self._unread[0][0] + self._capacity <= self.sent:
            self._unread.popleft()

    def write_zeros(self, length: int) -> None:
        """Write zeros. Raises the same as `write`."""
        while length > 0:
            length -= self._push(self._write_zeros, min(length, len(ZEROS)))

    def _write(self, data: bytes, rest: memoryview) -> int:
        """Let the pipe refer to the memory of `data`, which costs a third of a copy (man 2 vmsplice)."""
        if self._splices:
            try:
                return _vmsplice(self._pipe, data, len(data) - len(rest))
            except OSError as error:
                self._copy_from_now_on(error)
        return os.write(self._pipe, rest)

    def _write_zeros(self, length: int) -> int:
        """Let the pipe refer to the memfd's pages."""
        if self._splices:
            try:
                return os.sendfile(self._pipe, self._zeros, 0, length)
            except OSError as error:
                self._copy_from_now_on(error)
        return os.write(self._pipe, memoryview(ZEROS)[:length])

    def _copy_from_now_on(self, error: OSError) -> None:
        """Stop splicing if the kernel, or a container's system call filter, refuses it."""
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            raise error
        self._splices = False

    def _push(self, write: Callable[..., int], *arguments: object) -> int:
        """Write as much as fits, at least one byte. Runs a hundred thousand times per image."""
        deadline = None
        while True:
            self._check_stop()
            try:
                sent = write(*arguments)
            except BlockingIOError:
                deadline = deadline or time.monotonic() + self._timeout
                self._writable.poll(WRITE_POLL * 1000)
                if time.monotonic() > deadline:
                    message = f"the output took no byte for {self._timeout:.0f} s"
                    raise Stalled(message, "is its host reachable? see OUTPUT_STALL_TIMEOUT") from None
            except BrokenPipeError as error:
                raise ReaderClosed("the output ended before it had all data") from error
            else:
                self.sent += sent
                return sent


def _vmsplice(pipe: int, data: bytes, start: int) -> int:
    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    assert address
    vector = _Vector(address + start, len(data) - start)
    sent: int = _libc.vmsplice(pipe, ctypes.byref(vector), 1, SPLICE_F_NONBLOCK)
    if sent < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return sent
