"""backup/ceph/image_reader.py: listing extents, and reads in flight."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable, Optional

import pytest
import rbd

from backup.ceph import snapshot_listing
from backup.ceph.errors import ClusterError
from backup.ceph.image_reader import ImageReader
from backup.ceph.retry import CephRetry
from backup.ceph.snapshot_listing import LISTINGS
from backup.errors import BackupError
from backup.model import Extent, Image, Level
from backup.stored import SnapshotId
from backup.system.stop_request import StopRequest
from backup.transfer import backup_stream
from backup.transfer.backup_stream import WINDOW_READS, pieces

from ..paper_cluster import PaperCluster
from ..paper_completion import PaperCompletion
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT
from ..waiting import wait_until

FLAGS = 48
Arrived = Callable[[Any, Optional[bytes]], None]
Note = Callable[[int, int, bool], None]


class PaperImage:
    """A fake rbd.Image with the methods that ImageReader uses."""

    def __init__(self, size: int, allocated: Sequence[tuple[int, int, bool]] = ()) -> None:
        self.bytes = bytes(number % 251 for number in range(size))
        self.allocated = allocated
        self.objects: Sequence[tuple[int, int]] = ()  # that the object map has
        self.asked: list[tuple[int, int]] = []  # ranges that were listed
        self.compared: list[tuple[str | None, bool]] = []  # the older snapshot, and whether by whole objects
        self.error: Exception | None = None
        self.result: int | None = None  # of a read, instead of the number of bytes
        self.lost = 0  # bytes that are missing at the end of a read
        self.silent = False  # reads do not complete by themselves
        self.completions: list[PaperCompletion] = []
        self.times_out = 0  # number of the next operations that time out
        self.go_on = threading.Event()  # lets a waiting listing continue
        self.go_on.set()
        self.slow_from = 0  # offset from which listings wait
        self.listing = 0  # listings that are running

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
        self.listing += 1
        assert offset < self.slow_from or self.go_on.wait(timeout=5)
        self.listing -= 1
        self.asked.append((offset, length))
        if self.times_out:
            self.times_out -= 1
            raise rbd.OSError("timed out", errno=110)
        self.compared.append((from_snapshot, whole_object))
        if whole_object and from_snapshot is None:
            for begin, size in self.objects:
                note(begin, size, True)
            return
        for start, count, exists in self.allocated:
            if offset <= start < offset + length:
                note(start, count, exists)

    def aio_read(self, offset: int, length: int, arrived: Arrived, flags: int) -> PaperCompletion:
        assert flags == FLAGS
        if self.error:
            raise self.error
        result, self.times_out = (-110, self.times_out - 1) if self.times_out else (self.result, 0)
        data = self.bytes[offset : offset + length - self.lost] if result is None else None
        completion = PaperCompletion(0 if result is None else result, partial(arrived, None, data))
        self.completions.append(completion)
        if not self.silent:
            completion.arrive()
        return completion


def reader_of(image: PaperImage, retry: CephRetry | None = None) -> ImageReader:
    """Give a reader that cannot use object maps."""
    cluster = PaperCluster()
    cluster.distrusted = {"vms/root@head"}
    cluster.retry = (retry or CephRetry()).of_connection(60)
    return ImageReader(cluster, Image("vms", "root"), image, LAYOUT, FLAGS, SnapshotId())


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_listing, "EXTENT_SLAB", 100)
    monkeypatch.setattr(snapshot_listing, "GAP", 20)


def test_extents_are_listed_in_order_slab_by_slab_up_to_the_end_of_the_image() -> None:
    image = PaperImage(250, [(40, 10, True), (0, 10, True), (20, 5, False), (110, 90, True), (249, 1, True)])
    reader = reader_of(image)
    assert reader.size == 250
    assert [*reader.extents()] == [
        *(Extent(0, 10), Extent(40, 10), Extent(100, 0)),  # empty: marks how far the listing has come
        *(Extent(110, 90), Extent(200, 0), Extent(249, 1)),
    ]
    assert sorted(image.asked) == [(0, 100), (100, 100), (200, 50)]


def test_only_the_next_two_slabs_are_listed_while_one_is_read() -> None:
    image = PaperImage(450, [(0, 10, True), (110, 10, True)])
    with reader_of(image) as reader:
        listing = reader.extents()
        next(listing)
        wait_until(lambda: len(image.asked) > LISTINGS, 5, "the next slab is listed")
    assert sorted(image.asked) == [(0, 100), (100, 100), (200, 100)]


def test_the_extents_of_a_part_of_the_image_are_listed_for_that_part_only() -> None:
    image = PaperImage(450, [(0, 10, True), (110, 10, True), (250, 10, True)])
    assert [*reader_of(image).extents(Extent(100, 150))] == [Extent(110, 10), Extent(200, 0)]
    assert sorted(image.asked) == [(100, 100), (200, 50)]


@pytest.mark.parametrize("invalid", ["vms/root@before", "vms/root@head"])
def test_object_maps_that_ceph_marks_as_invalid_are_not_used(invalid: str) -> None:
    image, cluster = PaperImage(100, [(0, 10, True)]), PaperCluster()
    cluster.distrusted = {invalid}
    reader = ImageReader(cluster, Image("vms", "root"), image, LAYOUT, FLAGS, SnapshotId())
    assert [*reader.changes("before", fast=True)] == [Extent(0, 10)]
    assert image.compared == [("before", False)]


def test_changes_include_written_and_discarded_extents() -> None:
    image = PaperImage(150, [(110, 5, True), (40, 10, False), (0, 10, True)])
    changes = [*reader_of(image).changes("before", fast=False)]
    assert changes == [Extent(0, 10), Extent(40, 10), Extent(100, 0), Extent(110, 5)]
    assert image.compared == [("before", False)] * 2


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
def test_no_list_of_changes_is_complete_if_the_older_snapshot_was_removed_meanwhile(fast: bool) -> None:
    """Of an object that only that had librbd lists no change then."""
    image, older = PaperImage(150, [(0, 10, True), (110, 5, True)]), PaperImage(150)
    image.objects = [(0, 150)]
    with mapped(image, older) as reader:
        listed = reader.changes("before", fast)
        assert next(listed) == Extent(0, 10)
        older.error = rbd.ImageNotFound("no such snapshot", errno=errno.ENOENT)
        with raises("snapshot before of image vms/root was removed while changes were listed"):
            list(listed)


class MappedCluster(PaperCluster):
    """Has valid object maps: of this snapshot and of an older one, in a snapshot of another size."""

    def __init__(self, older: PaperImage) -> None:
        super().__init__()
        self.older = older

    @contextmanager
    def opened(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Iterator[Any]:
        if snapshot == "before" and self.older.error:
            raise self.older.error
        yield self.older if snapshot == "before" else "head"


def mapped(image: PaperImage, older: PaperImage | None = None) -> ImageReader:
    cluster = MappedCluster(older or PaperImage(0))
    return ImageReader(cluster, Image("vms", "root"), image, LAYOUT, FLAGS, SnapshotId())


def test_changes_of_whole_objects_take_one_call() -> None:
    image = PaperImage(150, [(110, 5, True), (40, 10, False), (0, 10, True)])
    assert [*mapped(image).changes("before", fast=True)] == [Extent(0, 10), Extent(40, 10), Extent(110, 5)]
    assert image.compared == [("before", True)]


def test_only_where_the_object_map_has_objects_extents_are_listed() -> None:
    image = PaperImage(1000, [(405, 3, True), (425, 5, True), (990, 10, True)])
    image.objects = [(400, 10), (420, 10), (980, 20)]
    found = [one for one in mapped(image).extents() if one.length]
    assert found == [Extent(405, 3), Extent(425, 5), Extent(990, 10)]
    assert sorted(image.asked) == [(0, 1000), (400, 30), (980, 20)]  # a gap of 10 costs less than a call


def test_a_map_with_millions_of_objects_here_and_there_takes_no_memory() -> None:
    image = PaperImage(1_000_000, [])
    image.objects = [(begin, 10) for begin in range(0, 1_000_000, 20)]
    found = snapshot_listing._listed(image, Extent(0, image.size()), None, whole_objects=True, gap=20)
    assert found == [Extent(0, 999_990)]


def test_changes_are_listed_where_either_object_map_has_objects() -> None:
    image = PaperImage(1000, [(105, 3, True), (405, 3, False)])
    older = PaperImage(1200)
    image.objects, older.objects = [(100, 10)], [(400, 10), (1100, 10)]
    found = [one for one in mapped(image, older).changes("before", fast=False) if one.length]
    assert found == [Extent(105, 3), Extent(405, 3)]
    assert sorted(image.asked) == [(0, 1000), (100, 10), (400, 10)]
    assert image.compared == [(None, True), ("before", False), ("before", False)]
    assert older.compared == [(None, True)]


def test_a_large_run_of_objects_is_listed_in_slabs() -> None:
    image = PaperImage(1000)
    image.objects = [(start, 10) for start in range(500, 750, 10)]
    assert [*mapped(image).extents()] == [Extent(600, 0), Extent(700, 0)]
    assert sorted(image.asked) == [(0, 1000), (500, 100), (600, 100), (700, 50)]


def test_a_small_part_is_listed_without_the_object_map() -> None:
    image = PaperImage(1000, [(110, 10, True)])
    assert [*mapped(image).extents(Extent(100, 100))] == [Extent(110, 10)]
    assert image.compared == [(None, False)]


@pytest.mark.parametrize("size", [0, 100])
def test_an_image_without_data_has_no_extents(size: int) -> None:
    assert [*reader_of(PaperImage(size)).extents()] == []


def test_a_read_returns_exactly_the_requested_bytes() -> None:
    image = PaperImage(100)
    wait = reader_of(image).start_read(10, 30)
    assert wait() == image.bytes[10:40]


def test_a_failed_read_reports_its_place_and_the_reason() -> None:
    image = PaperImage(100)
    image.result = -110
    wait = reader_of(image).start_read(10, 30)
    with raises("cannot read 30 bytes at 10 of image vms/root: connection timed out", ClusterError):
        wait()


@pytest.mark.parametrize(("lost", "got"), [(1, 29), (30, 0)])
def test_a_short_read_is_an_error(lost: int, got: int) -> None:
    image = PaperImage(100)
    image.lost = lost
    with raises(f"cannot read 30 bytes at 10 of image vms/root: got only {got} bytes"):
        reader_of(image).start_read(10, 30)()


def test_a_read_without_bytes_is_an_error() -> None:
    image = PaperImage(100)
    image.result = 0
    with raises("cannot read 30 bytes at 10 of image vms/root: got only 0 bytes"):
        reader_of(image).start_read(10, 30)()


def test_a_read_that_cannot_start_and_a_listing_that_fails_are_errors_of_the_image() -> None:
    image = PaperImage(100)
    image.error = rbd.OSError("broken", errno=5)
    with raises("cannot read 30 bytes at 10 of image vms/root: input/output error", ClusterError):
        reader_of(image).start_read(10, 30)
    with raises("cannot list the extents of image vms/root: input/output error", ClusterError):
        [*reader_of(image).extents()]


def retrying(stop: StopRequest, recorder: Recorder, limit: float = 900) -> CephRetry:
    return CephRetry(limit, stop.check, lambda level, text: recorder.message(level, "web", text))


def test_a_read_that_timed_out_is_issued_again_for_the_same_range(recorder: Recorder) -> None:
    image = PaperImage(100)
    reader = reader_of(image, retrying(StopRequest(), recorder))
    image.times_out = 2
    assert reader.start_read(10, 30)() == image.bytes[10:40]
    assert len(image.completions) == 3
    assert recorder.told(Level.INFO) == ["the cluster answers again, after 60 s"]


def test_a_slab_whose_listing_timed_out_is_listed_again_and_nothing_is_listed_twice(
    recorder: Recorder,
) -> None:
    image = PaperImage(250, [(0, 10, True), (110, 10, True), (240, 10, True)])
    reader = reader_of(image, retrying(StopRequest(), recorder))
    image.times_out = 3
    found = [extent for extent in reader.extents() if extent.length]
    assert found == [Extent(0, 10), Extent(110, 10), Extent(240, 10)]


def test_a_stop_ends_the_wait_for_a_read_and_the_read_ends_before_the_image_is_closed(
    recorder: Recorder,
) -> None:
    stop, image = StopRequest(), PaperImage(100)
    image.silent = True
    with ThreadPoolExecutor(1) as threads:
        with raises("interrupted"), reader_of(image, retrying(stop, recorder)) as reader:
            wait = reader.start_read(10, 30)
            stop.request(BackupError("interrupted"))
            (completion,) = image.completions
            threads.submit(_arrive_later, completion, reader)
            wait()
        assert completion.settled, "librbd must not complete a read after the image was closed"


def test_reads_that_time_out_while_the_image_is_closed_spare_a_stopping_job_further_timeouts(
    recorder: Recorder,
) -> None:
    stop, image = StopRequest(), PaperImage(100)
    image.silent, image.times_out = True, 1
    with reader_of(image, retrying(stop, recorder)) as reader:
        reader.start_read(10, 30)
        stop.request(BackupError("interrupted"))
        image.completions[0].arrive()
    assert reader._cluster.retry.gives_up


def test_a_stop_takes_effect_at_once_with_any_number_of_reads_in_flight(recorder: Recorder) -> None:
    stop, image = StopRequest(), PaperImage(100)
    image.silent = True
    with reader_of(image, retrying(stop, recorder)) as reader:
        waits = [reader.start_read(0, 1) for _ in range(WINDOW_READS)]
        stop.request(BackupError("interrupted"))
        began = time.monotonic()
        for wait in waits:
            with raises("interrupted"):
                wait()
        assert time.monotonic() - began < 20
        for completion in image.completions:
            completion.arrive()


def _arrive_later(completion: PaperCompletion, reader: ImageReader) -> None:
    """Complete the read when the reader is being closed."""
    wait_until(lambda: reader._closed, 5, "the reader is being closed")
    completion.arrive()


@pytest.mark.parametrize("changes", [True, False], ids=["changes", "extents"])
def test_a_stop_ends_the_wait_for_a_listing_and_the_listing_ends_before_the_image_is_closed(
    recorder: Recorder, changes: bool
) -> None:
    stop, image = StopRequest(), PaperImage(1000)
    image.go_on.clear()
    with raises("interrupted"), reader_of(image, retrying(stop, recorder)) as reader:
        listed = reader.changes("before", fast=False) if changes else reader.extents()
        threading.Thread(target=_stop_while_listing, args=(stop, image)).start()
        try:
            next(listed)
        finally:
            assert image.listing
            image.go_on.set()
    assert not image.listing
    assert len(image.asked) <= LISTINGS, "listings that had not begun never begin"


def _stop_while_listing(stop: StopRequest, image: PaperImage) -> None:
    wait_until(lambda: image.listing == LISTINGS, 5, "it lists")
    stop.request(BackupError("interrupted"))


def test_listings_end_before_the_image_is_closed_when_a_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_stream, "READ_SIZE", 100)  # as large as what is listed at a time
    image = PaperImage(1000, [(0, 10, True)])
    image.result, image.slow_from = -5, 100
    image.go_on.clear()
    reader = reader_of(image)
    threading.Thread(target=_list_on, args=(reader, image)).start()
    with pytest.raises(ClusterError), reader:
        [*pieces(reader)]
    # the error is still referenced, and through its traceback the generators
    assert not image.listing
    assert 2 <= len(image.asked) <= 1 + LISTINGS


def _list_on(reader: ImageReader, image: PaperImage) -> None:
    """Let the listing continue when the reader is being closed."""
    wait_until(lambda: reader._closed, 5, "the reader is being closed")
    assert image.listing
    image.go_on.set()


def test_a_stalled_listing_is_not_retried_once_the_image_is_closed(recorder: Recorder) -> None:
    image = PaperImage(1000)
    with reader_of(image, retrying(StopRequest(), recorder)) as reader:
        image.times_out = 10**9
        listing = reader.extents()
        threading.Thread(target=suppressed, args=(listing,), daemon=True).start()
        wait_until(lambda: len(image.asked) > 4, 5, "it is being retried")


def suppressed(listing: Iterator[Extent]) -> None:
    with suppress(BackupError):
        next(listing)
