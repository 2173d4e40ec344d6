"""outputs/segments/reader.py: a segment's bytes at any offset, and their checksums."""

from __future__ import annotations

import random
from collections.abc import Generator

import pytest

from backup.errors import BackupError
from backup.model import Extent
from backup.restore_point.checksums import Checksums
from backup.transfer.backup_stream import READ_SIZE, WINDOW_BYTES
from outputs.segments.reader import ZEROS, SegmentReader

from ..memory_snapshot import MemorySnapshot
from ..raising import raises
from ..samples import MIB
from ..transfer.test_backup_stream import SHAPES, noise

ASKED = 128 << 10  # bytes at a time

WITH_HOLES = {4 * MIB + 5: noise(300_000), 12 * MIB - 7: noise(MIB), 17 * MIB: b"x", 20 * MIB - 1: b"y"}
FULL = {0: bytes([1]) * (40 * MIB)}
SEGMENT = Extent(4 * MIB, 16 * MIB)


def holes() -> MemorySnapshot:
    return MemorySnapshot(24 * MIB, WITH_HOLES)


def read(segment: SegmentReader, offset: int, length: int) -> bytes:
    """Read as the kernel has it: all that is asked for, unless the end comes first."""
    got = b""
    while len(got) < length:
        while (answer := segment.at_once(offset + len(got), length - len(got))) is None:
            segment.load(offset + len(got))
        if not answer:
            break
        assert len(answer) <= length - len(got)
        got += answer
    return got


def read_in_order(segment: SegmentReader, start: int, end: int, at_once: int = ASKED) -> bytes:
    return b"".join(read(segment, at, min(at_once, end - at)) for at in range(start, end, at_once))


def checksums_of(
    snapshot: MemorySnapshot, segment: Extent, piece: int = READ_SIZE
) -> list[tuple[int, int, bytes]]:
    """Return the records of what is there, piece by piece."""
    checksums, content = Checksums(), snapshot.content
    for start in range(segment.offset, segment.offset + segment.length, piece):
        extents = [*snapshot.extents(Extent(start, min(piece, snapshot.size - start)))]
        if extents:
            first, end = extents[0].offset, extents[-1].offset + extents[-1].length
            checksums.add(first, content[first:end])
    return [*checksums]


@pytest.mark.parametrize("shape", [name for name in SHAPES if SHAPES[name].size])
def test_sequential_reads_return_every_byte_and_its_checksums(shape: str) -> None:
    snapshot = MemorySnapshot(SHAPES[shape].size, SHAPES[shape].data)
    segment = SegmentReader(snapshot, Extent(0, snapshot.size))
    assert read_in_order(segment, 0, snapshot.size + 1) == snapshot.content
    assert segment.complete
    assert [*segment.checksums] == checksums_of(snapshot, Extent(0, snapshot.size))
    assert not snapshot.pending


@pytest.mark.parametrize("at_once", [5000, MIB, 100 * MIB])
def test_a_segment_within_an_image_has_its_own_bytes_for_any_read_size(at_once: int) -> None:
    snapshot = holes()
    segment = SegmentReader(snapshot, SEGMENT)
    assert read_in_order(segment, 0, 16 * MIB, at_once) == snapshot.content[4 * MIB : 20 * MIB]
    assert segment.complete
    assert [*segment.checksums] == checksums_of(snapshot, SEGMENT)
    assert all(4 * MIB <= one.offset < one.offset + one.length <= 20 * MIB for one in snapshot.reads)


def test_holes_are_not_read() -> None:
    snapshot = holes()
    read_in_order(SegmentReader(snapshot, SEGMENT), 0, 16 * MIB)
    assert [read.offset for read in snapshot.reads] == [4 * MIB + 5, 12 * MIB - 7, 12 * MIB, 17 * MIB]
    hole = SegmentReader(snapshot, Extent(0, 4 * MIB))
    hole.load(0)
    assert hole.at_once(0, 10 * MIB) == ZEROS, "no more than what is asked for at the most"
    assert read_in_order(hole, len(ZEROS), 4 * MIB) == bytes(3 * MIB)
    assert (hole.complete, [*hole.checksums]) == (True, [])


def test_sequential_reads_read_each_byte_once_and_ahead() -> None:
    snapshot = MemorySnapshot(40 * MIB, FULL)
    segment = SegmentReader(snapshot, Extent(0, 40 * MIB))
    read(segment, 0, 1)
    assert 2 <= snapshot.most_pending <= WINDOW_BYTES // READ_SIZE
    read_in_order(segment, 1, 40 * MIB, MIB)
    assert snapshot.reads == [Extent(at, READ_SIZE) for at in range(0, 40 * MIB, READ_SIZE)]


def test_a_segment_is_complete_only_after_its_last_byte() -> None:
    segment = SegmentReader(holes(), SEGMENT)
    assert not segment.complete
    read_in_order(segment, 0, 16 * MIB - 1)
    assert not segment.complete
    assert read(segment, 16 * MIB - 1, 5) == b"y"
    assert segment.complete


