"""Finds the instant restore that is to be aborted, and ends it: it needs no restore point any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial

from ..ceph.abandonable import unless_silent
from ..ceph.cluster import Cluster
from ..ceph.restore_cluster import restore_cluster
from ..command import COMMAND
from ..errors import BackupError, TransientError
from ..instant import record as records
from ..instant.record import Record
from ..instant.under_way import under_way
from ..model import Consistency, Definition, Image, Level
from ..protocols import Output, RunReporter
from ..restore.order import RestoreOrder
from ..restore.restorer import Restorer
from ..restore_point.find import find_point
from ..settings import Settings
from ..stored import SavedDomain, StoredPoint
from ..system.stop_request import StopRequest
from . import ending
from .given import Given
from .journal import Journal
from .lock import locked

NO_DEFINITION = "<domain><name/><uuid/><devices/></domain>"


@dataclass(frozen=True)
class InstantAbort:
    """Carries out a restore order with --instant --abort."""

    order: RestoreOrder
    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest

    def abort(self) -> None:
        """End what is under way. Raises ConfigError, BackupError."""
        self.order.require_consistent()
        places = self._places()
        with restore_cluster(self.settings, self.stop, self.reporter, self.order.domain) as cluster:
            record = self._found(cluster, places)
            work = partial(self._aborted, cluster, record)
            images = [disk.place for disk in record.disks]
            unless_silent(work, cluster, images, self.stop, self.reporter)

    @property
    def _restorer(self) -> Restorer:
        return Restorer(self.order, self.settings, self.output, self.reporter, self.stop)

    def _places(self) -> Mapping[str, Image]:
        """Return the images of what is ordered, {} if the repository does not have that, or does not answer.

        The overlay by which a record is found without them may be gone.
        """
        restorer = self._restorer
        try:
            point = find_point(restorer.points(), self.order.domain, self.order.at)
            return restorer.places(restorer.saved(point).images)
        except BackupError as error:
            self.stop.check()
            text = f"{error.message}; the instant restore is looked for in all pools"
            self.reporter.message(Level.WARNING, self.order.domain, text)
            return {}

    def _found(self, cluster: Cluster, places: Mapping[str, Image]) -> Record:
        """Return the record of what is to end. Raises BackupError unless there is exactly one."""
        there = [image for image in places.values() if cluster.has_pool(image.pool)]
        found = [record for image in there if (record := records.read(cluster, image))]
        if ordered := [record for record in found if self._is_ordered(record)]:
            return ordered[0]
        failed: list[str] = []
        ordered = [record for record in _in_all_pools(cluster, failed) if self._is_ordered(record)]
        hint = f"`{COMMAND} status` shows those under way; --to-pool, --suffix and --name select one"
        if not ordered:
            message = f"no instant restore of {self.order.name or self.order.domain} is under way"
            raise BackupError("; ".join((message, *failed)), hint)
        if len(ordered) > 1:
            titles = "; ".join(f"{record.title} to {record.first}" for record in ordered)
            raise BackupError(f"several are under way: {titles}", hint)
        return ordered[0]

    def _is_ordered(self, record: Record) -> bool:
        order, places = self.order, [disk.place for disk in record.disks]
        return (
            order.domain in (record.domain, record.point.uuid)
            and record.name == (order.name or record.domain)
            and (not order.to_pool or {place.place for place in places} == {order.to_pool})
            and all(place.name.endswith(order.suffix) for place in places)
        )

    def _aborted(self, cluster: Cluster, record: Record) -> None:
        with ExitStack() as stack:
            given = self._given(cluster, record, stack)
            if not given.domain.hypervisor.local:
                message = f"--instant needs a libvirt of this node, not {given.domain.hypervisor.uri}"
                raise BackupError(message, 'run it on that node, with LIBVIRT_URI = "qemu:///system"')
            stack.enter_context(locked(given))
            if records.read(cluster, record.first) != record:
                raise TransientError("another instant restore of it has gone on meanwhile", "try again")
            ending.require_under_way(given, record)
            ending.abort(given, Journal(cluster, record), self.order.discard)

    def _given(self, cluster: Cluster, record: Record, stack: ExitStack) -> Given:
        """Return what there is to end: of its restore point only what its record has."""
        taken = datetime.strptime(record.taken, records.TIME_FORM).replace(tzinfo=timezone.utc)
        crash = Consistency.CRASH
        saved = SavedDomain(record.point, record.domain, taken, crash, (), (), Definition(NO_DEFINITION), {})
        point = StoredPoint(record.point, record.domain, taken, crash.value, record.host, (), "")
        domain = self._restorer.domain(saved, stack)
        return Given(
            self.settings,
            self.output,
            self.reporter,
            self.stop,
            cluster,
            point,
            saved,
            {disk.target: disk.place for disk in record.disks},
            replace(domain, name=record.name, uuid=record.uuid),
            NO_DEFINITION,
        )


def _in_all_pools(cluster: Cluster, failed: list[str]) -> Sequence[Record]:
    """Return what is under way in the cluster; `failed` gets what could not be found out."""
    found: list[Record] = []
    for pool in cluster.pool_names():
        try:
            namespaces = cluster.namespaces(pool)
        except BackupError as error:  # no access, perhaps
            failed.append(error.message)
            continue
        found += [one.record for one in under_way(cluster, pool, namespaces, failed.append)]
    return found
