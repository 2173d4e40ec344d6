"""A removal of what no domain can claim, on a cluster on paper."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from backup.model import Domain, State
from backup.orphaned.places import NodeDomains
from backup.orphaned.removal import OrphanRemoval
from backup.stored import StoredPoint
from backup.system.concurrency_limit import Slots
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster, PaperClusters
from ..recorder import Recorder
from ..samples import FSID, OTHER_UUID, UUID, domain, held_point, rbd_disk, settings

YOUNG = f"{datetime.now(timezone.utc) - timedelta(days=1):%Y%m%dT%H%M%SZ}-abcd"
OLD = f"{datetime.now(timezone.utc) - timedelta(days=40):%Y%m%dT%H%M%SZ}-abcd"
WEB = domain("web", UUID, disks=[rbd_disk("vda", "vms/a")])
SHUT_OFF = replace(WEB, state=State.SHUT_OFF)
HERE = socket.gethostname()


def base(uuid: str = OTHER_UUID, run: str = YOUNG) -> str:
    return f"virt-rbd-backup.kept.{uuid}.{run}"


def left(uuid: str = OTHER_UUID, run: str = YOUNG) -> str:
    return f"virt-rbd-backup.{uuid}.{run}"


def point(node: str = "node2", name: str = "db", uuid: str = OTHER_UUID, lock: str = "vms/") -> StoredPoint:
    return replace(held_point(YOUNG, uuid, "id"), node=node, domain=name, locks=(f"{FSID}/{lock}",))


class Removal:
    """A removal on a node with one cluster, whose pool vms is known from a domain."""

    def __init__(self, directory: Path, recorder: Recorder) -> None:
        self.directory, self.recorder = directory, recorder
        self.cluster = PaperCluster()
        self.cluster.snapshots = {"vms/a": set(), "vms/b": {"foreign"}}
        self.stop = StopRequest()
        self.closed = threading.Event()

    def remove(
        self,
        domains: Sequence[Domain] = (WEB,),
        points: Sequence[StoredPoint] = (),
        with_bases: bool = False,
        complete: bool = True,
        limit: float = math.inf,
        **constants: Any,
    ) -> set[str]:
        """Remove, and give what is left of ours."""
        chosen = settings(runtime_dir=str(self.directory), **constants)
        slots = Slots(chosen.runtime_dir, "deletion", 2, lambda _: None, lambda: False)
        nodes = [NodeDomains(domains, PaperClusters(self.cluster))]
        order = OrphanRemoval(chosen, self.recorder, self.stop, slots, with_bases, limit)
        order.remove(nodes, complete, points, self.closed.set)
        assert self.closed.is_set()
        assert self.cluster.locks == {}
        found = {f"{image}@{name}" for image, names in self.cluster.snapshots.items() for name in names}
        return {one for one in found if not one.endswith("@foreign")}
