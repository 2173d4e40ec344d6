"""Who keeps an image from being changed: another client, a mirror's source, or a cluster that stalls."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import rbd

from backup.ceph import image_lock
from backup.ceph.errors import ClusterError
from backup.ceph.image_lock import owner_named
from backup.model import Image

IMAGE = Image("vms", "root")
OWN = "client.7"
ADDRESS = "192.0.2.1:0/1"


class LockedImage:
    """An open image with its exclusive lock's owner, "" for nobody; one that is alive has the image open."""

    def __init__(self, owner: str, alive: bool = False, primary: bool = True) -> None:
        self.owner = owner
        self.alive = alive
        self.primary = primary
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True

    def features(self) -> int:
        return int(rbd.RBD_FEATURE_EXCLUSIVE_LOCK)

    def list_lockers(self) -> dict[str, Any]:
        locker = (self.owner, "auto 1", ADDRESS)
        return {"tag": "internal", "lockers": [locker]} if self.owner else {}

    def watchers_list(self) -> list[dict[str, str]]:
        return [{"addr": ADDRESS}] if self.alive else []

    def mirror_image_get_info(self) -> dict[str, Any]:
        return {"state": rbd.RBD_MIRROR_IMAGE_ENABLED, "primary": self.primary}

    def refuse(self) -> None:
        with owner_named(IMAGE, self, "cannot resize", "libvirt", OWN, self.give_up):
            raise rbd.ReadOnlyImage("read-only", errno=errno.EROFS)


@pytest.mark.parametrize("owner", ["", OWN])
def test_what_nobody_else_prevents_has_timed_out(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_lock, "PAUSE", 0)
    image = LockedImage(owner, alive=True)
    with pytest.raises(ClusterError) as raised:
        image.refuse()
    assert raised.value.number == errno.ETIMEDOUT
    assert "its lock" not in raised.value.message
    assert image.given_up


@pytest.mark.parametrize(("alive", "number"), [(True, errno.EROFS), (False, errno.EAGAIN)])
def test_another_owner_is_named_and_only_a_dead_one_s_lock_may_be_broken_later(
    alive: bool, number: int
) -> None:
    image = LockedImage("client.8", alive)
    with pytest.raises(ClusterError) as raised:
        image.refuse()
    assert not image.given_up
    assert (raised.value.number, raised.value.transient) == (number, not alive)
    assert f"client.8 at {ADDRESS} has its lock" in raised.value.message


def test_a_mirror_can_t_be_changed_at_any_time() -> None:
    with pytest.raises(rbd.ReadOnlyImage):
        LockedImage("", primary=False).refuse()
    with pytest.raises(ClusterError) as raised:
        LockedImage("client.8", primary=False).refuse()
    assert raised.value.number == errno.EROFS
