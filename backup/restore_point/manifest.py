"""The manifest: the content of a restore point and the domain's definition, as one tar file.

It is a tar, so that `tar -x` is enough to restore the definition's files by hand. It is written after all
images, and only what it names counts.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from types import MappingProxyType
from typing import Any, Union

from .. import __version__
from ..command import COMMAND
from ..errors import BackupError, reason
from ..model import Consistency, Definition, Disk, NodeFile
from ..stored import Layout, Packed, PointId, RestorePoint, SavedDomain, SavedImage, SnapshotId
from ..system.spool import PackedFile, Part, Spool, whole
from .checksums import ALGORITHM, Checksums

FORMAT = 1
MANIFEST = "manifest.json"
INACTIVE_XML = "domain.xml"
LIVE_XML = "domain-live.xml"
NVRAM = "nvram.fd"
FILES = "files"  # the folder of the node's files, each below its path
CHECKSUMS, TIMES = ".xxh3", ".times"  # endings, after a disk's target
NOTHING = Spool()

Members = Mapping[str, Packed]


def pack(
    point: RestorePoint,
    images: Sequence[SavedImage],
    checksums: Mapping[str, Checksums],
    times: Mapping[str, bytes] = MappingProxyType({}),
) -> Spool:
    """Return the tar file: the manifest, the domain's inactive and live XML, its files, checksums and times.

    `checksums` and `times` are by disk target; vda.xxh3 is missing if all of vda is a hole.
    """
    definition = point.definition
    members: dict[str, Packed] = {
        MANIFEST: Spool(json.dumps(_manifest(point, images), indent=2).encode() + b"\n"),
        INACTIVE_XML: Spool(definition.inactive_xml.encode()),
        LIVE_XML: Spool(definition.live_xml.encode()),
        NVRAM: Spool(definition.nvram),
        **{_member(file.path): Spool(file.content) for file in definition.files},
        **{_file(target, CHECKSUMS): one.packed for target, one in checksums.items()},
        **{_file(target, TIMES): Spool(one) for target, one in times.items()},
    }
    files = {_member(file.path): file for file in definition.files}
    packed = Spool()
    with tarfile.open(fileobj=PackedFile(packed), mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            if len(content):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = 0o600
                entry.mtime = point.taken.timestamp()
                if file := files.get(name):  # so that `tar -x` restores them by hand
                    entry.mode = file.mode
                    entry.uname, _, entry.gname = file.owner.partition(":")
                tar.addfile(entry, PackedFile(content))
    return packed


def unpack(packed: Union[bytes, Packed]) -> SavedDomain:
    """Read what `pack` wrote; its checksums stay there. Raises BackupError if it is anything else."""
    try:
        members = _members(packed)
        content = json.loads(whole(members[MANIFEST]))
        if content["format"] != FORMAT:
            message = f"the manifest has format {content['format']}, this version reads format {FORMAT}"
            raise BackupError(message, f"restore it with {content['program']}")
        return SavedDomain(
            point=PointId(content["run"], content["domain"]["uuid"], content.get("attempt", 1)),
            name=content["domain"]["name"],
            taken=datetime.fromisoformat(content["taken"]),
            consistency=Consistency(content["consistency"]),
            images=tuple(map(_image, content["images"])),
            skipped_disks=tuple(map(_skipped, content["not_covered"])),
            definition=Definition(
                whole(members[INACTIVE_XML]).decode(),
                whole(members.get(LIVE_XML, NOTHING)).decode(),
                content["nvram_path"],
                whole(members.get(NVRAM, NOTHING)),
                content.get("autostart"),
                tuple(content.get("not_saved", ())),
                tuple(_node_file(fields, members) for fields in content.get("files", ())),
            ),
            checksums=_checksums(content, members),
            times={
                target: whole(times)
                for target, times in _by_target(TIMES, content, members).items()
                if len(times)
            },
        )
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        message = f"the restore point's manifest is damaged ({type(error).__name__}: {error})"
        hint = f"choose another restore point: see `{COMMAND} restore-points`"
        raise BackupError(message, hint) from error
    except OSError as error:  # of the file that holds a large one
        message = f"cannot read the restore point's manifest: {reason(error)}"
        raise BackupError(message, "is the file system of TMPDIR, or /var/tmp, in order?") from error


def texts(packed: Packed) -> Mapping[str, bytes]:
    """Return the files that an admin may want to see, by name: manifest, definition, NVRAM if there is one.

    Raises BackupError unless `unpack` can read them.
    """
    unpack(packed)
    members = _members(packed)
    return {name: whole(members[name]) for name in (INACTIVE_XML, NVRAM, MANIFEST) if name in members}


def _members(packed: Union[bytes, Packed]) -> Members:
    """Return the files in the tar by name. Raises tarfile.TarError, also if one is cut off."""
    stored = Spool(packed) if isinstance(packed, bytes) else packed
    with tarfile.open(fileobj=io.BufferedReader(PackedFile(stored)), mode="r:") as tar:
        entries = [entry for entry in tar if entry.isreg()]
    if any(entry.offset_data + entry.size > len(stored) for entry in entries):
        raise tarfile.ReadError("unexpected end of data")
    return {entry.name: Part(stored, entry.offset_data, entry.size) for entry in entries}


def _checksums(content: Mapping[str, Any], members: Members) -> Members:
    return _by_target(CHECKSUMS, content, members) if content.get("checksums") == ALGORITHM else {}


def _by_target(ending: str, content: Mapping[str, Any], members: Members) -> Members:
    targets = [image["target"] for image in content["images"]]
    return {target: members.get(_file(target, ending), NOTHING) for target in targets}


def _member(path: str) -> str:
    return f"{FILES}/{path.lstrip('/')}"


def _node_file(fields: Mapping[str, Any], members: Members) -> NodeFile:
    path = fields["path"]
    content = whole(members[_member(path)]) if fields["size"] else b""
    if len(content) != fields["size"]:
        raise ValueError(f"{path} has {len(content)} of {fields['size']} bytes")
    return NodeFile(fields["use"], path, content, fields["mode"] & 0o777, fields["owner"])


def _file(target: str, ending: str) -> str:
    return f"{target.replace('/', '_')}{ending}"


def _image(fields: Mapping[str, Any]) -> SavedImage:
    layout = fields["layout"]
    layout = Layout(**{**layout, "features": tuple(layout["features"])})
    return SavedImage(**{**fields, "layout": layout, "source": SnapshotId(**fields.get("source", {}))})


def _skipped(fields: Mapping[str, Any]) -> Disk:
    return Disk(fields["target"], fields.get("source", ""), skipped=fields.get("reason", ""))


def _manifest(point: RestorePoint, images: Sequence[SavedImage]) -> dict[str, object]:
    saved = {image.target for image in images}
    targets = {image.image: image.target for image in images}
    return {
        "format": FORMAT,
        "program": f"virt-rbd-backup {__version__}",
        "run": point.run,
        "attempt": point.attempt,
        "host": point.host,
        "taken": point.taken.isoformat(),
        "domain": {"name": point.domain.name, "uuid": point.domain.uuid, "state": point.domain.state},
        "consistency": point.consistency,
        "frozen_seconds": round(point.frozen_seconds, 3),
        "nvram_path": point.definition.nvram_path,
        "autostart": point.definition.autostart,
        "not_saved": point.definition.not_saved,
        "files": [
            {"use": one.use, "path": one.path, "size": len(one.content), "mode": one.mode, "owner": one.owner}
            for one in point.definition.files
        ],
        "checksums": ALGORITHM,
        "images": [asdict(image) for image in images],
        "not_covered": [
            {
                "target": disk.target,
                "source": disk.source,
                "reason": disk.skipped or f"the same image as {targets.get(str(disk.image), 'another')}",
            }
            for disk in point.domain.disks
            if disk.target not in saved
        ],
    }
