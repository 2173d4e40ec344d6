"""outputs/segments/files.py: the snapshots as files, and reads that fail."""

from __future__ import annotations

import errno
import stat
import threading
from collections.abc import Awaitable, Collection, Generator, Sequence
from hashlib import sha256
from typing import Any, Callable

import pyfuse3
import pytest
import trio

from backup.errors import BackupError
from backup.model import Extent
from backup.system.spool import Spool
from outputs.segments import files as segment_files
from outputs.segments import layout as cut
from outputs.segments.files import SegmentFiles
from outputs.segments.last_files import LastFiles
from outputs.segments.layout import PER_DIRECTORY, Segments
from outputs.segments.reader import SegmentReader
from outputs.segments.tree import DiskFiles

from ..memory_snapshot import MemorySnapshot
from ..samples import MIB
from ..transfer.test_backup_stream import noise
from ..waiting import wait_until
from .test_segment_reader import checksums_of

ASKED = 1 << 20
SEGMENT = 8 * MIB
ROOT = pyfuse3.ROOT_INODE
SECOND = 1_700_000_000 * 10**9
MANIFEST = b"manifest"
CHECKSUM = f"{sha256(MANIFEST).hexdigest()}  ~definition.tar\n".encode()
LAST = ["~definition.tar", "~definition.tar.sha256"]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALLEST", SEGMENT)


def disk(
    target: str = "vda",
    size: int = 2 * SEGMENT + 100,
    data: dict[int, bytes] | None = None,
    holes: Collection[int] = (),
    **more: Any,
) -> DiskFiles:
    """Return a disk whose segment n has the time SECOND + n."""
    segments = Segments.for_image(target, size)
    times = [SECOND + number for number in range(len(segments))]
    return DiskFiles(segments, times, MemorySnapshot(size, data or {}, **more), holes)


