"""Reads a domain's own backup settings from its metadata: <backup enabled= freeze= exclude= />.

`virsh metadata` sets them. The element counts in our namespace, or else without any; in another one it is
that of another program, whatever its attributes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from ..errors import BackupError
from ..model import Override

NAMESPACE, ELEMENT = "virt-rbd-backup", "backup"
ENABLED = {"yes": True, "no": False}
FREEZE = ("auto", "required", "never")


def override(xml: str) -> Override | None:
    """Read the settings in a domain's XML, None if there are none. Raises BackupError if they are invalid."""
    metadata = ElementTree.fromstring(xml).find("metadata")
    if metadata is None:
        return None
    found = metadata.findall(f"{{{NAMESPACE}}}{ELEMENT}") or metadata.findall(ELEMENT)
    if not found:
        return None
    if len(found) > 1:
        raise BackupError(f"the domain's metadata has {len(found)} elements <{ELEMENT}>", _HINT)
    given = dict(found[0].attrib)
    enabled, freeze, exclude = (given.pop(name, "") for name in ("enabled", "freeze", "exclude"))
    wrong = [f"{name}={value!r}" for name, value in given.items()]
    wrong += [f"enabled={enabled!r}"] if enabled not in ("", *ENABLED) else []
    wrong += [f"freeze={freeze!r}"] if freeze not in ("", *FREEZE) else []
    if wrong:
        raise BackupError(f"invalid <{ELEMENT}> in the domain's metadata: {', '.join(wrong)}", _HINT)
    return Override(ENABLED.get(enabled), freeze, tuple(exclude.replace(",", " ").split()))


_HINT = 'use <backup enabled="yes|no" freeze="auto|required|never" exclude="TARGET ..."/>; see virsh metadata'
