"""Values that tests start from, each with what the test is about changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import config
from backup.model import Consistency, Definition, Disk, Domain, Gap, Image, State
from backup.settings import Settings, load
from backup.stored import Layout, PointId, RestorePoint, StoredPoint

MIB = 1 << 20
UUID = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e01"
OTHER_UUID = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e02"
URI = "qemu:///system"
OTHER_URI = "qemu+ssh://node2/system"
FSID = "1c8e9e4c-0c4d-4a52-9a61-d5a0d8a7f001"
RUN = "20240203T040506Z-abcd"
LAYOUT = Layout(4 * MIB, ("layering", "exclusive-lock"), 4 * MIB, 1)
TAKEN = datetime(2024, 2, 3, 4, 5, 6, 789000, tzinfo=timezone.utc)


def settings(**changes: Any) -> Settings:
    """Give the defaults of config.py with some of them changed; without more, no state can be written."""
    return replace(load(vars(config), None), **{"state_dir": "/proc/no-state", **changes})


def image(text: str) -> Image:
    """Give the image that is shown as pool/name or pool/namespace/name."""
    pool, *namespace, name = text.split("/")
    return Image(pool, name, "/".join(namespace))


def rbd_disk(target: str = "vda", shown: str = "vms/web-root", **changes: Any) -> Disk:
    return replace(Disk(target, shown, image(shown), client=target, written=True), **changes)


def broken_disk(target: str = "vdb", shown: str = "vms/gone") -> Disk:
    """Give a disk on an RBD image that can't be saved."""
    return Disk(target, shown, skipped="a partition of an RBD image", gap=Gap.BROKEN)


def foreign_disk(target: str = "vdc", shown: str = "/srv/x.qcow2") -> Disk:
    """Give a disk that is on no RBD image."""
    return Disk(target, shown, skipped="no RBD image (file)", gap=Gap.FOREIGN)


def domain(
    name: str = "web",
    uuid: str = UUID,
    state: State = State.RUNNING,
    disks: Sequence[Disk] = (rbd_disk(),),
    agent_connected: bool = True,
    uri: str = URI,
    **changes: Any,
) -> Domain:
    return replace(Domain(uuid, name, state, tuple(disks), agent_connected, uri=uri), **changes)


def restore_point(of: Domain, run: str = RUN, taken: datetime = TAKEN) -> RestorePoint:
    return RestorePoint(
        run=run,
        host="node1",
        taken=taken,
        domain=of,
        definition=Definition("<domain>inactive</domain>", "<domain>live</domain>"),
        consistency=Consistency.FILESYSTEM,
        frozen_seconds=0.1234,
    )


def held_point(run: str = RUN, uuid: str = UUID, manifest_id: str = "") -> StoredPoint:
    """Give a restore point as an output lists it; without a manifest's id it is not complete."""
    return StoredPoint(PointId(run, uuid), "web", TAKEN, "crash", "node1", (), manifest_id)
