"""outputs/own_points/written_pieces.py: an image becomes what its source is, by writing little."""

from __future__ import annotations

import random
from collections.abc import Generator

import pytest

from backup.errors import BackupError
from backup.model import Extent
from backup.restore_point.checksums import Checksums
from backup.transfer import backup_stream
from outputs.own_points.changed_parts import PIECE, ChangedParts
from outputs.own_points.written_pieces import BLOCK, PieceWriter, write_all, write_changed

from ..memory_snapshot import MemorySnapshot
from ..paper_repository import PaperImage, PaperPool
from ..samples import MIB
from .saved_samples import content

SIZE = 9 * MIB + 513


def image_with(data: bytes) -> PaperImage:
    pool = PaperPool()
    pool.create("vda", len(data), MIB)
    pool.images["vda"].content[:] = data
    return PaperImage(pool, "vda", pool.images["vda"])


def noise(seed: int, size: int = SIZE) -> bytes:
    """Give zeros with random data here and there, of lengths around that from which zeros are left out."""
    generator = random.Random(seed)
    places = [generator.randrange(size) for _ in range(12)]
    lengths = (1, 513, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK)
    return content(
        size, {start: generator.randbytes(min(generator.choice(lengths), size - start)) for start in places}
    )


@pytest.mark.parametrize("seed", range(40))
def test_any_part_becomes_what_the_source_is_and_nothing_else_changes(seed: int) -> None:
    generator = random.Random(seed)
    before, now = noise(seed), noise(seed + 1000)
    piece = generator.randrange(2) * PIECE
    first, last = sorted(generator.sample(range(PIECE), 2))
    offset, end = sorted(generator.sample(range(PIECE + 1), 2))
    data = now[piece + offset : piece + end]
    image = image_with(before)
    writer = PieceWriter(image, fresh=False)
    writer.write(Extent(piece + first, last - first), piece + offset, data)
    writer.settle()
    source = content(SIZE, {piece + offset: data})
    expected = before[: piece + first] + source[piece + first : piece + last] + before[piece + last :]
    assert bytes(image.stored.content) == expected


@pytest.mark.parametrize("seed", range(10))
def test_a_full_read_writes_what_differs_from_the_checksums(seed: int) -> None:
    before, now = noise(seed), bytearray(noise(seed))
    now[5 * MIB : 5 * MIB + 100] = random.Random(seed).randbytes(100)
    empty = image_with(bytes(SIZE))
    known = write_all(
        MemorySnapshot(SIZE, {0: before}),
        PieceWriter(empty, True),
        Checksums(),
        ChangedParts(SIZE),
        lambda _: None,
    )
    assert bytes(empty.stored.content) == before
    image = image_with(before)
    writer = PieceWriter(image, fresh=False)
    source = MemorySnapshot(SIZE, {0: bytes(now)})
    found = write_all(source, writer, known, ChangedParts(SIZE), lambda _: None)
    assert bytes(image.stored.content) == bytes(now)
    assert 0 < writer.written <= PIECE, "one piece"
    parts = ChangedParts(SIZE)
    parts.add(Extent(5 * MIB, 100))
    image = image_with(before)
    writer = PieceWriter(image, fresh=False)
    changed = write_changed(source, writer, parts, known, lambda _: None)
    assert bytes(image.stored.content) == bytes(now)
    assert (writer.written, changed == found) == (100, True)


class ListedWithin(MemorySnapshot):
    """A snapshot whose listing comes to an end, and goes on, within a piece."""

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        for offset in range(0, self.size, MIB):
            yield Extent(offset, min(MIB, self.size - offset))
            yield Extent(min(offset + MIB, self.size), 0)


def test_a_piece_that_is_listed_in_parts_is_written_whole() -> None:
    now = noise(3)
    image = image_with(bytes(SIZE))
    source, writer = ListedWithin(SIZE, {0: now}), PieceWriter(image, fresh=True)
    found = write_all(source, writer, Checksums(), ChangedParts(SIZE), lambda _: None)
    assert bytes(image.stored.content) == now
    assert len({offset // PIECE for offset, _, _ in found}) == len(found), "one record for each piece"


def test_a_piece_that_is_read_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [(0, b"first"), (MIB, b"second")]
    monkeypatch.setattr(backup_stream, "pieces", lambda _: (one for one in twice))
    writer = PieceWriter(image_with(bytes(SIZE)), fresh=True)
    with pytest.raises(BackupError, match="the piece at 0 was read twice"):
        write_all(MemorySnapshot(SIZE), writer, Checksums(), ChangedParts(SIZE), lambda _: None)


def test_zeros_of_a_new_image_are_not_written() -> None:
    image = image_with(bytes(SIZE))
    writer = PieceWriter(image, fresh=True)
    data = content(2 * MIB, {0: b"x", 2 * MIB - 1: b"y"})
    writer.write(Extent(0, PIECE), 0, data)
    writer.settle()
    assert writer.written == 2 * BLOCK
    assert bytes(image.stored.content) == content(SIZE, {0: data})
