"""Maps Ceph's errors to errors that an admin can act on."""

from __future__ import annotations

import errno
import os

from ..command import COMMAND
from ..errors import BackupError, Skipped, TransientError
from ..model import Image

CONNECTING = "cannot connect to the cluster"
# ESHUTDOWN: this client was blocklisted; the next attempt is another client.
TRANSIENT = (errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN, errno.ENOTCONN, errno.ESHUTDOWN)


class ClusterError(BackupError):
    """Ceph refused or did not answer. `number` is the errno, 0 if there is none."""

    def __init__(self, message: str, hint: str = "", number: int = 0) -> None:
        super().__init__(message, hint)
        self.number = number
        self.transient = number in TRANSIENT


class ImageGone(ClusterError):
    """The image, or its pool, does not exist."""


class PoolFull(ClusterError):
    """The pool, or the cluster, is full: whatever needs room waits or fails."""


class SnapshotInUse(ClusterError):
    """The snapshot cannot be removed: it is protected, or has clones."""


class LockHeld(TransientError):
    """Another owner holds the lock."""


class HeldByCleanup(LockHeld):
    """A cleanup holds the lock, only as long as it removes leftovers: nobody is saving the domain."""


class HeldByDead(LockHeld):
    """A process of this node that was killed holds the lock until it expires: nobody is saving the domain."""


class HeldByRestore(LockHeld, Skipped):
    """An instant restore holds the lock until the guest is on its restored images: a backup skips it.

    `here`: it is a process of this node; `ended`: which does not run any more.
    """

    here = False
    ended = False


class LockLost(TransientError):
    """The lock expired, and another owner may have held it since."""


def failure(
    action: str, image: Image | None, number: int, message: str, user: str, timeout: int
) -> ClusterError:
    """Return the error for an errno, or for Ceph's own message if the errno is 0.

    `user` is the cephx user of the connection, `timeout` its limit in seconds.
    """
    what = f"{action} image {image}" if image else action
    text = f"{what}: {os.strerror(number).lower() if number else message}"
    if number == errno.ENOENT and image:
        hint = f"it may have been renamed or moved: rbd ls {image.place}; rbd trash ls --all {image.place}"
        if image.namespace:
            hint += f"; if the namespace is missing: rbd namespace create {image.place}"
        return ImageGone(text, hint, number)
    if number == errno.EINVAL and action == CONNECTING:
        return ClusterError(text, _key_hint(user), number)
    return ClusterError(text, _hint(number, image, user, timeout), number)


def _key_hint(user: str) -> str:
    """Return what to do about a key that librados cannot decode: 16.2 and 18.2 fail so on one of 20.2.4."""
    return (
        f"the key of client.{user} (ceph auth get client.{user}) is damaged, or of a kind that the Ceph of "
        "this node is too old for: clusters that were made with Ceph 20.2.4 or newer have keys that begin "
        "with Ag, and need that on the node too, see ceph --version"
    )


def _hint(number: int, image: Image | None, user: str, timeout: int) -> str:
    pool = image.pool if image else "..."
    if number == errno.ETIMEDOUT:
        return (
            f"no answer within {timeout} s: check ceph status (is the cluster up, or full?) and the key of "
            f"client.{user} (a wrong key shows as a timeout); see CEPH_TIMEOUT"
        )
    if number in (errno.EPERM, errno.EACCES):
        return (
            f"ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd pool={pool}' "
            "(and every other pool it uses)"
        )
    if number == errno.ENOENT:
        return f"check that there is a keyring for client.{user}"
    if number == errno.EDQUOT:
        return (
            f"the snapshot limit is reached: see rbd snap limit, image {image}; "
            f"or the pool's quota: ceph osd pool get-quota {pool}"
        )
    if number == errno.ENOSPC:
        return f"pool {pool} is full: {full_hint(pool)}"
    if number == errno.ESHUTDOWN:
        return (
            "the cluster has blocklisted this client (ceph osd blocklist ls), as another took "
            "it for dead, or an admin did; the retry connects anew"
        )
    if number == errno.EROFS:
        return f"the image's lock cannot be taken: rbd lock ls {image}; rbd status {image}"
    return ""


def full_hint(pool: str) -> str:
    return (
        f"ceph health detail; ceph osd df; `{COMMAND} cleanup` removes our snapshots (--all: base snapshots "
        "too) without any room, those of running guests after: ceph osd set-full-ratio 0.96"
    )
