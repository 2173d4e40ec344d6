"""The record of an instant restore while this process carries it out."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Callable

from ..ceph.cluster import Cluster
from ..instant import record as records
from ..instant.record import Record


@dataclass
class Journal:
    """Changes the record in the cluster, each time in one step. Threads may share it."""

    cluster: Cluster
    record: Record
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def change(self, change: Callable[[Record], Record]) -> None:
        """Record what has changed. Raises BackupError, also if another node has gone on meanwhile."""
        with self._lock:
            changed = change(self.record)
            if changed != self.record:
                records.write(self.cluster, changed, self.record)
                self.record = changed

    def set_pivoting(self, pivoting: bool) -> None:
        self.change(lambda record: replace(record, pivoting=pivoting))

    def set_started(self) -> None:
        """Record that the guest is about to run; nothing is being moved then."""
        self.change(lambda record: replace(record, started=True, pivoting=False))

    def set_filled(self, target: str, image_id: str) -> None:
        self.change(lambda record: record.changed(target, filled=image_id))

    def set_moved(self, targets: set[str]) -> None:
        """Record disks as moved, by their targets in the restore point, all in one step."""

        def moved(record: Record) -> Record:
            for target in targets:
                record = record.changed(target, moved=True)
            return record

        self.change(moved)

    def set_host(self, host: str) -> None:
        self.change(lambda record: replace(record, host=host))
