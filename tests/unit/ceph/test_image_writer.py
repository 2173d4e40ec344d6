"""backup/ceph/image_writer.py: writes in flight, and retries of those that time out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Callable

import pytest

from backup.ceph.errors import ClusterError
from backup.ceph.image_writer import ImageWriter
from backup.ceph.retry import CephRetry
from backup.errors import BackupError
from backup.model import Image
from backup.protocols import WrittenBytes
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster
from ..paper_completion import PaperCompletion
from ..raising import raises

FLAGS = 40


class PaperImage:
    """A fake rbd.Image with the methods that ImageWriter uses."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.under_way: list[PaperCompletion] = []
        self.results: list[int] = []  # of the next writes; later ones succeed
        self.silent = False

    def size(self) -> int:
        return 1 << 20

    def aio_write(
        self, data: WrittenBytes, offset: int, ended: Callable[[Any], None], flags: int
    ) -> PaperCompletion:
        assert flags == FLAGS
        result = self.results.pop(0) if self.results else 0
        if not result:
            self.written.append((offset, bytes(data)))
        write = PaperCompletion(result, partial(ended, None))
        self.under_way.append(write)
        if not self.silent:
            write.arrive()
        return write


class RefusingCluster(PaperCluster):
    """One that refuses this client an image's lock; counts how often what may be its own is given up."""

    given_up = 0

    def give_up_own_lock(self, image: Image, opened: Any) -> None:
        self.given_up += 1


def writer_to(
    image: PaperImage, retry: CephRetry | None = None, cluster: PaperCluster | None = None
) -> ImageWriter:
    cluster = cluster or RefusingCluster()
    cluster.retry = retry or CephRetry()
    return ImageWriter(cluster, Image("vms", "new"), image, FLAGS)


@pytest.mark.parametrize(
    "number", [110, 30, 17, 22], ids=["no answer", "no lock in time", "has it", "had it"]
)
def test_a_write_that_timed_out_is_retried_with_the_same_bytes(number: int) -> None:
    image = PaperImage()
    image.results = [-number, -number]
    with writer_to(image, CephRetry(900)) as writer:
        writer.start_write(4096, bytearray(b"bytes"))()
    assert image.written == [(4096, b"bytes")]
    assert len(image.under_way) == 3


def test_a_lock_of_our_own_is_given_up_unless_another_write_may_have_just_taken_it() -> None:
    image, cluster = PaperImage(), RefusingCluster()
    with writer_to(image, CephRetry(900), cluster) as writer:
        image.results = [-30]
        refused = writer.start_write(0, b"first")
        image.silent = True
        other = writer.start_write(4096, b"second")
        image.silent = False
        refused()
        assert cluster.given_up == 0
        image.under_way[1].arrive()
        other()
        image.results = [-30]
        writer.start_write(8192, b"third")()
    assert cluster.given_up == 1
    assert [offset for offset, _ in sorted(image.written)] == [0, 4096, 8192]


def test_writes_that_were_refused_together_have_our_lock_given_up_once() -> None:
    """The second one's refusal is old: the repeated first one has the lock by then."""
    image, cluster = PaperImage(), RefusingCluster()
    image.results = [-30, -30]
    with writer_to(image, CephRetry(900), cluster) as writer:
        waits = [writer.start_write(offset, b"bytes") for offset in (0, 4096)]
        for wait in waits:
            wait()
    assert cluster.given_up == 1
    assert image.written == [(0, b"bytes"), (4096, b"bytes")]


def test_a_write_beyond_the_end_of_an_image_that_somebody_shrinks_is_no_matter_of_the_lock() -> None:
    image, cluster = PaperImage(), RefusingCluster()
    image.results = [-22]
    with writer_to(image, CephRetry(900), cluster) as writer:
        wait = writer.start_write(image.size(), b"bytes")
        message = f"cannot write 5 bytes at {image.size()} of image vms/new: invalid argument"
        with raises(message, ClusterError):
            wait()
    assert cluster.given_up == 0


@pytest.mark.parametrize(
    ("result", "text"), [(-110, "connection timed out"), (-28, "no space left on device")]
)
def test_a_failed_write_reports_its_place_and_the_reason(result: int, text: str) -> None:
    image = PaperImage()
    image.results = [result]
    with writer_to(image) as writer:
        wait = writer.start_write(4096, b"bytes")
        with raises(f"cannot write 5 bytes at 4096 of image vms/new: {text}", ClusterError):
            wait()


def test_a_stop_ends_the_wait_for_a_write_and_the_write_ends_before_the_image_is_closed() -> None:
    stop, image = StopRequest(), PaperImage()
    image.silent = True
    stop.request(BackupError("interrupted"))
    writing = writer_to(image, CephRetry(900, stop.check))
    with ThreadPoolExecutor(1) as threads, raises("interrupted"), writing as writer:
        wait = writer.start_write(0, b"bytes")
        try:
            wait()
        finally:
            (write,) = image.under_way
            assert not write.settled
            threads.submit(write.arrive)
    assert write.settled
