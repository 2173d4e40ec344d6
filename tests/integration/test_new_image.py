"""backup/ceph/new_image.py: a restored image has one owner from its making to its naming."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import rados
import rbd

from backup.ceph import image_removal, new_image
from backup.ceph.cluster import Cluster
from backup.ceph.image_renaming import rename_image
from backup.ceph.new_image import REPLACED, RESTORING, NewImage
from backup.errors import BackupError, TransientError
from backup.model import ClusterAddress, Image, Level
from backup.stored import SavedImage
from backup.system.stop_request import StopRequest
from tests.lab import Lab
from tests.lab.sample import MIB
from tests.unit.recorder import Recorder
from tests.unit.samples import LAYOUT

POOL = "ssd"
IMAGE = Image(POOL, "owned-vda")


@pytest.fixture
def cluster(lab: Lab) -> Iterator[Cluster]:
    with Cluster(ClusterAddress(), "", str(lab.ceph_conf), 20) as cluster:
        before = _names(cluster)
        yield cluster
        for name in _names(cluster) - before:
            rbd.RBD().remove(cluster.pool_of(IMAGE), name)


def _names(cluster: Cluster) -> set[str]:
    return set(rbd.RBD().list(cluster.pool_of(IMAGE)))


def _new(
    cluster: Cluster, image: Image = IMAGE, force: bool = False, reporter: Recorder | None = None
) -> NewImage:
    saved = SavedImage("vda", "vms/vda", MIB, 0, 0, 0.0, "", LAYOUT)
    return NewImage(cluster, image, saved, force, reporter or Recorder())


def _fill(target: NewImage, content: bytes) -> None:
    with target.opened(lambda: None) as writer:
        writer.start_write(0, content)()


def _content(cluster: Cluster, image: Image = IMAGE) -> bytes:
    with cluster.opened(image) as opened:
        return bytes(opened.read(0, 5))


def test_an_image_that_waits_for_others_to_be_filled_is_no_leftover(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_image, "REMOVE_LIMIT", 3)
    first, second = _new(cluster), _new(cluster)
    _fill(first, b"first")
    with pytest.raises(TransientError, match="another restore of ssd/owned-vda is running, or was killed"):
        second.require_free()
    first.commit()
    first.remove_replaced()
    first.discard()
    assert _content(cluster) == b"first"


def test_what_a_killed_restore_has_open_is_waited_for(cluster: Cluster) -> None:
    reporter, image = Recorder(), replace(IMAGE, name=f"{IMAGE.name}{RESTORING}")
    rbd.RBD().create(cluster.pool_of(IMAGE), image.name, MIB)
    with ExitStack() as killed:
        killed.enter_context(cluster.opened(image, read_only=False))
        forgotten = threading.Timer(3, killed.pop_all().close)
        forgotten.start()
        _new(cluster, reporter=reporter).require_free()
    forgotten.join()
    assert image.name not in _names(cluster)
    assert [text for _, _, text in reporter.messages if "waiting until Ceph forgets" in text]


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_an_image_that_a_killed_process_has_only_begun_to_create_is_replaced(
    cluster: Cluster, lab: Lab, listed: bool
) -> None:
    """librbd writes its id, its entry in the pool's directory, then its header."""
    image = replace(IMAGE, name=f"{IMAGE.name}{RESTORING}")
    lab.create_image(f"{POOL}/{image.name}", MIB)
    with cluster.opened(image) as opened:
        identity = opened.id()
    pool = cluster.pool_of(image)
    pool.remove_object(f"rbd_header.{identity}")
    if not listed:
        with rados.WriteOpCtx() as forget:
            pool.remove_omap_keys(forget, (f"name_{image.name}", f"id_{identity}"))
            pool.operate_write_op(forget, "rbd_directory")
    target = _new(cluster)
    target.require_free()
    _fill(target, b"whole")
    target.commit()
    target.remove_replaced()
    assert _content(cluster) == b"whole"


