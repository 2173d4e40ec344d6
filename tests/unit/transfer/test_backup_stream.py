"""backup/transfer/backup_stream.py: a snapshot is streamed into a pipe."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Callable

import pytest

from backup.errors import BackupError, Interrupted
from backup.model import Extent
from backup.system import pipe_writer
from backup.system.pipe_writer import PipeWriter, ReaderClosed
from backup.transfer.backup_stream import READ_SIZE, WINDOW_BYTES, WINDOW_READS, copy

from ..memory_snapshot import MemorySnapshot
from ..samples import MIB

pytestmark = pytest.mark.usefixtures("nothing_left")


def noise(length: int) -> bytes:
    """Return bytes none of which is zero, so that none can be taken for a hole."""
    return random.Random(length).randbytes(length).replace(b"\0", b"x")


def go_on() -> None:
    """Never stops."""


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def sent(snapshot: MemorySnapshot) -> tuple[bytes, int]:
    """Copy through a real pipe; return what arrived, and what `copy` says it has read."""
    ours, theirs = os.pipe()
    with ThreadPoolExecutor(1) as threads:
        arriving = threads.submit(read_all, ours)
        try:
            with PipeWriter(theirs, go_on) as sink:
                data_bytes = copy(snapshot, sink).data_bytes
                assert sink.sent == snapshot.size
        finally:
            os.close(theirs)
        return arriving.result(), data_bytes


SHAPES = {
    "empty": MemorySnapshot(0),
    "one byte": MemorySnapshot(1, {0: b"x"}),
    "full, no multiple of 4 MiB": MemorySnapshot(9 * MIB + 513, {0: noise(9 * MIB + 513)}),
    "full, a multiple of 4 MiB": MemorySnapshot(8 * MIB, {0: noise(8 * MIB)}),
    "all a hole": MemorySnapshot(13 * MIB + 7),
    "data at the very end": MemorySnapshot(9 * MIB + 5, {9 * MIB + 4: b"x"}),
    "holes in between": MemorySnapshot(21 * MIB, {MIB: noise(MIB), 9 * MIB: noise(3), 20 * MIB: noise(MIB)}),
    "tiny extents": MemorySnapshot(9 * MIB, {at: noise(1 + at % 600) for at in range(0, 8 * MIB, 131_071)}),
    "across pieces": MemorySnapshot(13 * MIB, {4 * MIB - 3: noise(6), 8 * MIB - 1: noise(4 * MIB + 2)}),
    "extents that touch": MemorySnapshot(9 * MIB, {MIB: noise(3 * MIB), 4 * MIB: noise(MIB)}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_byte_arrives_and_nothing_else(shape: str) -> None:
    snapshot = SHAPES[shape]
    arrived, _ = sent(snapshot)
    assert len(arrived) == snapshot.size
    assert arrived == snapshot.content


@pytest.mark.parametrize("shape", SHAPES)
def test_only_pieces_with_data_are_read_and_each_once_at_most(shape: str) -> None:
    snapshot = MemorySnapshot(SHAPES[shape].size, SHAPES[shape].data)
    _, data_bytes = sent(snapshot)
    pieces = [read.offset // READ_SIZE for read in snapshot.reads]
    assert pieces == [(read.offset + read.length - 1) // READ_SIZE for read in snapshot.reads]
    ends = {at: (at + len(data) - 1) // READ_SIZE for at, data in snapshot.data.items()}
    with_data = {piece for at, end in ends.items() for piece in range(at // READ_SIZE, end + 1)}
    assert pieces == sorted(with_data)
    assert data_bytes == sum(read.length for read in snapshot.reads)


@pytest.mark.parametrize(
    ("length", "most"), [(READ_SIZE, WINDOW_BYTES // READ_SIZE), (4096, WINDOW_READS)], ids=["large", "small"]
)
def test_the_number_of_reads_in_flight_is_limited(length: int, most: int) -> None:
    data = bytes([1]) * length
    count = 2 * most
    snapshot = MemorySnapshot(count * READ_SIZE, dict.fromkeys(range(0, count * READ_SIZE, READ_SIZE), data))
    sent(snapshot)
    assert snapshot.most_pending == most
    assert len(snapshot.reads) == count


def test_whichever_read_fails_its_error_is_raised_and_no_other_read_is_waited_for() -> None:
    """Of a cluster that has gone silent, each of them would be repeated for minutes."""
    data = dict.fromkeys(range(0, 12 * READ_SIZE, READ_SIZE), b"x")
    for number in range(12):
        snapshot = MemorySnapshot(12 * READ_SIZE, data, fails_at=number)
        with pytest.raises(BackupError, match=f"at {number * READ_SIZE}$"):
            sent(snapshot)
        assert len(snapshot.pending) == min(12, number + snapshot.most_pending) - number - 1


def test_if_a_read_cannot_start_its_error_is_raised() -> None:
    class Broken(MemorySnapshot):
        def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
            if len(self.reads) == 5:
                raise BackupError("the cluster is gone")
            return super().start_read(offset, length)

    snapshot = Broken(8 * READ_SIZE, dict.fromkeys(range(0, 8 * READ_SIZE, READ_SIZE), b"x"))
    with pytest.raises(BackupError, match="the cluster is gone"):
        sent(snapshot)


@pytest.mark.parametrize(
    "data", [{0: noise(READ_SIZE), READ_SIZE: noise(READ_SIZE)}, {}], ids=["data", "hole"]
)
def test_a_request_to_stop_is_heard_while_the_consumer_does_not_read(
    monkeypatch: pytest.MonkeyPatch, data: dict[int, bytes]
) -> None:
    monkeypatch.setattr(pipe_writer, "WRITE_POLL", 0.01)

    def check_stop() -> None:
        if sink.sent:
            raise Interrupted("interrupted", 15)

    snapshot = MemorySnapshot(3 * READ_SIZE, data)
    with pipe() as (_, theirs), PipeWriter(theirs, check_stop) as sink:
        with pytest.raises(Interrupted):
            copy(snapshot, sink)
        assert 0 < sink.sent < snapshot.size


@pytest.mark.parametrize("data", [{0: noise(READ_SIZE)}, {}], ids=["data", "hole"])
def test_a_consumer_that_ends_is_distinguished_from_other_errors(data: dict[int, bytes]) -> None:
    ours, theirs = os.pipe()
    with ThreadPoolExecutor(1) as threads, PipeWriter(theirs, go_on) as sink:

        def read_a_little() -> None:
            os.read(ours, 4096)
            os.close(ours)

        gone = threads.submit(read_a_little)
        with pytest.raises(ReaderClosed):
            copy(MemorySnapshot(2 * READ_SIZE, data), sink)
        gone.result()
    os.close(theirs)


class SlowlyListed(MemorySnapshot):
    """A snapshot listed in parts, the last one only when the test allows it."""

    go_on = threading.Event()

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        yield Extent(MIB, 1)
        yield Extent(8 * MIB, 0)
        yield Extent(16 * MIB, 0)
        assert self.go_on.wait(timeout=5)
        yield Extent(17 * MIB, 1)


def test_a_hole_is_sent_as_far_as_it_is_listed() -> None:
    reported: list[int] = []
    snapshot = SlowlyListed(20 * MIB, {MIB: b"x", 17 * MIB: b"y"})
    ours, theirs = os.pipe()

    def progress(done: int) -> None:
        reported.append(done)
        if done == 16 * MIB:
            snapshot.go_on.set()

    with ThreadPoolExecutor(1) as threads:
        arriving = threads.submit(read_all, ours)
        with closing(os.fdopen(theirs, "wb")), PipeWriter(theirs, go_on) as sink:
            copied = copy(snapshot, sink, progress)
        assert arriving.result() == snapshot.content
    assert reported == [MIB + 1, 8 * MIB, 16 * MIB, 17 * MIB + 1, 20 * MIB]
    assert (copied.data_bytes, len(copied.checksums)) == (2, 2)


class ListedWithin(MemorySnapshot):
    """A snapshot whose listing comes to an end, and goes on, within a piece."""

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        yield Extent(5 * MIB, MIB)
        yield Extent(6 * MIB, 0)
        yield Extent(6 * MIB, MIB)


def test_where_a_listing_ends_within_a_piece_it_is_one_read_nevertheless() -> None:
    snapshot = ListedWithin(9 * MIB, {5 * MIB: noise(2 * MIB)})
    arrived, _ = sent(snapshot)
    assert arrived == snapshot.content
    assert snapshot.reads == [Extent(5 * MIB, 2 * MIB)]


def test_progress_counts_holes_and_data() -> None:
    progress: list[int] = []
    snapshot = MemorySnapshot(13 * MIB, {5 * MIB: b"x", 12 * MIB: b"y"})
    ours, theirs = os.pipe()
    with ThreadPoolExecutor(1) as threads:
        arriving = threads.submit(read_all, ours)
        with closing(os.fdopen(theirs, "wb")), PipeWriter(theirs, go_on) as sink:
            copy(snapshot, sink, progress.append)
        arriving.result()
    assert progress == [5 * MIB + 1, 12 * MIB + 1, 13 * MIB]
