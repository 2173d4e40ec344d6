"""Work with a cluster that is abandoned if the cluster hangs while the command has to stop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import wait
from typing import Callable, TypeVar

from ..model import Image, Level
from ..protocols import Reporter
from ..system.stop_request import StopRequest
from ..system.time_limit import STOP_POLL, begun
from .connection import Connection

Result = TypeVar("Result")


def unless_silent(
    work: Callable[[], Result],
    cluster: Connection,
    images: Sequence[Image],
    stop: StopRequest,
    reporter: Reporter,
    must_end: threading.Event | None = None,
) -> Result:
    """Do the work in a thread of its own, and return its result.

    After a signal it is awaited, as it undoes what it has begun, for as long as the cluster answers in the
    pools of the images. Otherwise it is abandoned, and the reason to stop is raised: the process has to end.
    Once the work has set `must_end`, and then checked for a stop, it is awaited in any case.
    """
    outcome = begun(work)
    pools = {(image.pool, image.namespace): image for image in images}
    while not wait([outcome], STOP_POLL).done:
        if not stop.signal_number or (must_end and must_end.is_set()):
            continue
        if not all(map(cluster.answers, pools.values())) and not outcome.done():
            cluster.abandon(outcome)
            text = "the cluster does not answer: unfinished images stay until the next restore to them"
            reporter.message(Level.WARNING, "", text)
            stop.check()
    return outcome.result()
