"""When a running domain was started, which libvirt does not report."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any
from xml.etree.ElementTree import Element

from .disk_xml import attribute
from .errors import HypervisorError, libvirt_errors

NANOSECONDS = 1_000_000_000


def started(handle: Any, channel: Element | None, local: bool, connected: bool) -> float | None:
    """Return the time of a virDomain's start, in time.time(), or the latest possible one; None if unknown.

    `channel` is that of its guest agent, without which nobody asks. `local`: it runs on this node.
    """
    if channel is None:
        return None
    # QEMU creates the channel's socket when it starts
    if local and (path := attribute(channel, "source", "path")):
        with suppress(OSError):  # without permission for libvirt's directories
            return os.stat(path).st_mtime
    return None if connected else _latest_possible(handle)


def _latest_possible(handle: Any) -> float | None:
    """Return the latest possible time of its start: its processors cannot have run for longer than that."""
    with suppress(HypervisorError), libvirt_errors("cannot read the domain's processor time"):
        _, _, _, processors, used = handle.info()
        return time.time() - float(used / max(1, processors)) / NANOSECONDS
    return None