def test_who_comes_second_does_not_remove_what_the_first_has_made(cluster: Cluster) -> None:
    first, second = _new(cluster), _new(cluster)
    _fill(first, b"first")
    with pytest.raises(TransientError), second.opened(lambda: None):
        raise AssertionError("the block must not begin")
    second.discard()
    first.commit()
    first.remove_replaced()
    assert _content(cluster) == b"first"
    assert list(cluster.watchers(IMAGE)) == []


def test_an_image_that_was_replaced_under_the_temporary_name_is_neither_named_nor_removed(
    cluster: Cluster,
) -> None:
    first, pool = _new(cluster), cluster.pool_of(IMAGE)
    _fill(first, b"first")
    rbd.RBD().rename(pool, first.filling.name, "owned-aside")
    rbd.RBD().create(pool, first.filling.name, MIB)
    with pytest.raises(BackupError, match="is no longer the image that was filled"):
        first.commit()
    first.discard()
    assert {first.filling.name, "owned-aside"} <= _names(cluster)
    assert IMAGE.name not in _names(cluster)


def test_what_a_dead_client_still_has_open_is_removed_as_soon_as_it_is_forgotten(
    lab: Lab, cluster: Cluster
) -> None:
    target = _new(cluster)
    _fill(target, b"first")
    with Cluster(ClusterAddress(), "", str(lab.ceph_conf), 20) as other:
        opened = other.opened(target.filling, read_only=False)
        began = time.monotonic()
        closing = threading.Timer(2, opened.close)
        closing.start()
        target.discard()
        closing.join()
    assert time.monotonic() - began >= 2
    assert target.filling.name not in _names(cluster)


def test_where_one_of_several_can_not_be_named_all_that_was_there_stays(cluster: Cluster) -> None:
    places = [IMAGE, Image(POOL, "owned-vdb")]
    for place in places:
        rbd.RBD().create(cluster.pool_of(place), place.name, MIB)
        with cluster.opened(place, read_only=False) as old:
            old.write(b"older", 0)
    targets = [_new(cluster, place, force=True) for place in places]
    for target in targets:
        _fill(target, b"newer")
    targets[0].commit()
    assert _content(cluster, places[0]) == b"newer"
    with cluster.opened(places[1], read_only=False), pytest.raises(BackupError, match="is in use"):
        targets[1].commit()
    for target in targets:
        target.discard()
    assert [_content(cluster, place) for place in places] == [b"older", b"older"]
    assert {name for name in _names(cluster) if "owned" in name} == {place.name for place in places}


def test_a_replaced_image_that_cannot_be_removed_is_reported_and_the_new_one_stays(cluster: Cluster) -> None:
    rbd.RBD().create(cluster.pool_of(IMAGE), IMAGE.name, MIB)
    recorder = Recorder()
    target = _new(cluster, force=True, reporter=recorder)
    _fill(target, b"newer")
    target.commit()
    with cluster.opened(Image(POOL, f"{IMAGE.name}{REPLACED}"), read_only=False):
        target.remove_replaced()
    target.discard()
    assert _content(cluster) == b"newer"
    (told,) = recorder.told(Level.WARNING)
    left = f"{IMAGE}{REPLACED}"
    expected = f"{IMAGE} is restored, but {left}, which it replaced, is left: cannot remove image {left}: "
    assert told.startswith(expected)


@pytest.mark.parametrize("in_directory", ["old", "new"])
def test_a_renaming_that_timed_out_half_way_is_completed(cluster: Cluster, in_directory: str) -> None:
    """librbd writes the id under the new name, changes the directory, and removes the id of the old name."""
    pool, to = cluster.pool_of(IMAGE), Image(POOL, "owned-aside")
    rbd.RBD().create(pool, IMAGE.name, MIB)
    with cluster.opened(IMAGE, read_only=False) as opened:
        opened.write(b"first", 0)
    if in_directory == "new":
        rbd.RBD().rename(pool, IMAGE.name, to.name)
    written, other = (IMAGE, to) if in_directory == "old" else (to, IMAGE)
    pool.write_full(f"rbd_id.{other.name}", pool.read(f"rbd_id.{written.name}"))
    with pytest.raises(rbd.ImageExists):
        rbd.RBD().rename(pool, IMAGE.name, to.name)
    rename_image(cluster, IMAGE, to)
    assert _content(cluster, to) == b"first"
    assert {name for name in _names(cluster) if "owned" in name} == {to.name}
    with pytest.raises(rbd.ImageNotFound):
        _content(cluster)


