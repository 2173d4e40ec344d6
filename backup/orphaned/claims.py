"""Who can claim a snapshot of ours: a domain of this node, perhaps one of another node, or nobody."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum

from ..errors import BackupError
from ..model import Domain, Gap, State
from ..stored import StoredPoint
from .places import NodeDomains, reached
from .search import OwnSnapshot

_RUN_TIME = re.compile(r"\d{8}T\d{6}Z")


class Claim(Enum):
    """Who can claim a snapshot."""

    DOMAIN = "a domain of this node"
    UNKNOWN = "perhaps a domain of another node"
    NOBODY = "nobody"


@dataclass(frozen=True)
class Verdict:
    """Who can claim a snapshot, and why. `is_own`: this node made it, for a domain that it had then."""

    claim: Claim
    reason: str = ""
    is_own: bool = False


@dataclass(frozen=True)
class _Key:
    fsid: str
    image: str


class Claims:
    """Judges by the domains of this node, the restore points, and the snapshots' age.

    A leftover of a domain that this node does not have needs no claim: whether its run is alive, its lock
    shows. A base snapshot may be needed by another node, unless it is older than CLEANUP_DAYS or the image
    shows that no such domain can exist.
    """

    def __init__(
        self, nodes: Sequence[NodeDomains], complete: bool, points: Sequence[StoredPoint], days: int
    ) -> None:
        """`complete`: all libvirts of this node have answered. `days` is CLEANUP_DAYS, 0 for no limit."""
        self._complete = complete
        self._days = days
        self._points: Mapping[tuple[str, str], StoredPoint] = {
            (point.id.run, point.id.uuid): point for point in points
        }
        self._last: Mapping[str, StoredPoint] = {point.id.uuid: point for point in points}
        self._domains: dict[str, list[Domain]] = {}
        self._users: dict[_Key, list[Domain]] = {}
        self._uncertain: set[str] = set()  # UUIDs of domains of which not all images are known
        for node in nodes:
            for domain in node.domains:
                self._add(domain, node)

    def _add(self, domain: Domain, node: NodeDomains) -> None:
        self._domains.setdefault(domain.uuid, []).append(domain)
        if domain.problem or any(disk.gap is Gap.BROKEN for disk in domain.disks):
            self._uncertain.add(domain.uuid)
        for disk in domain.disks:
            if not disk.image:
                continue
            cluster = reached(node.clusters, disk.address)
            if cluster:
                self._users.setdefault(_Key(cluster.fsid, str(disk.image)), []).append(domain)
            else:
                self._uncertain.add(domain.uuid)

    def name_of(self, snapshot: OwnSnapshot) -> str:
        """Return the name of the domain that a snapshot is of, "" if it is not known."""
        uuid = snapshot.own.uuid
        if uuid in self._domains:
            return self._domains[uuid][0].name
        return self._last[uuid].domain if uuid in self._last else ""

    def origin_of(self, snapshot: OwnSnapshot) -> str:
        """Describe the domain and the node that a snapshot is of, as far as they are known."""
        name, point = self.name_of(snapshot), self._point(snapshot) or self._last.get(snapshot.own.uuid)
        text = (
            f"domain {name}, UUID {snapshot.own.uuid}" if name else f"a domain with UUID {snapshot.own.uuid}"
        )
        return f"{text}, saved by node {point.node}" if point and point.node else text

    def is_old(self, snapshot: OwnSnapshot) -> bool:
        """Return whether the run that made a snapshot is older than CLEANUP_DAYS."""
        found = _RUN_TIME.match(snapshot.own.run)
        if not found or not self._days:
            return False
        taken = datetime.strptime(found[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        return taken < datetime.now(timezone.utc) - timedelta(days=self._days)

    def verdict(self, snapshot: OwnSnapshot, with_bases: bool = False) -> Verdict:
        """Judge a snapshot; `with_bases`: the admin wants this node's base snapshots removed.

        May ask the cluster who has the image open. Raises BackupError.
        """
        uuid, users = snapshot.own.uuid, self._users_of(snapshot)
        if uuid in self._uncertain or any(domain.uuid == uuid for domain in users):
            return Verdict(Claim.DOMAIN)
        here = self._domains.get(uuid, [])
        lacks = "the domain no longer has this disk" if here else "this node has no such domain"
        if not snapshot.own.is_base:
            return Verdict(Claim.NOBODY, lacks)
        if self.is_old(snapshot):
            return Verdict(Claim.NOBODY, f"older than {self._days} days (CLEANUP_DAYS), and {lacks}")
        if self._renamed(snapshot):
            return Verdict(Claim.UNKNOWN, "the image was renamed since")
        if any(domain.state.active for domain in here):
            return Verdict(Claim.NOBODY, lacks)
        is_own = self._complete and self._made_here(snapshot)
        reason = self._reason(snapshot, here, users, is_own and with_bases, lacks)
        unused = reason and not self._used_elsewhere(snapshot, users)
        return Verdict(Claim.NOBODY if unused else Claim.UNKNOWN, reason or lacks, is_own)

    def _reason(
        self, snapshot: OwnSnapshot, here: Sequence[Domain], users: Sequence[Domain], wanted: bool, lacks: str
    ) -> str:
        """Return why no domain can claim a base snapshot if no other client uses its image; "" if one may."""
        if snapshot.in_trash:
            return "its image is in the trash"
        if not self._complete:
            return ""
        made_here = self._made_here(snapshot)
        if any(domain.state is not State.ELSEWHERE for domain in here) and made_here:
            return lacks
        name = self.name_of(snapshot)
        for user in users:  # an image may be shared with a domain of another node
            if made_here or (user.state.active and user.name == name):
                return f"its image belongs to domain {user.name}, which has another UUID"
        return lacks if wanted else ""

    def _point(self, snapshot: OwnSnapshot) -> StoredPoint | None:
        """Return the restore point of which a snapshot is the base, None if it is not in the repository."""
        return self._points.get((snapshot.own.run, snapshot.own.uuid))

    def _renamed(self, snapshot: OwnSnapshot) -> bool:
        """Return whether its image had another name at the backup: once renamed back, it serves again."""
        point = self._point(snapshot)
        names = [image.image for image in point.images] if point else []
        return bool(names) and str(snapshot.image) not in names

    def _made_here(self, snapshot: OwnSnapshot) -> bool:
        point = self._point(snapshot)
        return bool(point) and point.node == socket.gethostname()  # type: ignore[union-attr]

    def _users_of(self, snapshot: OwnSnapshot) -> Sequence[Domain]:
        if snapshot.in_trash:
            return ()
        return self._users.get(_Key(snapshot.cluster.fsid, str(snapshot.image)), ())

    def _used_elsewhere(self, snapshot: OwnSnapshot, users: Sequence[Domain]) -> bool:
        """Return whether a client that is no domain of this node has the image open for writing."""
        own = sum(domain.state.active for domain in users)
        try:
            return snapshot.cluster.watchers(snapshot.image) > own
        except BackupError:
            return True  # it cannot be found out
