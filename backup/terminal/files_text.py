"""What the command files prints: file systems, directories, and what it has copied."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ..text import one_line, size_text
from .tables import json_parts, json_text, table, table_parts

if TYPE_CHECKING:  # they need modules that only distributions package
    from ..files.copy_out import Copied
    from ..files.entries import Entry
    from ..files.order import Result
    from ..files.volumes import Volume

LINES = 1000  # that are printed at a time
KINDS = {"-": "file", "d": "directory", "l": "link"}


def result_parts(result: Result, to: str, as_json: bool) -> Iterator[str]:
    """Yield a table, a line if it was copied into a directory, or JSON, in parts."""
    if result.entries is None:
        yield _short_text(result, to, as_json)
        return
    lines = json_parts(map(_entry, result.entries)) if as_json else _entries(result.entries, result.name)
    while part := "".join(islice(lines, LINES)):
        yield part


def _short_text(result: Result, to: str, as_json: bool) -> str:
    if result.copied:
        return _copied(result.copied, result.name, to, as_json)
    return json_text([_volume(one) for one in result.volumes]) if as_json else _volumes(result.volumes)


def _volumes(volumes: Sequence[Volume]) -> str:
    head = ("file system", "type", "size", "label", "")
    rows = [
        (
            one.name,
            one.kind or "unknown",
            size_text(one.length),
            one.label,
            _note(one),
        )
        for one in volumes
    ]
    return table(head, rows)


def _note(one: Volume) -> str:
    """Return how it is read, and what is wrong with it."""
    damage = "not all of the disk can be read" if one.damaged and one.kind else ""
    beyond = f"its last {size_text(one.beyond)} would be behind the end of the disk" if one.beyond else ""
    return "; ".join(filter(None, (_how_read(one), damage, beyond)))


def _how_read(one: Volume) -> str:
    if one.unread:
        return "cannot be read"
    if one.needs_libguestfs:
        return "read with libguestfs"
    if one.is_encrypted:
        return "encrypted: read with libguestfs and --key"
    return "" if one.is_ext else "no files, or encrypted"


def _volume(one: Volume) -> dict[str, object]:
    return {
        "name": one.name,
        "disk": one.disk,
        "partition": one.partition,
        "offset": one.offset,
        "size": one.length,
        "type": one.kind,
        "label": one.label,
        "readable": one.is_ext,
        **({"error": _note(one)} if one.damaged or one.beyond else {}),
    }


def _entries(entries: Sequence[Entry], name: str = "") -> Iterator[str]:
    head = ("mode", "owner", "group", "size", f"name on {name}" if name else "name")
    return table_parts(head, lambda: map(_row, entries))


def _row(one: Entry) -> Sequence[str]:
    name = os.fsdecode(one.name)
    shown = f"{name} ({one.unread})".lstrip() if one.unread else name
    return stat.filemode(one.mode), str(one.owner), str(one.group), str(one.size), shown


def _entry(one: Entry) -> dict[str, object]:
    return {
        "name": os.fsdecode(one.name),
        "kind": "unread" if one.unread else KINDS.get(stat.filemode(one.mode)[0], "special"),
        "mode": f"{stat.S_IMODE(one.mode):04o}",
        "owner": one.owner,
        "group": one.group,
        "size": one.size,
        **({"error": str(one.unread)} if one.unread else {}),
    }


def _copied(copied: Copied, name: str, to: str, as_json: bool) -> str:
    if as_json:
        numbers = {one: getattr(copied, one) for one in ("files", "directories", "links", "bytes", "failed")}
        return json_text({**numbers, "complete": not copied.ended, "left_out": dict(copied.left_out)})
    counts = ((copied.files, "files"), (copied.directories, "directories"), (copied.links, "links"))
    shown = ", ".join(f"{what}: {number}" for number, what in counts if number) or "nothing"
    failed = f"; failed: {copied.failed}" if copied.failed else ""
    failed += ", and all that would follow" if copied.ended else ""
    return f"copied from {one_line(name)} to {one_line(to)}: {shown}, {size_text(copied.bytes)}{failed}\n"
