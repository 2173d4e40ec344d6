"""Values that tests start from, each with what the test is about changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import config
from backup.model import Consistency, Definition, Disk, Domain, Image, RestorePoint, State
from backup.settings import Settings, load

MIB = 1 << 20
UUID = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e01"
OTHER_UUID = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e02"
RUN = "20240203T040506Z-abcd"
TAKEN = datetime(2024, 2, 3, 4, 5, 6, 789000, tzinfo=timezone.utc)


def settings(**changes: Any) -> Settings:
    """Give the defaults of config.py with some of them changed."""
    return replace(load(vars(config), None), **changes)


def image(text: str) -> Image:
    """Give the image that is shown as pool/name or pool/namespace/name."""
    pool, *namespace, name = text.split("/")
    return Image(pool, name, "/".join(namespace))


def rbd_disk(target: str = "vda", shown: str = "vms/web-root") -> Disk:
    return Disk(target, shown, image(shown))


def domain(
    name: str = "web",
    uuid: str = UUID,
    state: State = State.RUNNING,
    disks: Sequence[Disk] = (rbd_disk(),),
    agent_connected: bool = True,
) -> Domain:
    return Domain(uuid, name, state, tuple(disks), agent_connected)


def restore_point(of: Domain, run: str = RUN) -> RestorePoint:
    return RestorePoint(
        run=run,
        host="node1",
        taken=TAKEN,
        domain=of,
        definition=Definition("<domain>inactive</domain>", "<domain>live</domain>"),
        consistency=Consistency.FILESYSTEM,
        frozen_seconds=0.1234,
    )
