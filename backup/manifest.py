"""The manifest: what a restore point holds, together with the domain's definition, as one tar file.

A tar, so that `tar -x` alone gives an admin the definition's files back. It is written after all
images, and only what it names counts.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict

from . import __version__
from .model import RestorePoint, SavedImage

FORMAT = 1
MANIFEST = "manifest.json"
INACTIVE_XML = "domain.xml"
LIVE_XML = "domain-live.xml"
NVRAM = "nvram.fd"


def pack(point: RestorePoint, images: Sequence[SavedImage]) -> bytes:
    """Give the tar file: the manifest, the domain's inactive and live XML, its NVRAM."""
    definition = point.definition
    members = {
        MANIFEST: json.dumps(_manifest(point, images), indent=2).encode() + b"\n",
        INACTIVE_XML: definition.inactive_xml.encode(),
        LIVE_XML: definition.live_xml.encode(),
        NVRAM: definition.nvram,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            if content:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = 0o600
                entry.mtime = point.taken.timestamp()
                tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _manifest(point: RestorePoint, images: Sequence[SavedImage]) -> dict[str, object]:
    saved = {image.target for image in images}
    targets = {image.image: image.target for image in images}
    return {
        "format": FORMAT,
        "program": f"virt-rbd-backup {__version__}",
        "run": point.run,
        "host": point.host,
        "taken": point.taken.isoformat(),
        "domain": {"name": point.domain.name, "uuid": point.domain.uuid, "state": point.domain.state},
        "consistency": point.consistency,
        "frozen_seconds": round(point.frozen_seconds, 3),
        "nvram_path": point.definition.nvram_path,
        "images": [asdict(image) for image in images],
        "not_covered": [
            {
                "target": disk.target,
                "source": disk.source,
                "reason": disk.not_covered or f"the same image as {targets.get(str(disk.image), 'another')}",
            }
            for disk in point.domain.disks
            if disk.target not in saved
        ],
    }
