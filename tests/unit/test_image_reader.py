"""backup/image_reader.py: what of a snapshot is allocated, and reads that are under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

import pytest
import rbd

from backup import image_reader
from backup.cluster_errors import ClusterError
from backup.image_reader import ImageReader
from backup.model import Extent, Image, SnapshotId

from .paper_cluster import PaperCluster
from .raising import raises
from .samples import LAYOUT

FLAGS = 48
Arrived = Callable[[Any, Optional[bytes]], None]
Note = Callable[[int, int, bool], None]


class PaperImage:
    """An rbd.Image on paper. Satisfies what ImageReader asks of librbd, and is its own completion."""

    def __init__(self, size: int, allocated: Sequence[tuple[int, int, bool]] = ()) -> None:
        self.bytes = bytes(number % 251 for number in range(size))
        self.allocated = allocated
        self.asked: list[tuple[int, int]] = []  # what was to be listed
        self.compared: list[tuple[str | None, bool]] = []  # with which snapshot, and by whole objects
        self.error: Exception | None = None
        self.result: int | None = None  # other than the number of bytes
        self.lost = 0  # bytes at the end of a read
        self.arrive: Callable[[], None] = lambda: None

    def size(self) -> int:
        return len(self.bytes)

    def diff_iterate(
        self,
        offset: int,
        length: int,
        from_snapshot: Optional[str],
        note: Note,
        include_parent: bool = True,
        whole_object: bool = False,
    ) -> None:
        assert include_parent
        if self.error:
            raise self.error
        self.asked.append((offset, length))
        self.compared.append((from_snapshot, whole_object))
        for start, count, exists in self.allocated:
            if offset <= start < offset + length:
                note(start, count, exists)

    def aio_read(self, offset: int, length: int, arrived: Arrived, flags: int) -> PaperImage:
        assert flags == FLAGS
        if self.error:
            raise self.error
        data = self.bytes[offset : offset + length - self.lost] if self.result is None else None
        self.arrive = lambda: arrived(self, data)
        return self

    def wait_for_complete_and_cb(self) -> None:
        self.arrive()

    def get_return_value(self) -> int:
        return 0 if self.result is None else self.result


def reader_of(image: PaperImage) -> ImageReader:
    return ImageReader(PaperCluster(), Image("vms", "root"), image, LAYOUT, FLAGS, SnapshotId())


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reader, "EXTENT_SLAB", 100)


def test_what_is_allocated_is_listed_in_order_a_slab_at_a_time_to_the_very_end() -> None:
    image = PaperImage(250, [(40, 10, True), (0, 10, True), (20, 5, False), (110, 90, True), (249, 1, True)])
    reader = reader_of(image)
    assert reader.size == 250
    assert [*reader.extents()] == [Extent(0, 10), Extent(40, 10), Extent(110, 90), Extent(249, 1)]
    assert sorted(image.asked) == [(0, 100), (100, 100), (200, 50)]


def test_the_next_two_slabs_and_no_more_are_listed_while_one_is_read() -> None:
    image = PaperImage(450, [(0, 10, True), (110, 10, True)])
    extents = reader_of(image).extents()
    next(extents)
    extents.close()  # waits for the listings that are under way: the image is closed next
    assert sorted(image.asked) == [(0, 100), (100, 100), (200, 100)]


def test_of_a_part_what_is_allocated_is_listed_of_that_part() -> None:
    image = PaperImage(450, [(0, 10, True), (110, 10, True), (250, 10, True)])
    assert [*reader_of(image).extents(Extent(100, 150))] == [Extent(110, 10)]
    assert sorted(image.asked) == [(100, 100), (200, 50)]


@pytest.mark.parametrize("distrusted", ["vms/root@before", "vms/root@head"])
def test_object_maps_that_ceph_distrusts_are_not_asked(distrusted: str) -> None:
    image, cluster = PaperImage(100, [(0, 10, True)]), PaperCluster()
    cluster.distrusted = {distrusted}
    reader = ImageReader(cluster, Image("vms", "root"), image, LAYOUT, FLAGS, SnapshotId())
    assert [*reader.changes("before", fast=True)] == [Extent(0, 10)]
    assert image.compared == [("before", False)]


@pytest.mark.parametrize("fast", [False, True])
def test_changes_are_what_was_written_and_what_was_discarded(fast: bool) -> None:
    image = PaperImage(150, [(110, 5, True), (40, 10, False), (0, 10, True)])
    changes = [*reader_of(image).changes("before", fast)]
    assert changes == [Extent(0, 10), Extent(40, 10), Extent(110, 5)]
    assert image.compared == [("before", fast)] * 2


@pytest.mark.parametrize("size", [0, 100])
def test_an_image_without_data_has_no_extents(size: int) -> None:
    assert [*reader_of(PaperImage(size)).extents()] == []


def test_a_read_gives_exactly_what_was_asked_for_once_it_is_waited_for() -> None:
    image = PaperImage(100)
    wait = reader_of(image).start_read(10, 30)
    assert wait() == image.bytes[10:40]


def test_a_read_that_fails_says_where_and_why() -> None:
    image = PaperImage(100)
    image.result = -110
    wait = reader_of(image).start_read(10, 30)
    with raises("cannot read 30 bytes at 10 of image vms/root: connection timed out", ClusterError):
        wait()


@pytest.mark.parametrize(("lost", "got"), [(1, 29), (30, 0)])
def test_a_read_that_comes_short_is_no_success(lost: int, got: int) -> None:
    image = PaperImage(100)
    image.lost = lost
    with raises(f"cannot read 30 bytes at 10 of image vms/root: got only {got} bytes"):
        reader_of(image).start_read(10, 30)()


def test_a_read_that_succeeds_without_bytes_is_no_success() -> None:
    image = PaperImage(100)
    image.result = 0
    with raises("cannot read 30 bytes at 10 of image vms/root: got only 0 bytes"):
        reader_of(image).start_read(10, 30)()


def test_a_read_that_can_t_begin_and_a_list_that_can_t_be_had_are_errors_of_the_image() -> None:
    image = PaperImage(100)
    image.error = rbd.OSError("broken", errno=5)
    with raises("cannot read 30 bytes at 10 of image vms/root: input/output error", ClusterError):
        reader_of(image).start_read(10, 30)
    with raises("cannot list what is allocated in image vms/root: input/output error", ClusterError):
        [*reader_of(image).extents()]