class Reply:
    """Takes the entries of a directory. Satisfies what SegmentFiles asks of pyfuse3.readdir_reply."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.entries: list[tuple[bytes, int, int]] = []

    def __call__(self, token: object, name: bytes, attributes: Any, next_one: int) -> bool:
        assert token is self
        if len(self.entries) == self.room:
            return False
        self.entries.append((name, attributes.st_ino, next_one))
        return True


class Kernel:
    """Makes the requests that the kernel would make for a program."""

    def __init__(self, files: SegmentFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = files
        self._patch = monkeypatch

    async def list(self, inode: int, room: int = 50) -> Sequence[tuple[bytes, int]]:
        """List a directory, `room` entries at a time."""
        handle = await self.files.opendir(inode, None)
        found: list[tuple[bytes, int]] = []
        start = 0
        while True:
            reply = Reply(room)
            self._patch.setattr(pyfuse3, "readdir_reply", reply)
            await self.files.readdir(handle, start, reply)
            if not reply.entries:
                return found
            found += [(name, number) for name, number, _ in reply.entries]
            start = reply.entries[-1][2]

    async def inode(self, path: str) -> int:
        """Look up a path name by name."""
        inode: int = ROOT
        for name in path.split("/"):
            found: Any = await self.files.lookup(inode, name.encode())
            inode = found.st_ino
        return inode

    async def read(self, handle: int, length: int = 1 << 40, start: int = 0) -> bytes:
        got = bytearray()
        while len(got) < length:
            answer = await self.files.read(handle, start + len(got), min(ASKED, length - len(got)))
            if not answer:
                break
            got += answer
        return bytes(got)

    async def open(self, path: str) -> int:
        handle: int = (await self.files.open(await self.inode(path), 0, None)).fh
        return handle


@pytest.fixture
def kernel_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    return lambda *disks: Kernel(SegmentFiles(disks, LastFiles(lambda: Spool(MANIFEST), SECOND)), monkeypatch)


KernelOf = Callable[..., Kernel]


def now(asked: Callable[[], Awaitable[Any]]) -> Any:
    """Run it, for a few seconds at the most."""

    async def limited() -> Any:
        with trio.fail_after(5):
            return await asked()

    return trio.run(limited)


async def tree(kernel: Kernel, inode: int = ROOT, path: str = "") -> dict[str, int]:
    """Return the inodes of all files by their paths, in the order in which they are listed."""
    found: dict[str, int] = {}
    for name, number in await kernel.list(inode):
        attributes = await kernel.files.getattr(number)
        below = f"{path}{name.decode()}"
        if stat.S_ISDIR(attributes.st_mode):
            found.update(await tree(kernel, number, f"{below}/"))
        else:
            found[below] = number
    return found


async def all_inodes(kernel: Kernel, paths: Sequence[str]) -> Sequence[int]:
    return [await kernel.inode(path) for path in paths]


def test_the_files_are_the_segments_of_all_disks_and_nothing_else(kernel_of: KernelOf) -> None:
    disks = [disk(), disk("vdb", 300 * SEGMENT), disk("cciss/c0d0", 1), disk("vdc", 0)]
    kernel = kernel_of(*disks)
    inodes = now(lambda: tree(kernel))
    paths = [one.segments.path(number) for one in disks for number in range(len(one.segments))]
    assert [*inodes] == paths + LAST
    assert len({*inodes.values()}) == len(inodes)
    names = [name.decode() for name, _ in now(lambda: kernel.list(ROOT))]
    assert names == ["vda", "vdb", "cciss_c0d0", "vdc", *LAST]
    assert sorted(names)[-2:] == LAST, "restic reads them last"
    assert [inodes[path] for path in paths[::50]] == now(lambda: all_inodes(kernel, paths[::50]))


def test_a_listing_in_parts_is_complete_and_has_no_duplicates(kernel_of: KernelOf) -> None:
    kernel = kernel_of(disk(size=128 * SEGMENT))
    directory = now(lambda: kernel.inode("vda/0000"))
    whole = now(lambda: kernel.list(directory, 1000))
    assert len({*whole}) == len(whole) == 128
    assert now(lambda: kernel.list(directory, 1)) == now(lambda: kernel.list(directory, 7)) == whole


@pytest.mark.parametrize("path", ["vdb", "vda/0001", "vda/0000/000003", "vda/0000/000128", "vda/0000/0"])
def test_missing_paths_are_not_found(kernel_of: KernelOf, path: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        now(lambda: kernel_of(disk()).inode(path))
    assert caught.value.errno == errno.ENOENT


def attributes(kernel: Kernel, path: str) -> Any:
    async def asked() -> Any:
        return await kernel.files.getattr(await kernel.inode(path))

    return now(asked)


@pytest.mark.parametrize(
    ("path", "size", "time"),
    [
        ("vda/0000/000000", SEGMENT, SECOND),
        ("vda/0000/000001", SEGMENT, SECOND + 1),
        ("vda/0000/000002", 100, SECOND + 2),
        ("vdb/0000/000000", SEGMENT, SECOND),
        ("vdb/0001/000128", 7, SECOND + 128),
    ],
)
def test_a_file_has_its_segment_s_size_and_its_time_to_the_nanosecond(
    kernel_of: KernelOf, path: str, size: int, time: int
) -> None:
    found = attributes(kernel_of(disk("vda"), disk("vdb", 128 * SEGMENT + 7)), path)
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_size, found.st_mtime_ns, found.st_ctime_ns) == (size, time, time)
    assert not found.st_mode & 0o277, "nobody else may read it, nobody may write"


@pytest.mark.parametrize("path", ["vda", "vda/0000"])
def test_directories_are_the_same_in_every_run(kernel_of: KernelOf, path: str) -> None:
    first, later = (attributes(kernel_of(one), path) for one in (disk(), disk(data={0: b"x"})))
    assert stat.S_ISDIR(first.st_mode)
    names = ("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_uid", "st_gid", "st_nlink")
    assert [getattr(first, name) for name in names] == [getattr(later, name) for name in names]


def test_each_file_has_its_segment_s_bytes_and_checksums_and_served_bytes_are_counted(
    kernel_of: KernelOf,
) -> None:
    data = {MIB: noise(70_000), SEGMENT - 3: b"across", 2 * SEGMENT + 99: b"!"}
    disks = [disk(data=data), disk("vdb", 7, {0: b"1234567"})]
    kernel = kernel_of(*disks)

    async def read_all() -> dict[str, bytes]:
        content = {}
        for path, inode in (await tree(kernel)).items():
            handle = (await kernel.files.open(inode, 0, None)).fh
            content[path] = await kernel.read(handle)
            await kernel.files.release(handle)
        return content

    content = now(read_all)
    first: Any = disks[0].reader
    assert b"".join(content[disks[0].segments.path(number)] for number in range(3)) == first.content
    assert content["vdb/0000/000000"] == b"1234567"
    assert [content[name] for name in LAST] == [MANIFEST, CHECKSUM]
    assert kernel.files.served == 2 * SEGMENT + 107 + len(MANIFEST) + len(CHECKSUM)
    assert {*disks[0].read} == {0, 1, 2}
    assert [*disks[0].read.records()] == checksums_of(first, Extent(0, first.size))
    assert not first.pending


def test_a_file_that_was_not_read_to_its_end_counts_as_not_read(kernel_of: KernelOf) -> None:
    one = disk(data={0: b"x", SEGMENT: b"y"})
    kernel = kernel_of(one)

    async def read_some() -> None:
        first, second = await kernel.open("vda/0000/000000"), await kernel.open("vda/0000/000001")
        await kernel.read(first, SEGMENT - 1)
        await kernel.read(second, start=1)
        for handle in (first, second):
            await kernel.files.release(handle)

    now(read_some)
    assert len(one.read) == 0


class Meeting(MemorySnapshot):
    """A snapshot whose listing waits until another part is being listed."""

    meeting = threading.Barrier(2)

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        self.meeting.wait(timeout=20)
        return super().extents(within)


def test_several_files_are_read_at_the_same_time(kernel_of: KernelOf) -> None:
    reader = Meeting(2 * SEGMENT, {number * MIB: bytes([number + 1]) for number in range(4)})
    one = DiskFiles(Segments.for_image("vda", reader.size), [0, 0], reader)
    kernel = kernel_of(one)
    content: dict[int, bytes] = {}

    async def read_one(number: int) -> None:
        handle = await kernel.open(one.segments.path(number))
        content[number] = await kernel.read(handle)
        await kernel.files.release(handle)

    async def read_both() -> None:
        async with trio.open_nursery() as nursery:
            for number in (0, 1):
                nursery.start_soon(read_one, number)

    now(read_both)
    assert content[0] + content[1] == reader.content
    assert {*one.read} == {0, 1}


def failing(**more: Any) -> DiskFiles:
    return disk(data={0: b"x" * 100}, fails_at=0, **more)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_files, "FAILED_POLL", 0.001)


class Broken(MemorySnapshot):
    """A snapshot whose reader has a bug."""

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        raise ZeroDivisionError


def with_a_bug() -> DiskFiles:
    return DiskFiles(Segments.for_image("vda", 100), [0], Broken(100))


@pytest.mark.parametrize(("broken", "kind"), [(failing, BackupError), (with_a_bug, ZeroDivisionError)])
def test_a_reader_gets_no_error_before_give_up(
    kernel_of: KernelOf, broken: Callable[[], DiskFiles], kind: type[Exception]
) -> None:
    one = broken()
    kernel = kernel_of(one)
    seen: list[int] = []

    async def read_one(handle: int) -> None:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await kernel.read(handle)
        seen.append(caught.value.errno)

    async def give_up_later() -> None:
        handle = await kernel.open("vda/0000/000000")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_one, handle)
            while not kernel.files.error:
                await trio.sleep(0.001)
            await trio.sleep(0.02)
            assert seen == []
            kernel.files.give_up()
        await kernel.files.release(handle)

    now(give_up_later)
    assert seen == [errno.EIO]
    assert isinstance(kernel.files.error, kind)
    assert len(one.read) == 0


def test_the_first_error_is_reported_and_other_files_are_read_meanwhile(kernel_of: KernelOf) -> None:
    good = disk("vdc", 100, {0: b"good"})
    kernel = kernel_of(failing(target="vda"), disk("vdb", data={8: b"x"}, fails_at=0), good)

    async def wait_for_bytes(path: str) -> None:
        with pytest.raises(pyfuse3.FUSEError):
            await kernel.read(await kernel.open(path))

    async def read_all() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_bytes, "vda/0000/000000")
            while not kernel.files.error:
                await trio.sleep(0.001)
            nursery.start_soon(wait_for_bytes, "vdb/0000/000000")
            await trio.sleep(0.02)
            assert await kernel.read(await kernel.open("vdc/0000/000000"), 4) == b"good"
            kernel.files.give_up()

    now(read_all)
    assert str(kernel.files.error) == "cannot read 100 bytes at 0"


def test_after_give_up_a_failing_read_gets_its_error_at_once(kernel_of: KernelOf) -> None:
    kernel = kernel_of(failing())

    async def read() -> bytes:
        return await kernel.read(await kernel.open("vda/0000/000000"))

    kernel.files.give_up()
    with pytest.raises(pyfuse3.FUSEError):
        now(read)
    assert kernel.files.error


def test_a_hole_is_a_link_to_the_file_of_zeros_beside_the_segments(kernel_of: KernelOf) -> None:
    one = disk(size=3 * SEGMENT, data={0: b"x"})
    one.holes = {1, 2}
    kernel = kernel_of(one)

    async def check() -> None:
        link = await kernel.inode("vda/0000/000001")
        assert stat.S_ISLNK((await kernel.files.getattr(link)).st_mode)
        assert await kernel.files.readlink(link, None) == b"../zeros"
        zeros = await kernel.inode("vda/zeros")
        assert (await kernel.files.getattr(zeros)).st_size == SEGMENT
        assert await kernel.read(await kernel.open("vda/zeros")) == bytes(SEGMENT)
        assert stat.S_ISREG((await kernel.files.getattr(await kernel.inode("vda/0000/000000"))).st_mode)

    now(check)
    assert one.size == 2 * SEGMENT, "a segment with data, and the zeros once"
    assert len(one.read) == 0, "the zeros are no segment"


def test_without_a_hole_there_is_no_file_of_zeros(kernel_of: KernelOf) -> None:
    kernel = kernel_of(disk())
    assert [name for name, _ in now(lambda: kernel.list(1 << 32))] == [b"0000"]


def test_a_file_system_that_ends_by_itself_leaves_no_reader_waiting(
    kernel_of: KernelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = kernel_of(disk(data={0: noise(MIB)}))
    unmounted = threading.Event()

    async def ends_by_itself() -> None:
        await kernel.files.read(await kernel.open("vda/0000/000000"), 0, ASKED)
        raise MemoryError

    monkeypatch.setattr(pyfuse3, "main", ends_by_itself)
    monkeypatch.setattr(pyfuse3, "close", lambda unmount: unmounted.set())
    serves = threading.Event()
    serving = threading.Thread(target=kernel.files.serve, args=(serves,), daemon=True)
    serving.start()
    wait_until(lambda: kernel.files.error, 5, "the error is there to be raised")
    assert not unmounted.is_set(), "restic has to be interrupted before"
    kernel.files.give_up()
    assert unmounted.wait(5), "which ends what waits"
    kernel.files.stop()
    serving.join(5)
    assert not serving.is_alive()


def last_of(kernel: Kernel, happens: Callable[[int], Awaitable[None]]) -> list[bytes]:
    """Read both last files at the same time, as restic's two readers may, while something happens."""
    content = [b"", b""]

    async def read_one(number: int) -> None:
        handle = await kernel.open(LAST[number])
        content[number] = await kernel.read(handle)
        await kernel.files.release(handle)

    async def read_all() -> None:
        handle = await kernel.open("vda/0000/000000")
        async with trio.open_nursery() as nursery:
            for number in (1, 0):
                nursery.start_soon(read_one, number)
            await trio.sleep(0.05)
            assert content == [b"", b""], "a segment is still open"
            await happens(handle)

    now(read_all)
    return content


