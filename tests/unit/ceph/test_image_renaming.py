"""backup/ceph/image_renaming.py: a renaming that times out costs nothing, wherever it was interrupted."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import rados
import rbd

from backup.ceph.cluster import Cluster
from backup.ceph.errors import ClusterError, ImageGone
from backup.ceph.image_renaming import rename_image
from backup.ceph.new_image import NewImage, replaced_by, undo_replacement
from backup.ceph.retry import CephRetry
from backup.model import Image
from backup.stored import SavedImage

from ..recorder import Recorder
from ..samples import LAYOUT, MIB

IMAGE = Image("vms", "vda")
SAVED = SavedImage("vda", "vms/vda", MIB, 0, 0, 0.0, "", LAYOUT)
STEPS = 3  # of a renaming


class PaperImages(Cluster):
    """A pool's images, by librbd's objects. One step of all renamings times out, `done` or not."""

    def __init__(self, limit: float, times_out: int, done: bool, **ids: str) -> None:
        self.user, self.timeout, self.retry = "admin", 0, CephRetry(limit)
        self._given_up = False
        self.ids = dict(ids)  # the objects rbd_id.NAME
        self.directory = {identity: name for name, identity in ids.items()}
        self.times_out, self.done = times_out, done
        self.steps = 0

    def pool_of(self, image: Image) -> Any:
        return self

    @contextmanager
    def opened(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Iterator[Any]:
        if image.name not in self.ids:
            raise rbd.ImageNotFound("not found", errno=errno.ENOENT)
        yield PaperImage(self.ids[image.name])

    def image_size(self, image: Image) -> int:
        if image.name not in self.ids:
            raise ImageGone("gone", number=errno.ENOENT)
        return MIB

    def identified(self, image: Image) -> Image:
        raise ImageGone("gone, so that it is not emptied step by step", number=errno.ENOENT)

    def watchers(self, image: Image) -> Sequence[str]:
        return ()

    def snapshot_names(self, image: Image) -> list[str]:
        return []

    def remove_object(self, key: str) -> None:
        if self.ids.pop(key[len("rbd_id.") :], None) is None:
            raise rados.ObjectNotFound("not found", errno=errno.ENOENT)

    def rename(self, _pool: object, name: str, to: str) -> None:
        if name not in self.ids:
            raise rbd.ImageNotFound("not found", errno=errno.ENOENT)
        if to in self.ids:
            raise rbd.ImageExists("exists", errno=errno.EEXIST)
        identity = self.ids[name]
        for step in (
            lambda: self.ids.update({to: identity}),
            lambda: self.directory.update({identity: to}),
            lambda: self.ids.pop(name),
        ):
            self.steps += 1
            if self.steps != self.times_out:
                step()
                continue
            if self.done:
                step()
            raise rbd.OSError("timed out", errno=errno.ETIMEDOUT)

    def remove(self, _pool: object, name: str, on_progress: object) -> None:
        if name not in self.ids:
            raise rbd.ImageNotFound("not found", errno=errno.ENOENT)
        del self.directory[self.ids.pop(name)]

    def list2(self, _pool: object) -> Iterator[dict[str, str]]:
        return iter([{"id": identity, "name": name} for identity, name in self.directory.items()])


class PaperImage:
    def __init__(self, identity: str) -> None:
        self._id = identity

    def id(self) -> str:
        return self._id

    def old_format(self) -> bool:
        return not self._id

    def close(self) -> None:
        pass


def _images(
    monkeypatch: pytest.MonkeyPatch, limit: float, times_out: int, done: bool, **ids: str
) -> PaperImages:
    images = PaperImages(limit, times_out, done, **ids)
    monkeypatch.setattr(rbd, "RBD", lambda: images)
    return images


def _filled(images: PaperImages) -> NewImage:
    """Return a restored image that has its temporary name only, as after `opened`."""
    new = NewImage(images, IMAGE, SAVED, True, Recorder())
    images.ids[new.filling.name] = new._id = "new"
    images.directory["new"] = new.filling.name
    new._opened = PaperImage("new")
    new._undo.callback(new._remove_own)
    return new


def _require(images: PaperImages, **ids: str) -> None:
    assert images.ids == ids
    assert images.directory == {identity: name for name, identity in ids.items()}


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("step", range(1, 2 * STEPS + 1))
def test_a_timeout_at_any_step_of_a_replacement_is_retried(
    step: int, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(monkeypatch, 900, step, done, vda="old")
    new = _filled(images)
    new.commit()
    _require(images, **{IMAGE.name: "new", replaced_by(IMAGE).name: "old"})
    new.remove_replaced()
    _require(images, vda="new")


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("step", range(1, 2 * STEPS + 1))
def test_a_timeout_that_is_not_retried_leaves_what_was_there(
    step: int, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(monkeypatch, 0, step, done, vda="old")
    new = _filled(images)
    with pytest.raises(ClusterError, match="timed out"):
        new.commit()
    new.discard()
    _require(images, vda="old")


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_what_a_killed_process_has_begun_to_replace_gets_its_name_again(
    step: int, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(monkeypatch, 0, step, done, vda="old")
    with suppress(ClusterError):
        rename_image(images, IMAGE, replaced_by(IMAGE))
    undo_replacement(images, IMAGE)
    _require(images, vda="old")


def test_another_image_of_the_new_name_is_never_taken_for_the_renamed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = _images(monkeypatch, 900, 0, False, vda="old", aside="other")
    with pytest.raises(ClusterError) as raised:
        rename_image(images, IMAGE, Image("vms", "aside"))
    assert raised.value.number == errno.EEXIST
    _require(images, vda="old", aside="other")


def test_an_image_that_is_gone_has_not_been_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images(monkeypatch, 900, 0, False, aside="other")
    with pytest.raises(ImageGone):
        rename_image(images, IMAGE, Image("vms", "aside"))
    undo_replacement(images, IMAGE)
    _require(images, aside="other")


def test_an_image_of_the_old_format_is_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images(monkeypatch, 900, STEPS, True, vda="")
    rename_image(images, IMAGE, Image("vms", "aside"))
    assert images.ids == {"aside": ""}