def test_what_is_kept_is_not_undone_and_what_it_replaced_is_there_until_that_is_removed(
    cluster: Cluster,
) -> None:
    rbd.RBD().create(cluster.pool_of(IMAGE), IMAGE.name, MIB)
    with cluster.opened(IMAGE, read_only=False) as old:
        old.write(b"older", 0)
    target = _new(cluster, force=True)
    _fill(target, b"newer")
    target.commit()
    target.keep()
    target.discard()
    replaced = Image(POOL, f"{IMAGE.name}{REPLACED}")
    assert (_content(cluster), _content(cluster, replaced)) == (b"newer", b"older")
    assert list(cluster.watchers(IMAGE)) == []
    _new(cluster, force=True).remove_replaced()  # by another process, perhaps
    assert _content(cluster) == b"newer"
    assert replaced.name not in _names(cluster)


class Insisting(StopRequest):
    """Has got a second signal by the third time that it is asked."""

    asked = 0

    @property
    def signalled_twice(self) -> bool:
        self.asked += 1
        return self.asked >= 3


def test_a_long_removal_that_is_given_up_leaves_what_the_next_restore_removes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_removal, "EMPTIED_AT_A_TIME", 1)
    monkeypatch.setattr(image_removal, "REPORT_INTERVAL", 0)
    saved, recorder = SavedImage("vda", "vms/vda", 40 * MIB, 0, 0, 0.0, "", LAYOUT), Recorder()
    target = NewImage(cluster, IMAGE, saved, False, recorder, Insisting())
    _fill(target, b"first")
    with pytest.raises(BackupError, match=r"is removed only in part, 32\.0 MiB are left"):
        target.discard()
    assert cluster.image_size(target.filling) == 32 * MIB
    assert recorder.told(Level.INFO) == [
        f"removing {target.filling}: 10%",
        f"removing {target.filling}: 20%",
    ]
    NewImage(cluster, IMAGE, saved, False, recorder).require_free()
    assert target.filling.name not in _names(cluster)


def test_the_removal_of_a_large_replaced_image_can_be_interrupted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_removal, "EMPTIED_AT_A_TIME", 1)
    rbd.RBD().create(cluster.pool_of(IMAGE), IMAGE.name, 40 * MIB)
    saved, recorder = SavedImage("vda", "vms/vda", MIB, 0, 0, 0.0, "", LAYOUT), Recorder()
    target = NewImage(cluster, IMAGE, saved, True, recorder, Insisting())
    _fill(target, b"newer")
    target.commit()
    target.remove_replaced()
    (told,) = recorder.told(Level.WARNING)
    assert "is removed only in part, 32.0 MiB are left" in told
    assert _content(cluster) == b"newer"
    assert f"{IMAGE.name}{REPLACED}" not in _names(cluster), (
        "it looks like nothing that could be renamed back"
    )
    NewImage(cluster, IMAGE, saved, True, recorder).require_free()
    assert target.filling.name not in _names(cluster)


def test_the_pool_of_an_image_s_data_is_known_with_its_id(cluster: Cluster, lab: Lab) -> None:
    """Where the data pool is full, the guest's writes wait."""
    lab.rbd("create", str(IMAGE), "--size", "1M", "--data-pool", "vms")
    assert cluster.identified(IMAGE).data_pool == "vms"
    lab.create_image(f"{POOL}/plain-vda", MIB)
    plain = cluster.identified(Image(POOL, "plain-vda"))
    assert (bool(plain.id), plain.data_pool) == (True, "")
