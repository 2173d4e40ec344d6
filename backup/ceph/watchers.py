"""Finds the clients that use an image. rbd-mirror, which watches what it mirrors, is no user of it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any

import rbd

# All rbd-mirror daemons that read from this pool and namespace watch this object (RBD_MIRRORING of
# rbd_types.h); librbd itself tells them from users by that (librbd/image/ListWatchersRequest.cc).
MIRRORING_OBJECT = "rbd_mirroring"

# librados' Python module cannot list an object's watchers, but a notification returns who answered it. An
# rbd-mirror answers an unknown message, and does nothing (librbd/mirroring_watcher/Types.cc).
UNKNOWN_MESSAGE = struct.pack("<BBII", 1, 1, 4, 0x7F).decode()
ANSWER_LIMIT = 3  # seconds for the daemons to answer
MARGIN = 2  # seconds for the OSD's own answer


def users(pool: Any, opened: Any) -> Sequence[str]:
    """Return the addresses of the clients that have an image open for writing, without rbd-mirror's.

    `pool` is the image's rados.Ioctx, `opened` its rbd.Image.
    """
    watchers = list(opened.watchers_list())
    if not watchers or opened.mirror_image_get_info()["state"] == rbd.RBD_MIRROR_IMAGE_DISABLED:
        return [one["addr"] for one in watchers]
    mirrors = _mirror_daemons(pool)
    return [one["addr"] for one in watchers if one["id"] not in mirrors]


def _mirror_daemons(pool: Any) -> set[int]:
    """Return the client ids of the rbd-mirror daemons that watch a pool; none if it is not known."""
    found: set[int] = set()
    answered = threading.Event()

    def complete(_completion: Any, _result: int, answers: Any, timeouts: Any) -> None:
        found.update(one[0] for one in (*(answers or ()), *(timeouts or ())))
        answered.set()

    pool.aio_notify(MIRRORING_OBJECT, complete, UNKNOWN_MESSAGE, timeout_ms=ANSWER_LIMIT * 1000)
    answered.wait(ANSWER_LIMIT + MARGIN)
    return found
