"""backup/ceph: full pools, and owners of locks that keep snapshots from being made or removed."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import rbd

from backup.ceph.connection import Connection
from backup.ceph.errors import ClusterError, PoolFull, failure
from backup.ceph.image_lock import owners, remover, require_unlocked
from backup.model import Image

from ..raising import raises

IMAGE = Image("vms", "root")
DEFAULT = rbd.RBD_FEATURE_EXCLUSIVE_LOCK | rbd.RBD_FEATURE_FAST_DIFF


class PaperMonitors(Connection):
    """Knows the flags of one pool."""

    def __init__(self, flags: str) -> None:
        self._flags = flags

    def ask(self, command: str, **arguments: str) -> Any:
        return [{"pool_name": "vms", "flags_names": self._flags}]


class PaperLocked:
    """A fake rbd.Image with a lock, whose owner has it open or not."""

    def __init__(self, tag: str, cookie: str, alive: bool, features: int = DEFAULT) -> None:
        self._locks = {"tag": tag, "exclusive": True, "lockers": [("client.7", cookie, "192.0.2.1:0/9")]}
        self._alive = alive
        self._features = features

    def features(self) -> int:
        return self._features

    def list_lockers(self) -> dict[str, Any]:
        return self._locks

    def watchers_list(self) -> list[dict[str, Any]]:
        return [{"addr": "192.0.2.1:0/9"}] if self._alive else []


def test_a_pool_with_room_is_not_full() -> None:
    PaperMonitors("hashpspool,nearfull").require_not_full("vms")


def test_a_full_pool_is_told_from_one_whose_quota_is_reached() -> None:
    with raises("pool vms is full", PoolFull) as caught:
        PaperMonitors("hashpspool,full").require_not_full("vms")
    assert "set-full-ratio" in caught.value.hint
    with raises("pool vms is full: its quota is reached", PoolFull) as caught:
        PaperMonitors("hashpspool,full,full_quota").require_not_full("vms")
    assert "get-quota vms" in caught.value.hint


@pytest.mark.parametrize(("tag", "cookie"), [("", "theirs"), ("internal", "theirs"), ("theirs", "auto 1")])
def test_a_lock_that_librbd_does_not_manage_is_refused_with_its_owner(tag: str, cookie: str) -> None:
    with raises(f"image vms/root is locked by client.7 at 192.0.2.1:0/9 ({cookie})") as caught:
        require_unlocked(IMAGE, PaperLocked(tag, cookie, alive=False))
    assert caught.value.hint.endswith(f"rbd lock rm vms/root '{cookie}' client.7")


def test_a_lock_is_only_advice_for_an_image_without_exclusive_lock() -> None:
    require_unlocked(IMAGE, PaperLocked("", "theirs", alive=False, features=0))


@pytest.mark.parametrize("alive", [True, False])
def test_the_lock_of_a_qemu_is_no_obstacle_and_a_living_one_removes_snapshots_in_our_place(
    alive: bool,
) -> None:
    locked = PaperLocked("internal", "auto 94", alive)
    require_unlocked(IMAGE, locked)
    assert [one.alive for one in owners(locked)] == [alive]
    assert bool(remover(locked)) == alive


def test_without_fast_diff_nobody_else_removes_snapshots() -> None:
    locked = PaperLocked("internal", "auto 94", alive=True, features=rbd.RBD_FEATURE_EXCLUSIVE_LOCK)
    assert remover(locked) is None


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "ceph health detail"),
        (errno.EDQUOT, "ceph osd pool get-quota vms"),
        (errno.EROFS, "rbd lock ls vms/root"),
        (errno.ESHUTDOWN, "ceph osd blocklist ls"),
    ],
)
def test_whatever_keeps_us_from_an_image_has_a_hint(number: int, hint: str) -> None:
    error = failure("cannot create snapshot of", IMAGE, number, "", "libvirt", 60)
    assert isinstance(error, ClusterError)
    assert hint in error.hint


def test_a_client_that_was_blocklisted_is_retried() -> None:
    assert failure("cannot open", IMAGE, errno.ESHUTDOWN, "", "libvirt", 60).transient
    assert not failure("cannot open", IMAGE, errno.ENOSPC, "", "libvirt", 60).transient
