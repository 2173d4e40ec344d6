"""Finds instant restores that are under way, or were interrupted, by their overlays in a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

from ..ceph.cluster import Cluster
from ..command import COMMAND
from ..errors import BackupError
from ..job.domain_lock import lock_at
from .record import Record, Stage, found_in


@dataclass(frozen=True)
class UnderWay:
    """An instant restore. `holder` is what has its lock now, "" for nothing: no process continues it."""

    record: Record
    holder: str

    @property
    def needs_admin(self) -> bool:
        return not self.holder

    @property
    def text(self) -> str:
        """How far it is, and what an admin has to do."""
        record = self.record
        if self.holder:
            return f"{self.holder}: {record.progress}"
        if record.stage is Stage.ABORTED:
            return f"instant restore aborted; what the guest has written is in {self._overlays}"
        what = f"instant restore interrupted on {record.host}: {record.progress}"
        what += ", the guest is paused" if record.pivoting else ""
        command = " ".join(filter(None, (COMMAND, "restore", record.domain, "--instant", record.options)))
        return f"{what}; `{command}` continues it"

    @property
    def title(self) -> str:
        return f"{self.record.title}: {self.text}"

    @property
    def _overlays(self) -> str:
        left = [str(disk.place.overlay) for disk in self.record.on_overlays]
        return ", ".join(left) or "its images"


def under_way(
    cluster: Cluster, pool: str, namespaces: Sequence[str], failed: Callable[[str], None]
) -> Sequence[UnderWay]:
    """List those in a pool's namespaces; `failed` gets what could not be found out."""
    found: list[UnderWay] = []
    for namespace in namespaces:
        try:
            for record in found_in(cluster, pool, namespace):
                holder = lock_at(cluster, pool, namespace, record.uuid, 0).holder()
                found.append(UnderWay(record, holder))
        except BackupError as error:
            failed(f"pool {pool} not searched for instant restores: {error.message}")
    return found
