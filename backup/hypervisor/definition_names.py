"""The names of the domains that this node's libvirt defines, from its files: libvirt itself may hang."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

LOCAL = "qemu:///system"
DIRECTORY = "/etc/libvirt/qemu"  # a file for each domain, NAME.xml
SUFFIX = ".xml"


def definition_names(uris: Collection[str]) -> Sequence[str]:
    """Return the names if one of the URIs is this node's own; none if the files cannot be listed."""
    if LOCAL not in uris:
        return ()
    try:
        return [name[: -len(SUFFIX)] for name in os.listdir(DIRECTORY) if name.endswith(SUFFIX)]
    except OSError:
        return ()
