"""A snapshot's bytes on their way into a pipe: reads in flight, holes without reading."""

from __future__ import annotations

import fcntl
import math
import os
import select
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Callable

from .errors import BackupError
from .model import Extent
from .protocols import SnapshotReader

READ_SIZE = 4 << 20  # bytes; an RBD object's usual size
READS_IN_FLIGHT = 8  # 4 MiB each: 2.3 times the throughput of one at a time, and 16 bring no more
PIPE_SIZE = 1 << 20  # bytes; what an unprivileged process may ask for (man 7 pipe)
ZEROS = 1 << 20  # bytes of zeros that the memfd holds
HOLE_STEP = 1 << 30  # bytes of a hole between two reports of progress

F_SETPIPE_SZ = 1031  # fcntl.h; Python names it from 3.10 on
WRITE_POLL = 0.5  # seconds between two looks at whether the job has to stop


class ReaderClosed(BackupError):
    """The consumer closed its end of the pipe; its own words say why."""


class Stalled(BackupError):
    """The consumer has not made progress for too long."""


class PipeSink:
    """Writes bytes and zeros into a pipe. `sent` counts both."""

    def __init__(self, pipe: int, check_stop: Callable[[], None], patience: float = math.inf) -> None:
        """`patience`: seconds for the consumer to take a byte."""
        self.sent = 0
        self._pipe = pipe
        self._check_stop = check_stop
        self._patience = patience
        os.set_blocking(pipe, False)
        # where this user's share of pipe memory is used up, a smaller pipe is only slower
        with suppress(PermissionError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
        self._writable = select.poll()
        self._writable.register(pipe, select.POLLOUT)
        self._zeros = os.memfd_create("zeros")
        os.ftruncate(self._zeros, ZEROS)

    def __enter__(self) -> PipeSink:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._zeros)

    def write(self, data: bytes) -> None:
        """Write all of it. Raises ReaderClosed, Stalled, or what the job's request to stop raises."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._push(os.write, self._pipe, rest) :]

    def write_zeros(self, length: int) -> None:
        """Write zeros; the kernel passes on the memfd's pages, so no byte is copied here."""
        while length > 0:
            length -= self._push(os.sendfile, self._pipe, self._zeros, 0, min(length, ZEROS))

    def _push(self, write: Callable[..., int], *arguments: object) -> int:
        began = time.monotonic()
        while True:
            self._check_stop()
            try:
                sent = write(*arguments)
            except BlockingIOError:
                self._writable.poll(WRITE_POLL * 1000)
                if time.monotonic() > began + self._patience:
                    message = f"the output took no byte for {self._patience:.0f} s"
                    raise Stalled(message, "is its host reachable? see OUTPUT_STALL_TIMEOUT") from None
            except BrokenPipeError as error:
                raise ReaderClosed("the output ended before it had all data") from error
            else:
                self.sent += sent
                return sent


def copy(reader: SnapshotReader, sink: PipeSink, progress: Callable[[int], None] = lambda done: None) -> int:
    """Send the whole snapshot, holes as zeros, and return how many of its bytes were read.

    Memory is bounded by READS_IN_FLIGHT reads. Raises BackupError.
    """
    data_bytes = 0
    for offset, data in _read_ahead(reader, _reads(reader.extents())):
        if offset < sink.sent:
            raise BackupError(f"the extents at {offset} overlap, {sink.sent} bytes are sent already")
        _fill(sink, offset, progress)
        sink.write(data)
        data_bytes += len(data)
        progress(sink.sent)
    _fill(sink, reader.size, progress)
    return data_bytes


def _fill(sink: PipeSink, end: int, progress: Callable[[int], None]) -> None:
    """Send zeros up to this offset."""
    while end - sink.sent > HOLE_STEP:
        sink.write_zeros(HOLE_STEP)
        progress(sink.sent)
    sink.write_zeros(end - sink.sent)


def _reads(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Turn extents into reads: from the first to the last data in each READ_SIZE piece of the image."""
    start = end = 0
    for extent in extents:
        offset, stop = extent.offset, extent.offset + extent.length
        while offset < stop:
            piece_end = min(stop, (offset // READ_SIZE + 1) * READ_SIZE)
            if end and offset // READ_SIZE == start // READ_SIZE:
                end = max(end, piece_end)
            else:
                if end:
                    yield Extent(start, end - start)
                start, end = offset, piece_end
            offset = piece_end
    if end:
        yield Extent(start, end - start)


def _read_ahead(reader: SnapshotReader, reads: Iterator[Extent]) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) in order with READS_IN_FLIGHT reads under way."""
    pending: deque[tuple[int, Callable[[], bytes]]] = deque()
    try:
        for read in reads:
            pending.append((read.offset, reader.start_read(read.offset, read.length)))
            if len(pending) == READS_IN_FLIGHT:
                offset, wait = pending.popleft()
                yield offset, wait()
        while pending:
            offset, wait = pending.popleft()
            yield offset, wait()
    finally:
        for _, wait in pending:  # librbd must not complete into an image that is closed
            _settled(wait)


def _settled(wait: Callable[[], bytes]) -> None:
    try:
        wait()
    except BackupError:
        return  # the first error is on its way already
