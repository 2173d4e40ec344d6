"""Finds who owns the lock of an image, without which no snapshot of it can be made or removed."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable

import rados
import rbd

from ..model import Image
from .errors import ClusterError
from .lock_request import holders, lock_info_request

LOCK_NAME = "rbd_lock"  # RBD_LOCK_NAME, of an image's header
MANAGED_TAG = "internal"  # of locks that librbd takes and gives up by itself (librbd/managed_lock/Utils.cc)
MANAGED_COOKIE = "auto "
# What librbd 16.2 makes of a lock that a write cannot take in time, or can never take, as it has the lock
# already and was not told (see give_up_own_lock): with the watch that it has now, or with an earlier one.
LOCK_REFUSED = (errno.EROFS, errno.EEXIST, errno.EINVAL)
PAUSE = 0.5  # seconds, at least between two attempts to take a lock that fail at once


@dataclass(frozen=True)
class Owner:
    """The owner of an image's lock: its client and address, and how the lock was taken."""

    client: str
    cookie: str
    address: str
    managed: bool  # by librbd, which gives it up on request
    alive: bool  # it has the image open

    def __str__(self) -> str:
        return f"{self.client} at {self.address}"


def owners(opened: Any) -> Sequence[Owner]:
    """Return the owners of an open image's lock, as far as librbd has to have that lock itself."""
    if not opened.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
        return []  # then the lock is advice only
    found = opened.list_lockers()
    if not found:
        return []
    alive = {one["addr"] for one in opened.watchers_list()}
    return [
        Owner(
            client,
            cookie,
            address,
            managed=found["tag"] == MANAGED_TAG and cookie.startswith(MANAGED_COOKIE),
            alive=address in alive,
        )
        for client, cookie, address in found["lockers"]
    ]


def remover(opened: Any) -> Owner | None:
    """Return who has to remove an open image's snapshots in our place (librbd/Operations.cc, snap_remove)."""
    if not opened.features() & (rbd.RBD_FEATURE_FAST_DIFF | rbd.RBD_FEATURE_JOURNALING):
        return None
    return next((one for one in owners(opened) if one.alive), None)


def is_mirror(opened: Any) -> bool:
    """Return whether an open image is a mirror that is not primary: no client can change it."""
    mirror = opened.mirror_image_get_info()
    return mirror["state"] == rbd.RBD_MIRROR_IMAGE_ENABLED and not mirror["primary"]


@contextmanager
def owner_named(
    image: Image, opened: Any, action: str, user: str, own: str, give_up: Callable[[], None]
) -> Iterator[None]:
    """Name the owner of an open image's lock if it keeps the block from changing the image.

    Nobody else than `own`, which is this client, has it where the cluster did not answer in time: librbd 16.2
    makes an EROFS of that, too, again and again at once. That is raised as a timeout, after `give_up`, which
    calls `give_up_own_lock`. A dead owner may be there as its lock could not be broken in time: that is
    transient.
    """
    try:
        yield
    except rbd.ReadOnlyImage as error:
        others = [one for one in owners(opened) if one.client != own]
        if not others and is_mirror(opened):
            raise
        if not others:
            give_up()
            time.sleep(PAUSE)
            message = f"{action} image {image}: the image's lock could not be taken in time"
            raise ClusterError(message, f"rbd status {image}; ceph status", errno.ETIMEDOUT) from error
        hint = (
            f"is it stopped? see rbd status {image}, rbd lock ls {image}. If it is dead, client.{user} may "
            f"not blocklist it: ceph auth caps client.{user} mon 'profile rbd' ..., or rbd lock rm"
        )
        found = " and ".join(map(str, others))
        message = f"{action} image {image}: {found} has its lock, and does not give it up"
        lasts = any(one.alive for one in others) or is_mirror(opened)
        number = errno.EROFS if lasts else errno.EAGAIN
        raise ClusterError(message, hint, number) from error


@contextmanager
def refused_as_changes_are() -> Iterator[None]:
    """Raise what a flush or a write makes of a refused lock (LOCK_REFUSED) as ReadOnlyImage."""
    try:
        yield
    except (rbd.ImageExists, rbd.InvalidArgument) as error:
        raise rbd.ReadOnlyImage(str(error), errno=errno.EROFS) from error


def give_up_own_lock(pool: Any, opened: Any, own: str) -> None:
    """Remove an open image's lock if it is this client's, whose librbd does not know that it has it.

    A request for the lock that had timed out was carried out after all. From then on librbd is refused the
    lock for ever, by itself (File exists, or after a new watch: self-blocklist), and has not heard of it
    (list_lockers, of 16.2). Only to be called where librbd was refused the lock, and nothing that needs it is
    under way. Not where another rbd.Image of this client may have the lock. Raises rados.Error.
    """
    number = int(own.removeprefix("client."))
    if sum(one["id"] == number for one in opened.watchers_list()) > 1:
        return
    header = f"rbd_header.{opened.id()}"
    with suppress(rados.ObjectNotFound):  # of the lock
        _, answer = pool.execute(header, "lock", "get_info", lock_info_request(LOCK_NAME))
        for one in holders(answer):
            if one.client == number and one.cookie.startswith(MANAGED_COOKIE):
                pool.unlock(header, LOCK_NAME, one.cookie)


def require_unlocked(image: Image, opened: Any) -> None:
    """Raise ClusterError if an open image has a lock that librbd waits for without an end."""
    for one in owners(opened):
        if not one.managed:
            message = f"image {image} is locked by {one} ({one.cookie})"
            hint = f"if that client no longer needs it: rbd lock rm {image} '{one.cookie}' {one.client}"
            raise ClusterError(message, hint, errno.EBUSY)
