"""The command restore --instant: the guest runs within seconds, on overlays, while its images are restored.

Each step is decided by what lies in the cluster, so that the same command continues what was interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from ..ceph.abandonable import unless_silent
from ..ceph.cluster import Cluster
from ..ceph.new_image import require_room
from ..ceph.restore_cluster import restore_cluster
from ..errors import BackupError, ConfigError, TransientError
from ..instant import record as records
from ..instant.record import Record, Stage
from ..instant.serving import Serving
from ..job_result import Phase
from ..model import Image, Level
from ..protocols import Output, RunReporter
from ..restore.domain import RestoredDomain
from ..restore.images import RestoredImage
from ..restore.order import RestoreOrder
from ..restore.restorer import Restorer
from ..restore_point.find import find_point, with_current_ids
from ..settings import Settings
from ..stored import SavedDomain, StoredPoint
from ..system.stop_request import StopRequest
from ..system.time_limit import begun
from . import ending, filling, preparation
from .given import Given
from .guest import Guest
from .journal import Journal
from .lock import locked
from .moving import Move
from .socket_directory import socket_directory, users_of_socket

POLL = 0.2  # seconds between two checks of the guest while its images are restored


@dataclass(frozen=True)
class _Chosen:
    """A restore point, what it has, and where that is restored to, by target."""

    point: StoredPoint
    saved: SavedDomain
    places: Mapping[str, Image]


@dataclass(frozen=True)
class InstantRestorer:
    """Carries out a restore order with --instant."""

    order: RestoreOrder
    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest

    def restore(self) -> Sequence[RestoredImage]:
        """Restore the domain; return its images. Raises ConfigError, BackupError."""
        points = self._restorer(self.order).points()
        chosen = self._chosen(self.order, find_point(points, self.order.domain, self.order.at))
        must_end = threading.Event()
        with restore_cluster(self.settings, self.stop, self.reporter, chosen.saved.name) as cluster:
            work = partial(self._work, cluster, points, chosen, must_end)
            images = list(chosen.places.values())
            return unless_silent(work, cluster, images, self.stop, self.reporter, must_end)

    def _restorer(self, order: RestoreOrder) -> Restorer:
        return Restorer(order, self.settings, self.output, self.reporter, self.stop)

    def _chosen(self, order: RestoreOrder, point: StoredPoint) -> _Chosen:
        restorer = self._restorer(order)
        saved = with_current_ids(restorer.saved(point), point)
        return _Chosen(point, saved, restorer.places(saved.images))

    def _work(
        self, cluster: Cluster, points: Sequence[StoredPoint], chosen: _Chosen, must_end: threading.Event
    ) -> Sequence[RestoredImage]:
        for image in chosen.places.values():  # before what is asked for beside the images
            require_room(cluster, image.pool, 0)
            cluster.require_namespace(image)
        record, order, places = _recorded(cluster, chosen.places), self.order, chosen.places
        over = record is not None and ending.is_over(cluster, record)
        if record and record.stage is not Stage.PREPARING and not over:
            point = self._point_of(record, chosen.point, points)
            order = replace(order, no_network=record.no_network)
            chosen = chosen if point is chosen.point else self._chosen(order, point)
        with ExitStack() as stack:
            restorer = self._restorer(order)
            domain = restorer.domain(chosen.saved, stack)
            if not domain.hypervisor.local:
                message = f"--instant needs a libvirt of this node, not {domain.hypervisor.uri}"
                raise BackupError(message, 'run it on that node, with LIBVIRT_URI = "qemu:///system"')
            if record:
                _require_same(record, domain, order.new_uuid)
                domain = replace(domain, uuid=record.uuid)
            xml = restorer.xml(domain, chosen.places, cluster)
            given = Given(
                self.settings,
                self.output,
                self.reporter,
                self.stop,
                cluster,
                chosen.point,
                chosen.saved,
                chosen.places,
                domain,
                xml,
                order.force,
                order.damaged,
                must_end,
            )
            stack.enter_context(locked(given))
            if _recorded(cluster, places) != record:
                raise TransientError("another instant restore of it has gone on meanwhile", "try again")
            return self._locked(given, record)

    def _point_of(self, record: Record, point: StoredPoint, points: Sequence[StoredPoint]) -> StoredPoint:
        """Return the restore point of what is under way. Raises ConfigError if another one is ordered."""
        if self.order.at != "latest" and not record.is_of(point):
            message = f"the {record.title} is under way"
            raise ConfigError([BackupError(message, "leave out --at, or end it: --instant --abort")])
        found = [one for one in points if one.manifest_id and record.is_of(one)]
        if not found:
            message = f"the restore point of the {record.title} is no longer in the repository"
            raise BackupError(message, "--instant --abort ends it; what the guest has written stays")
        return point if record.is_of(point) else found[-1]

    def _locked(self, given: Given, record: Record | None) -> Sequence[RestoredImage]:
        if record:
            ending.require_under_way(given, record)
        if record and record.stage is Stage.PREPARING:
            preparation.discard_unused(given, record)
            record = None
        if record is None:
            journal = preparation.begun(given, self.order)
        else:
            journal = Journal(given.cluster, record)
            given.report(Level.INFO, f"continuing the {record.title}: {record.progress}")
            journal.change(lambda one: replace(one, stage=Stage.RUNNING))
            filling.require_filled(given, journal)
        with self._explained(given, journal):
            return self._restored(given, journal)

    @contextmanager
    def _explained(self, given: Given, journal: Journal) -> Iterator[None]:
        """Report what an interruption leaves, and how to continue."""
        try:
            yield
        except BaseException:  # whatever it was, a stop included
            text = f"the instant restore is not complete ({journal.record.progress}); the guest waits as soon"
            text += " as it reads what is not there: repeat the command to continue, here or on another node"
            given.report(Level.WARNING, text)
            raise

    def _restored(self, given: Given, journal: Journal) -> Sequence[RestoredImage]:
        """Let the guest run, restore its images, and move it to them."""
        size = sum(image.size for image in given.saved.images)
        self.reporter.planned(given.saved.name, given.saved.name, size)
        self.reporter.phase(given.saved.name, Phase.BOOT)
        with ExitStack() as stack:
            ready = lambda: True  # noqa: E731 - without overlays there is nothing to read
            serving: Serving | None = None
            if journal.record.on_overlays:
                serving = stack.enter_context(self._serving(given, journal.record))
                ready = lambda: serving.ready  # noqa: E731
            guest = Guest(given, journal, ready)
            guest.start()
            restored = self._filled(given, journal, guest, serving)
            Move(given, journal, guest).move()
        ending.finish(given, journal)
        return restored

    @contextmanager
    def _serving(self, given: Given, record: Record) -> Iterator[Serving]:
        with socket_directory(given, record) as path:
            serving = Serving(
                given.output,
                given.point,
                [disk.target for disk in record.disks if disk.attached],
                path,
                users_of_socket(given),
                self.settings.output_stall_timeout,
                self.reporter,
                given.domain.name,
                self.stop.check,
            )
            with serving.running():
                yield serving

    def _filled(
        self, given: Given, journal: Journal, guest: Guest, serving: Serving | None
    ) -> Sequence[RestoredImage]:
        """Restore the images in a thread, and attend to the guest meanwhile."""
        outcome = begun(partial(filling.fill, given, journal))
        try:
            while not wait([outcome], POLL).done:
                self.stop.check()
                guest.attend()
                if serving:
                    serving.check()
        except BaseException as error:  # whatever it was, nothing changes the images any more after this
            ended = TransientError("the guest is no longer attended to")
            self.stop.request(error if isinstance(error, BackupError) else ended)
            wait([outcome])
            raise
        return outcome.result()


def _recorded(cluster: Cluster, places: Mapping[str, Image]) -> Record | None:
    """Return the record of what is under way with one of these images. Raises BackupError."""
    found = (records.read(cluster, image) for image in places.values())
    return next((record for record in found if record), None)


def _require_same(record: Record, domain: RestoredDomain, new_uuid: bool) -> None:
    """Raise ConfigError if what is under way is not what is ordered."""
    if record.name != domain.name or (record.uuid != domain.uuid and not new_uuid):
        message = f"an {record.title}, UUID {record.uuid}, to the same images is under way"
        raise ConfigError([BackupError(message, "repeat that command, with the same options")])
