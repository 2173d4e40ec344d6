"""Removes images: step by step, so that a stop is possible, and with progress messages."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import Callable

import rbd

from ..model import Image, Level
from ..protocols import Reporter
from ..system.stop_request import StopRequest
from ..system.time_limit import CheckStop, never_stop
from ..text import size_text
from .cluster import Cluster
from .errors import ClusterError

EMPTIED_AT_A_TIME = 8192  # objects that are removed in one step; a stop is checked between two steps
TIDY_LIMIT = 150.0  # seconds after a signal that a removal may still take; systemd kills after 300
REPORT_INTERVAL = 30.0  # seconds between two progress messages of a removal


class ImageRemoval:
    """Removes images of a cluster. `stop` ends a long `empty` some time after a signal.

    `check_stop` may raise the reason to end it at once, for images that whoever comes next removes.
    """

    def __init__(
        self, cluster: Cluster, reporter: Reporter, stop: StopRequest, check_stop: CheckStop = never_stop
    ) -> None:
        self._cluster = cluster
        self._reporter = reporter
        self._stop = stop
        self._check_stop = check_stop

    def remove(self, image: Image) -> None:
        """Remove an image; success if it is already gone. Raises ClusterError."""
        report = self._progress_of(image)

        def remove() -> None:
            with suppress(rbd.ImageNotFound):
                rbd.RBD().remove(self._cluster.pool_of(image), image.name, on_progress=report)

        self._cluster.retried("cannot remove", image, remove)

    def empty(self, image: Image) -> None:
        """Shrink an image step by step, as librbd's removal cannot be interrupted.

        It is opened by its id, as another restore may have replaced it meanwhile. If there is no time for all
        of it, the rest keeps its temporary name, by which the next restore finds it.
        """
        try:
            found = self._cluster.identified(image)
        except ClusterError as error:
            if error.transient:
                raise
            return  # it is gone, or of a kind that librbd alone removes
        with (
            self._cluster.errors("cannot remove", image),
            self._cluster.opened(found, read_only=False) as opened,
        ):
            if len(self._cluster.watchers(found)) > 1 or list(opened.list_snaps()):
                return  # another client has it open, or it has a snapshot: librbd will refuse to remove it
            size, step = int(opened.size()), EMPTIED_AT_A_TIME * int(opened.stat()["obj_size"])
            report = self._progress_of(image)
            for end in reversed(range(0, size, step)):
                self._check_stop()
                if self._stop.signalled_twice or self._stop.seconds_since_signal > TIDY_LIMIT:
                    message = f"image {image} is removed only in part, {size_text(opened.size())} are left"
                    raise ClusterError(message, f"the next restore to it removes the rest; or rbd rm {image}")
                self._cluster.changed("cannot remove", image, opened, partial(opened.resize, end))
                report(size - end, size)

    def _progress_of(self, image: Image) -> Callable[[int, int], int]:
        """Return a function that reports the progress of a long removal."""
        reported = time.monotonic()

        def report(done: int, size: int) -> int:
            nonlocal reported
            if time.monotonic() > reported + REPORT_INTERVAL:
                reported = time.monotonic()
                self._reporter.message(Level.INFO, "", f"removing {image}: {done / max(size, 1):.0%}")
            return 0

        return report
