"""Reads a domain's own backup settings from its metadata: <backup enabled= freeze= exclude= />.

`virsh metadata` sets them. The element may be in any namespace: ours takes precedence, and one in another
namespace counts only if it has no other attributes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from ..errors import BackupError
from ..model import Override

NAMESPACE, ELEMENT = "virt-rbd-backup", "backup"
ATTRIBUTES = {"enabled", "freeze", "exclude"}
ENABLED = {"yes": True, "no": False}
FREEZE = ("auto", "required", "never")


def override(xml: str) -> Override | None:
    """Read the settings in a domain's XML, None if there are none. Raises BackupError if they are invalid."""
    metadata = ElementTree.fromstring(xml).find("metadata")
    all_found = [child for child in metadata if _local(child.tag) == ELEMENT] if metadata is not None else []
    ours = [child for child in all_found if child.tag == f"{{{NAMESPACE}}}{ELEMENT}"]
    found = ours or [child for child in all_found if set(child.attrib) <= ATTRIBUTES]
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


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
