"""When a running domain was started, which libvirt does not report."""

from __future__ import annotations

import os
from contextlib import suppress
from xml.etree.ElementTree import Element

from .disk_xml import attribute


def started(channel: Element | None, local: bool) -> float | None:
    """Return the time of a running domain's start, in time.time(); None if it is unknown.

    `channel` is that of its guest agent, without which nobody asks. `local`: it runs on this node. The time
    that its processors have used is no measure: an idle guest uses seconds in a day.
    """
    if channel is not None and local and (path := attribute(channel, "source", "path")):
        with suppress(OSError):  # without permission for libvirt's directories
            return os.stat(path).st_mtime  # QEMU creates the channel's socket when it starts
    return None