def test_the_manifest_is_packed_when_all_segments_are_closed_and_its_checksum_comes_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = disk(size=100, data={0: b"x"})
    read: list[set[int]] = []

    def pack() -> Spool:
        read.append({*one.read})
        return Spool(MANIFEST)

    kernel = Kernel(SegmentFiles([one], LastFiles(pack, SECOND)), monkeypatch)

    async def finish(handle: int) -> None:
        await kernel.read(handle)
        await kernel.files.release(handle)

    assert last_of(kernel, finish) == [MANIFEST, CHECKSUM]
    assert read == [{0}], "once"


def test_the_manifest_waits_for_the_reads_in_flight_of_a_segment_that_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, closing, closed = disk(size=100), threading.Event(), threading.Event()

    def close(reader: SegmentReader) -> None:
        closing.wait(5)
        closed.set()

    def pack() -> Spool:
        assert closed.is_set()
        return Spool(MANIFEST)

    monkeypatch.setattr(SegmentReader, "close", close)
    kernel = Kernel(SegmentFiles([one], LastFiles(pack, SECOND)), monkeypatch)

    async def finish(handle: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.files.release, handle)
            await trio.sleep(0.05)
            closing.set()

    assert last_of(kernel, finish) == [MANIFEST, CHECKSUM]


