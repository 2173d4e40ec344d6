"""backup/mount/block_image.py: what is read of an output, how often, and what a reader gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from backup.errors import BackupError, Interrupted, TransientError
from backup.mount import blocks as block_cache
from backup.mount.block_image import AHEAD, BLOCK, GROUP, BlockImage
from backup.mount.blocks import Blocks, cached_blocks
from backup.mount.data_map import DataMap
from backup.restore_point.checksums import Checksums, packed
from backup.stored import SavedImage
from backup.system.stop_request import StopRequest

from ..raising import raises
from ..samples import LAYOUT, MIB
from ..transfer.test_backup_stream import noise
from ..waiting import wait_until

CONTENT = noise(40 * MIB + 513)


@dataclass
class Stored:
    """An image of an output, in memory. Satisfies protocols.RandomAccess; counts the reads of each block."""

    content: bytes = field(default=CONTENT, repr=False)
    bad: set[int] = field(default_factory=set)  # blocks that cannot be read
    go_on: threading.Event = field(default_factory=threading.Event)
    reads: list[range] = field(default_factory=list)

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self.content)
        numbers = range(offset // BLOCK, -(-(offset + length) // BLOCK))
        self.reads.append(numbers)
        self.go_on.wait()
        for number in numbers:
            if number in self.bad:
                raise BackupError(f"block {number} is damaged")
        return self.content[offset : offset + length]

    @property
    def blocks(self) -> list[int]:
        return sorted(number for numbers in self.reads for number in numbers)


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with cached_blocks() as blocks:
        yield blocks


@pytest.fixture
def stored() -> Stored:
    stored = Stored()
    stored.go_on.set()
    return stored


def image(
    stored: Stored, blocks: Blocks, checksums: Checksums | None = None, limit: float = 10
) -> BlockImage:
    saved = SavedImage("vda", "vms/a", len(stored.content), 0, 0, 1, "id", LAYOUT)
    return BlockImage(saved, stored, DataMap(checksums), blocks, limit)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 3 * MIB), (5, 2 * MIB), (MIB - 1, 2), (7 * MIB, MIB), (40 * MIB + 500, 100), (41 * MIB, 5)],
)
def test_a_reader_gets_the_bytes_of_the_image(
    stored: Stored, blocks: Blocks, offset: int, length: int
) -> None:
    assert bytes(image(stored, blocks).read(offset, length)) == CONTENT[offset : offset + length]


def test_each_block_is_read_once(stored: Stored, blocks: Blocks) -> None:
    one = image(stored, blocks)
    for offset in [*range(0, 10 * MIB, 100_000), 17 * MIB, 17 * MIB + 5, *range(0, 10 * MIB, 333_333)]:
        assert bytes(one.read(offset, 100_000)) == CONTENT[offset : offset + 100_000]
    assert stored.blocks == sorted(set(stored.blocks))


def test_a_block_that_two_readers_want_is_read_once(stored: Stored, blocks: Blocks) -> None:
    stored.go_on.clear()
    one = image(stored, blocks)
    readers = [threading.Thread(target=one.read, args=(MIB, 10)) for _ in range(5)]
    for reader in readers:
        reader.start()
    wait_until(lambda: stored.reads, 5, "it is being read")
    assert not one.is_there(MIB, 10)
    stored.go_on.set()
    for reader in readers:
        reader.join()
    assert one.is_there(MIB, 10)
    assert stored.reads == [range(1, 2)]


def test_single_reads_read_nothing_ahead(stored: Stored, blocks: Blocks) -> None:
    one = image(stored, blocks)
    for number in (30, 2, 17, 9, 22):
        one.read(number * MIB, 4096)
    assert stored.blocks == [2, 9, 17, 22, 30]


def test_a_sequential_reader_is_read_ahead_in_groups(stored: Stored, blocks: Blocks) -> None:
    one = image(stored, blocks)
    for offset in range(0, 20 * MIB, MIB // 8):
        one.read(offset, MIB // 8)
    wait_until(lambda: one.is_there(20 * MIB, AHEAD // 2 * BLOCK), 5, "it is read ahead")
    assert max(map(len, stored.reads)) == GROUP
    assert [one for one in stored.reads if len(one) == GROUP and one[0] % GROUP] == []
    assert stored.blocks[-1] < 20 + AHEAD + GROUP


def test_the_end_is_read_ahead_too(stored: Stored, blocks: Blocks) -> None:
    one = image(stored, blocks)
    parts = [bytes(one.read(offset, MIB // 8)) for offset in range(0, len(CONTENT), MIB // 8)]
    assert b"".join(parts) == CONTENT
    assert stored.blocks == [*range(41)]


def test_holes_are_never_read(stored: Stored, blocks: Blocks) -> None:
    data = packed([(20 * MIB, 3 * MIB, b""), (29 * MIB + 5, MIB, b"")])
    one = image(stored, blocks, data)
    assert one.is_there(0, 5 * MIB)
    assert not any(bytes(one.read(0, 5 * MIB)))
    assert not any(bytes(one.read(40 * MIB, 513)))
    assert stored.reads == []
    assert bytes(one.read(29 * MIB, 2 * MIB)) == CONTENT[29 * MIB : 31 * MIB]
    assert bytes(one.read(22 * MIB, 2 * MIB)) == CONTENT[22 * MIB : 23 * MIB] + bytes(MIB)


def test_a_damaged_block_does_not_spoil_those_that_were_read_with_it(stored: Stored, blocks: Blocks) -> None:
    stored.bad = {17}
    one = image(stored, blocks)
    good = [number for number in range(41) if number != 17]
    for number in range(41):
        if number == 17:
            with raises("block 17 is damaged"):
                one.read(number * MIB, 10)
        else:
            assert bytes(one.read(number * MIB, 10)) == CONTENT[number * MIB :][:10]
    assert set(good) <= set(stored.blocks)
    stored.bad = set()
    assert bytes(one.read(17 * MIB, 10)) == CONTENT[17 * MIB :][:10], "it is tried again"


def test_a_block_that_cannot_be_read_is_read_once_for_a_reader(stored: Stored, blocks: Blocks) -> None:
    stored.bad = {17}
    with raises("block 17 is damaged"):
        image(stored, blocks).read(17 * MIB, 10)
    assert stored.reads == [range(17, 18)]


def test_both_reads_of_a_block_together_have_one_limit(stored: Stored, blocks: Blocks) -> None:
    """The first one, together with others, fails late; the second one never ends."""
    began, hangs = threading.Event(), threading.Event()

    class Slow(Stored):
        def read(self, offset: int, length: int) -> bytes:
            if offset >= 8 * BLOCK and length > BLOCK:
                began.set()
                time.sleep(5)
                raise BackupError("a block of several is damaged")
            if offset == 9 * BLOCK:
                hangs.wait(20)
            return super().read(offset, length)

    slow = Slow(go_on=stored.go_on)
    one = image(slow, blocks, limit=6)
    for number in range(8):
        one.read(number * MIB, MIB)
    assert began.wait(10)
    start = time.monotonic()
    with raises("no answer from the output within 6 s", TransientError):
        one.read(9 * MIB, 10)
    assert time.monotonic() - start < 10
    hangs.set()


def test_memory_is_bounded(stored: Stored, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_cache, "CACHED_BLOCKS", 5)
    one = image(stored, blocks)
    for number in range(30):
        one.read(number * MIB, 10)
        assert sum(("vda", other) in blocks for other in range(41)) <= 5


def test_a_reader_does_not_wait_for_ever(stored: Stored, blocks: Blocks) -> None:
    stored.go_on.clear()
    with raises("no answer from the output within 0 s", TransientError):
        image(stored, blocks, limit=0.2).read(0, 10)
    stored.go_on.set()


def test_a_stop_ends_a_read_that_waits(stored: Stored, blocks: Blocks) -> None:
    stored.go_on.clear()
    stop = StopRequest()
    one = replace(image(stored, blocks, limit=60), check_stop=stop.check)
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    with raises("interrupted", Interrupted):
        one.read(0, 10)
    stored.go_on.set()


def test_at_the_end_reads_that_wait_fail(stored: Stored) -> None:
    stored.go_on.clear()
    errors = []

    def read(one: BlockImage, number: int) -> None:
        try:
            one.read(number * MIB, 10)
        except BackupError as error:
            errors.append(error.message)

    with cached_blocks() as blocks:
        one = image(stored, blocks)
        readers = [threading.Thread(target=read, args=(one, number)) for number in range(0, 40, 5)]
        for reader in readers:
            reader.start()
        wait_until(lambda: len(stored.reads) == block_cache.READERS, 5, "they are being read")
        threading.Timer(0.2, stored.go_on.set).start()
    for reader in readers:
        reader.join()
    assert set(errors) == {"the file system is being unmounted"}
    assert len(stored.reads) == block_cache.READERS
