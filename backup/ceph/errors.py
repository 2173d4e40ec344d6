"""What Ceph refuses, as errors that an admin can act on."""

from __future__ import annotations

import errno
import os

from ..errors import BackupError, TransientError
from ..model import Image


class ClusterError(BackupError):
    """Ceph refused or did not answer. `number` is the errno, 0 where there is none."""

    def __init__(self, message: str, hint: str = "", number: int = 0) -> None:
        super().__init__(message, hint)
        self.number = number
        self.transient = number in (errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN, errno.ENOTCONN)


class ImageGone(ClusterError):
    """The image, or its pool, does not exist."""


class SnapshotInUse(ClusterError):
    """The snapshot can't be removed: it is protected, or has clones."""


class LockHeld(TransientError):
    """Somebody else holds the lock."""


class LockLost(TransientError):
    """The lock expired, and somebody else may have had it since."""


def failure(
    action: str, image: Image | None, number: int, words: str, user: str, timeout: int
) -> ClusterError:
    """Give the error for an errno, or for Ceph's own words where there is none.

    `user` is who asked, `timeout` in seconds.
    """
    what = f"{action} image {image}" if image else action
    message = f"{what}: {os.strerror(number).lower() if number else words}"
    if number == errno.ENOENT and image:
        hint = f"was it renamed, or moved? see rbd ls {image.place}; rbd trash ls --all {image.place}"
        if image.namespace:
            hint += f"; is there its namespace? rbd namespace create {image.place}"
        return ImageGone(message, hint, number)
    return ClusterError(message, _hint(number, image, user, timeout), number)


def _hint(number: int, image: Image | None, user: str, timeout: int) -> str:
    pool = image.pool if image else "..."
    if number == errno.ETIMEDOUT:
        return (
            f"no answer within {timeout} s: see ceph status (is it up, is it full?); is the key of "
            f"client.{user} right? (a wrong key shows as a time-out); see CEPH_TIMEOUT"
        )
    if number in (errno.EPERM, errno.EACCES):
        return (
            f"ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd pool={pool}' "
            "(and every other pool it uses)"
        )
    if number == errno.ENOENT:
        return "is there a keyring for this user?"
    if number == errno.EDQUOT:
        return f"the snapshot limit is reached: see rbd snap limit, image {image}"
    return ""