@pytest.mark.parametrize("offset", [16 * MIB, 16 * MIB + 1, 100 * MIB])
def test_at_the_end_there_are_no_bytes_and_no_reads(offset: int) -> None:
    snapshot = holes()
    segment = SegmentReader(snapshot, SEGMENT)
    assert segment.at_once(offset, ASKED) == b""
    assert not segment.complete
    assert snapshot.reads == []


def test_random_reads_return_the_right_bytes_and_do_not_count() -> None:
    snapshot, places = holes(), random.Random(8)
    content = snapshot.content[4 * MIB : 20 * MIB]
    segment = SegmentReader(snapshot, SEGMENT)
    for _ in range(60):
        offset, length = places.randrange(len(content)), places.randrange(1, MIB)
        assert read(segment, offset, length) == content[offset : offset + length]
        assert not segment.complete


def test_reads_that_skip_something_are_not_complete() -> None:
    segment = SegmentReader(holes(), SEGMENT)
    read_in_order(segment, 1, 16 * MIB)
    assert not segment.complete, "its first byte is missing"
    read(segment, 0, MIB)
    read_in_order(segment, 2 * MIB, 16 * MIB)
    assert not segment.complete, "there is a gap"


def test_a_second_read_from_the_first_byte_on_is_complete() -> None:
    snapshot = holes()
    segment = SegmentReader(snapshot, SEGMENT)
    read(segment, 5 * MIB, MIB)
    read(segment, 0, MIB)
    read(segment, 0, ASKED)
    read_in_order(segment, ASKED, 16 * MIB)
    assert segment.complete
    assert [*segment.checksums] == checksums_of(snapshot, SEGMENT)


def test_checksums_are_of_the_bytes_that_were_returned() -> None:
    data = {0: b"first"}
    snapshot = MemorySnapshot(MIB, data)
    segment = SegmentReader(snapshot, Extent(0, MIB))
    assert read(segment, 0, 5) == b"first"
    data[0] = b"later"
    read_in_order(segment, 5, MIB)
    assert [*segment.checksums] == checksums_of(MemorySnapshot(MIB, {0: b"first"}), Extent(0, MIB))


@pytest.mark.parametrize("number", [0, 1, 5])
def test_whichever_read_fails_only_the_bytes_before_it_are_returned(number: int) -> None:
    snapshot = MemorySnapshot(40 * MIB, FULL, fails_at=number)
    segment = SegmentReader(snapshot, Extent(0, 40 * MIB))
    failing = number * READ_SIZE
    assert read_in_order(segment, 0, failing) == bytes([1]) * failing
    with raises(f"cannot read {READ_SIZE} bytes at {failing}"):
        read(segment, failing, ASKED)
    assert not segment.complete


def test_a_failed_read_is_no_hole_when_it_is_repeated() -> None:
    snapshot = MemorySnapshot(40 * MIB, FULL, fails_at=3)
    segment = SegmentReader(snapshot, Extent(0, 40 * MIB))
    read_in_order(segment, 0, 3 * READ_SIZE)
    with pytest.raises(BackupError):
        read(segment, 3 * READ_SIZE, ASKED)
    assert read(segment, 3 * READ_SIZE, 10) == bytes([1]) * 10
    read_in_order(segment, 3 * READ_SIZE + 10, 40 * MIB)
    assert not segment.complete, "it was not read from its first byte on"


@pytest.mark.parametrize("offset", [0, 7 * MIB])
def test_closing_starts_no_read_and_waits_for_none(offset: int) -> None:
    """Of a cluster that has gone silent, each would be repeated for minutes; closing the image waits."""
    snapshot = MemorySnapshot(40 * MIB, FULL, fails_at=2)
    segment = SegmentReader(snapshot, Extent(0, 40 * MIB))
    read(segment, offset, 1)
    pending, reads = {*snapshot.pending}, [*snapshot.reads]
    assert pending
    segment.close()
    segment.close()
    SegmentReader(snapshot, SEGMENT).close()
    assert (snapshot.pending, snapshot.reads) == (pending, reads)


class ListedInParts(MemorySnapshot):
    """A snapshot whose listing yields an empty extent at each 4 MiB."""

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        assert within
        for start in range(within.offset, within.offset + within.length, 4 * MIB):
            yield from super().extents(Extent(start, 4 * MIB))
            yield Extent(start + 4 * MIB, 0)


def test_a_segment_listed_in_parts_is_read_like_any_other() -> None:
    segment = SegmentReader(ListedInParts(24 * MIB, WITH_HOLES), SEGMENT)
    got = read_in_order(segment, 0, SEGMENT.length)
    assert got == holes().content[SEGMENT.offset : SEGMENT.offset + SEGMENT.length]
    assert segment.complete
    assert [*segment.checksums] == checksums_of(holes(), SEGMENT)
