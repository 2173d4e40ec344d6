"""Which users QEMU runs as. (https://libvirt.org/formatcaps.html, formatdomain.html#security-label)"""

from __future__ import annotations

import pwd
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress

LABEL = re.compile(r"(\+?)([^:]+)(:.*)?")  # USER:GROUP, a plus before a number


def qemu_users(capabilities: str) -> Iterator[int]:
    """Yield the UIDs that QEMU runs as by default."""
    for model in ElementTree.fromstring(capabilities).iterfind("./host/secmodel"):
        if model.findtext("model") == "dac":
            yield from _users(label.text or "" for label in model.iterfind("baselabel"))


def _users(labels: Iterator[str]) -> Iterator[int]:
    for label in labels:
        found = LABEL.fullmatch(label.strip())
        if found and found[2].isdecimal():
            yield int(found[2])
        elif found:
            with suppress(KeyError):  # a user that this node lacks
                yield pwd.getpwnam(found[2]).pw_uid
