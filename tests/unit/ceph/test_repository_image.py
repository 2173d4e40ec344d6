"""backup/ceph/repository_image.py: zeros that are zeros, snapshots that stay, and a limit of the rate."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable

import pytest
import rbd

from backup.ceph.errors import SnapshotInUse
from backup.ceph.repository_image import RepositoryImage, notes_of, snapshots_of
from backup.model import Image
from backup.protocols import WrittenBytes

from ..paper_cluster import PaperCluster
from ..paper_completion import PaperCompletion

MIB = 1 << 20


class PaperImage:
    """A fake rbd.Image with the methods that RepositoryImage uses."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.snapshots: dict[str, bool] = {}  # whether it is protected, by name
        self.busy = False  # a protected snapshot has clones

    def aio_write(self, data: WrittenBytes, offset: int, ended: Callable[[Any], None], _: int) -> Any:
        return self._completed(("write", offset, len(data)), ended)

    def aio_write_zeroes(self, offset: int, length: int, ended: Callable[[Any], None]) -> Any:
        return self._completed(("zeros", offset, length), ended)

    def _completed(self, call: tuple[Any, ...], ended: Callable[[Any], None]) -> PaperCompletion:
        self.calls.append(call)
        completion = PaperCompletion(0, partial(ended, None))
        completion.arrive()
        return completion

    def size(self) -> int:
        return 4 * MIB

    def resize(self, size: int) -> None:
        self.calls.append(("resize", size))

    def id(self) -> str:
        return "1234"

    def create_snap(self, name: str) -> None:
        """As librbd, it succeeds, and changes nothing, if the snapshot is there."""
        self.calls.append(("snapshot", name))
        self.snapshots.setdefault(name, False)

    def is_protected_snap(self, name: str) -> bool:
        if name not in self.snapshots:
            raise rbd.ImageNotFound("gone", errno=2)
        return self.snapshots[name]

    def protect_snap(self, name: str) -> None:
        self.snapshots[name] = True

    def unprotect_snap(self, name: str) -> None:
        if self.busy:
            raise rbd.ImageBusy("busy", errno=16)
        self.snapshots[name] = False

    def remove_snap(self, name: str) -> None:
        assert not self.snapshots[name], "protected"
        self.calls.append(("removed", name))
        del self.snapshots[name]

    def list_snaps(self) -> list[dict[str, Any]]:
        return [
            {"id": 7, "name": "second", "namespace": rbd.RBD_SNAP_NAMESPACE_TYPE_USER},
            {"id": 8, "name": "of a mirror", "namespace": rbd.RBD_SNAP_NAMESPACE_TYPE_MIRROR},
            {"id": 3, "name": "first", "namespace": rbd.RBD_SNAP_NAMESPACE_TYPE_USER},
        ]

    def metadata_list(self) -> list[tuple[str, str]]:
        return [("a", "1")]

    def metadata_remove(self, key: str) -> None:
        raise KeyError(key)


@pytest.fixture
def image() -> PaperImage:
    return PaperImage()


class PaperPool:
    """A fake rados.Ioctx: clients that have an image open read its header anew."""

    def notify(self, name: str) -> None:
        assert name == "rbd_header.1234"


class RepositoryCluster(PaperCluster):
    def pool_of(self, image: Image) -> PaperPool:
        return PaperPool()


def opened(image: PaperImage, rate: int = 0) -> RepositoryImage:
    return RepositoryImage(RepositoryCluster(), Image("backups", "vda"), image, rate)


def test_zeros_are_written_and_not_discarded(image: PaperImage) -> None:
    with opened(image) as written:
        written.start_zeros(MIB, 513)()
    assert image.calls == [("zeros", MIB, 513)]


def test_the_rate_is_limited(image: PaperImage) -> None:
    began = time.monotonic()
    with opened(image, 10 * MIB) as written:
        for _ in range(4):
            written.start_write(0, bytes(MIB))()
    assert 0.25 < time.monotonic() - began < 5


def test_an_image_of_the_right_size_is_not_resized(image: PaperImage) -> None:
    opened(image).resize(4 * MIB)
    opened(image).resize(5 * MIB)
    assert image.calls == [("resize", 5 * MIB)]


def test_a_snapshot_is_protected_and_one_that_was_only_begun_is_made_anew(image: PaperImage) -> None:
    image.snapshots["run"] = True
    opened(image).make_snapshot("run")
    assert image.calls == [("removed", "run"), ("snapshot", "run")]
    assert image.snapshots == {"run": True}
    image.snapshots["run"] = False
    opened(image).protect_snapshot("run")
    assert image.snapshots == {"run": True}


def test_a_snapshot_is_removed_and_one_that_is_gone_is_no_error(image: PaperImage) -> None:
    opened(image).make_snapshot("run")
    opened(image).remove_snapshot("run")
    opened(image).remove_snapshot("run")
    assert image.snapshots == {}


def test_a_snapshot_with_clones_stays(image: PaperImage) -> None:
    opened(image).make_snapshot("run")
    image.busy = True
    with pytest.raises(SnapshotInUse, match="snapshot run of image backups/vda has clones"):
        opened(image).remove_snapshot("run")
    assert image.snapshots == {"run": True}


def test_snapshots_are_those_of_users_oldest_first(image: PaperImage) -> None:
    assert snapshots_of(image) == opened(image).snapshots() == ["first", "second"]


def test_a_note_that_is_gone_is_no_error(image: PaperImage) -> None:
    opened(image).remove_note("a")
    assert notes_of(image) == opened(image).notes() == {"a": "1"}
