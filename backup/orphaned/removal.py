"""Removes snapshots of ours that no domain on any node can claim."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Callable

from ..ceph.errors import ClusterError, ImageGone, LockHeld
from ..errors import BackupError
from ..job.domain_lock import CLEANUP, lock_at
from ..model import Level
from ..protocols import Reporter
from ..settings import Settings
from ..stored import StoredPoint
from ..system.concurrency_limit import Slots
from ..system.parallel_calls import Calls
from ..system.stop_request import StopRequest
from ..system.time_limit import awaited
from .claims import Claim, Claims, Verdict
from .places import NodeDomains, pool_places
from .search import OwnSnapshot, PoolSearch

AT_A_TIME = 16  # images that are opened at the same time
GRACE = 4  # seconds to release locks after a request to stop


@dataclass(frozen=True)
class OrphanRemoval:
    """Searches all known pools, and removes the snapshots that nobody can claim.

    Failures are warnings: they are no domain's of this node. `with_bases`: also base snapshots that this node
    made of domains that it no longer has. `limit`: seconds for the search.
    """

    settings: Settings
    reporter: Reporter
    stop: StopRequest
    deletions: Slots
    with_bases: bool = False
    limit: float = math.inf

    def remove(
        self,
        nodes: Sequence[NodeDomains],
        complete: bool,
        points: Sequence[StoredPoint],
        close: Callable[[], None],
    ) -> None:
        """Remove them. `nodes` are this node's libvirts, `complete`: all of them have answered.

        `close` is called once no call uses the connections of `nodes`. Raises the reason to stop.
        """
        with ExitStack() as stack:
            calls = stack.enter_context(Calls(AT_A_TIME, self.stop.check, close, GRACE))
            places, missing = awaited(
                calls.submit(partial(pool_places, nodes, points, self.settings)), math.inf, self.stop.check
            )
            for pool in missing:
                self._warn("", f"pool {pool} (CLEANUP_POOLS) not searched: CEPH_USER cannot connect")
            search = PoolSearch(
                self.stop.check,
                partial(self._warn, ""),
                self._report_progress,
                self.settings.progress_interval,
                self.limit,
            )
            claims = Claims(nodes, complete, points, self.settings.cleanup_days)
            by_domain: dict[tuple[str, str], list[OwnSnapshot]] = {}
            for one in search.snapshots(places, calls):
                by_domain.setdefault((one.cluster.fsid, one.own.uuid), []).append(one)
            removals = [calls.submit(partial(self._judged, own, claims)) for own in by_domain.values()]
            for removal in removals:
                awaited(removal, math.inf, self.stop.check)

    def _judged(self, snapshots: Sequence[OwnSnapshot], claims: Claims) -> None:
        """Remove those of a domain's snapshots that nobody can claim, one after the other.

        Those that no backup replaces are reported.
        """
        for snapshot in snapshots:
            self.stop.check()
            name = claims.name_of(snapshot)
            verdict = claims.verdict(snapshot, self.with_bases)
            if verdict.claim is Claim.NOBODY:
                self._try_to_remove(snapshot, claims, verdict)
            elif verdict.hint:
                what = f"{claims.kind_of(snapshot)} {snapshot.name} of {snapshot.where}"
                self.reporter.message(Level.INFO, name, f"{what} stays: {verdict.reason} ({verdict.hint})")

    def _try_to_remove(self, snapshot: OwnSnapshot, claims: Claims, verdict: Verdict) -> None:
        """Remove a snapshot unless a run may be active; report what prevents it."""
        name = claims.name_of(snapshot)
        try:
            self._remove(snapshot, claims, verdict)
        except LockHeld as error:
            self.reporter.message(Level.INFO, name, error.message)
        except BackupError as error:
            self.stop.check()
            # demoted meanwhile: a mirror gets its snapshots, and loses them, where it is primary
            mirrored = isinstance(error, ClusterError) and error.number == errno.EROFS
            text = f"{claims.kind_of(snapshot)} of {claims.origin_of(snapshot)} not removed: {error}"
            self.reporter.message(Level.INFO if mirrored else Level.WARNING, name, text)

    def _remove(self, snapshot: OwnSnapshot, claims: Claims, verdict: Verdict) -> None:
        """Remove a snapshot under its domain's lock, which proves that no run is active that made it."""
        cluster, image, lost = snapshot.cluster, snapshot.image, StopRequest()
        duration = self.settings.lock_duration
        lock = lock_at(cluster, image.pool, image.namespace, snapshot.own.uuid, duration, CLEANUP)
        with lock.locked(lost, self.reporter, claims.name_of(snapshot)):
            if not _exists(snapshot):
                return  # its run has ended meanwhile
            with self.deletions.one():
                self.stop.check()
                lost.check()
                cluster.remove_snapshot(image, snapshot.name)
        text = f"removed {claims.kind_of(snapshot)} {snapshot.name} of {snapshot.where}"
        self._warn(claims.name_of(snapshot), f"{text} ({claims.origin_of(snapshot)}): {verdict.reason}")

    def _report_progress(self, done: int, number: int) -> None:
        self.reporter.message(Level.INFO, "", f"{done} of {number} images searched for leftovers")

    def _warn(self, domain: str, text: str) -> None:
        self.reporter.message(Level.WARNING, domain, text)


def _exists(snapshot: OwnSnapshot) -> bool:
    try:
        return snapshot.name in snapshot.cluster.snapshot_names(snapshot.image)
    except ImageGone:
        return False