def test_after_give_up_no_part_of_the_manifest_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one = disk(size=100)
    kernel = Kernel(SegmentFiles([one], LastFiles(lambda: Spool(MANIFEST), SECOND)), monkeypatch)

    async def open_one() -> None:
        handle = await kernel.open(LAST[0])
        kernel.files.give_up()
        with pytest.raises(pyfuse3.FUSEError):
            await kernel.read(handle)

    now(open_one)


def test_a_manifest_that_cannot_be_packed_is_an_error_and_not_given_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pack() -> Spool:
        raise BackupError("a segment is missing")

    kernel = Kernel(SegmentFiles([disk(size=100)], LastFiles(pack, SECOND)), monkeypatch)

    async def read_one() -> None:
        with pytest.raises(pyfuse3.FUSEError):
            await kernel.read(await kernel.open(LAST[0]))

    async def read_it() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_one)
            while not kernel.files.error:
                await trio.sleep(0.001)
            kernel.files.give_up()

    now(read_it)
    assert str(kernel.files.error) == "a segment is missing"


def test_a_subdirectory_of_holes_is_a_link_to_a_hidden_one(kernel_of: KernelOf) -> None:
    count = 3 * PER_DIRECTORY + 1
    holes = {*range(count)} - {PER_DIRECTORY, count - 1}
    one = disk(size=(count - 1) * SEGMENT + 100, holes=holes)
    kernel = kernel_of(one)

    async def check() -> None:
        top = [name for name, _ in await kernel.list(1 << 32)]
        assert top == [b"0000", b"0001", b"0002", b"0003", b"zeros", b".holes"]
        for name, linked in (("0000", True), ("0001", False), ("0002", True), ("0003", False)):
            inode = await kernel.inode(f"vda/{name}")
            attributes = await kernel.files.getattr(inode)
            assert stat.S_ISLNK(attributes.st_mode) is linked
            assert stat.S_ISDIR(attributes.st_mode) is not linked
            if linked:
                assert await kernel.files.readlink(inode, None) == b".holes"
                assert attributes.st_size == len(".holes")
        hidden = await kernel.list(await kernel.inode("vda/.holes"))
        assert [name for name, _ in hidden] == [b"%03d" % number for number in range(PER_DIRECTORY)]
        for link, inode in hidden:
            assert await kernel.inode(f"vda/.holes/{link.decode()}") == inode
            assert stat.S_ISLNK((await kernel.files.getattr(inode)).st_mode)
            assert await kernel.files.readlink(inode, None) == b"../zeros"
        assert [name for name, _ in await kernel.list(await kernel.inode("vda/0003"))] == [b"000384"]

    now(check)
    assert one.size == 2 * SEGMENT + 100


@pytest.mark.parametrize("name", ["vda/0004", "vda/x", "vda/0001/000127", "vda/0001/x", "vda/.holes/128"])
def test_what_is_not_there_is_not_found(kernel_of: KernelOf, name: str) -> None:
    count = 3 * PER_DIRECTORY + 1
    kernel = kernel_of(disk(size=count * SEGMENT, holes=range(PER_DIRECTORY)))

    async def look_up() -> None:
        with pytest.raises(pyfuse3.FUSEError):
            await kernel.inode(name)

    now(look_up)
