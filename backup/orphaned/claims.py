"""Who can claim a snapshot of ours: a domain of this node, perhaps one of another node, or nobody."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

from ..command import COMMAND
from ..errors import BackupError
from ..model import Domain, Gap, State
from ..stored import CLOCK_ERROR, StoredPoint
from .places import NodeDomains, reached
from .search import OwnSnapshot

_RUN = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9A-Za-z]+")  # of all versions


class Claim(Enum):
    """Who can claim a snapshot."""

    DOMAIN = "a domain of this node"
    UNKNOWN = "perhaps a domain of another node"
    NOBODY = "nobody"


@dataclass(frozen=True)
class Verdict:
    """Who can claim a snapshot, and why.

    `hint`: when a snapshot of UNKNOWN claim is removed, or how; "" if another node's backups replace it.
    """

    claim: Claim
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True)
class _Key:
    fsid: str
    image: str


class Claims:
    """Judges by the domains of this node, the restore points, and the snapshots' age.

    A leftover of a domain that this node does not have needs no claim: whether its run is alive, its lock
    shows. A base snapshot may be needed by another node, unless it is older than CLEANUP_DAYS or the image
    shows that no such domain can exist. In any doubt a snapshot stays: an image that another client has open
    needs its base, as does a domain of a libvirt that has not answered.
    """

    def __init__(
        self, nodes: Sequence[NodeDomains], complete: bool, points: Sequence[StoredPoint], days: int
    ) -> None:
        """`complete`: all libvirts of this node have answered. `days` is CLEANUP_DAYS, 0 for no limit.

        `points` are all of the repository: without them a base would look like a leftover.
        """
        self._complete = complete
        self._days = days
        self._points: Mapping[tuple[str, str], StoredPoint] = {
            (point.id.run, point.id.uuid): point
            for point in sorted(points, key=lambda point: bool(point.manifest_id))  # complete ones count
        }
        self._last: Mapping[str, StoredPoint] = {point.id.uuid: point for point in points}
        self._domains: dict[str, list[Domain]] = {}
        self._users: dict[_Key, list[Domain]] = {}
        self._owners: dict[_Key, list[Domain]] = {}  # of images that they share with no other domain
        self._clients: dict[_Key, set[tuple[str, str]]] = {}  # of those owners that run
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
            if not cluster:
                self._uncertain.add(domain.uuid)
                continue
            key = _Key(cluster.fsid, str(disk.image))
            self._users.setdefault(key, []).append(domain)
            if not disk.shared:
                self._owners.setdefault(key, []).append(domain)
                if domain.state.active and disk.client:
                    self._clients.setdefault(key, set()).add((domain.uuid, disk.client))

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

    def kind_of(self, snapshot: OwnSnapshot) -> str:
        """Return what a snapshot is called in messages."""
        return "base snapshot" if self.is_base(snapshot) else "leftover snapshot"

    def is_base(self, snapshot: OwnSnapshot) -> bool:
        """Return whether a backup may build on a snapshot.

        Also on one without a base's name, if its run was killed after the manifest was saved.
        """
        point = self._point(snapshot)
        return snapshot.own.is_base or bool(point and point.manifest_id and point.images)

    def is_old(self, snapshot: OwnSnapshot) -> bool:
        """Return whether the run that made a snapshot is older than CLEANUP_DAYS."""
        began = _began(snapshot.own.run)
        if not began or not self._days:
            return False
        age = datetime.now(timezone.utc) - began - CLOCK_ERROR
        return age.total_seconds() > self._days * 24 * 3600

    def verdict(self, snapshot: OwnSnapshot, with_bases: bool = False) -> Verdict:
        """Judge a snapshot; `with_bases`: the admin wants base snapshots removed that are likely orphaned.

        May ask the cluster who has the image open.
        """
        uuid = snapshot.own.uuid
        if uuid in self._uncertain or any(user.uuid == uuid for user in self._of(snapshot, self._users)):
            return Verdict(Claim.DOMAIN)
        if not _began(snapshot.own.run):
            hint = f"if nothing needs it: rbd snap rm {snapshot.argument}"
            return Verdict(Claim.UNKNOWN, f"{snapshot.own.run} is not the name of a run", hint)
        if self.is_base(snapshot):
            return self._verdict_of_base(snapshot, with_bases)
        return Verdict(Claim.NOBODY, self._lacks(snapshot))

    def _verdict_of_base(self, snapshot: OwnSnapshot, with_bases: bool) -> Verdict:
        if not self._complete:  # one that does not answer may have the domain
            return Verdict(Claim.UNKNOWN, self._lacks(snapshot))
        if self._renamed(snapshot) and not self.is_old(snapshot):
            return Verdict(Claim.UNKNOWN, "its image was renamed since", self._removed_when())
        proof, sign = self._proof(snapshot), self._sign(snapshot)
        reason = proof or (sign if with_bases else "")
        if reason and self._used_elsewhere(snapshot):
            text = f"{reason}, but another client may have its image open"
            return Verdict(Claim.UNKNOWN, text, f"see rbd status {snapshot.image_argument}")
        if reason:
            return Verdict(Claim.NOBODY, reason)
        if sign:
            hint = f"{self._removed_when()}, or by {COMMAND} cleanup --all"
            return Verdict(Claim.UNKNOWN, f"{sign}, another node may have it", hint)
        return Verdict(Claim.UNKNOWN, self._lacks(snapshot))

    def _proof(self, snapshot: OwnSnapshot) -> str:
        """Return why no domain can claim a base snapshot if no other client uses its image; "" if one may."""
        here, lacks = self._domains.get(snapshot.own.uuid, []), self._lacks(snapshot)
        if self.is_old(snapshot):
            return f"older than {self._days} days (CLEANUP_DAYS), and {lacks}"
        if any(domain.state.active for domain in here):
            return lacks
        if snapshot.in_trash:
            return "its image is in the trash"
        if not self._made_here(snapshot):
            return ""
        if any(domain.state is not State.ELSEWHERE for domain in here):
            return lacks
        return next((_belongs_to(owner) for owner in self._of(snapshot, self._owners)), "")

    def _sign(self, snapshot: OwnSnapshot) -> str:
        """Return why it is likely that no domain can claim a base snapshot; "" if nothing shows that."""
        name = self.name_of(snapshot)
        for owner in self._of(snapshot, self._owners):
            if owner.state.active and owner.name == name:
                return _belongs_to(owner)
        return self._lacks(snapshot) if self._made_here(snapshot) else ""

    def _lacks(self, snapshot: OwnSnapshot) -> str:
        here = snapshot.own.uuid in self._domains
        return "the domain no longer has this disk" if here else "this node has no such domain"

    def _removed_when(self) -> str:
        return f"removed after {self._days} days" if self._days else "never removed by itself"

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

    def _of(self, snapshot: OwnSnapshot, domains: Mapping[_Key, list[Domain]]) -> Sequence[Domain]:
        """Return the domains that have its image; an image in the trash can be opened by none."""
        if snapshot.in_trash:
            return ()
        return domains.get(_Key(snapshot.cluster.fsid, str(snapshot.image)), ())

    def _used_elsewhere(self, snapshot: OwnSnapshot) -> bool:
        """Return whether a client that is no domain of this node may have the image open for writing."""
        key = _Key(snapshot.cluster.fsid, str(snapshot.image))
        own = set() if snapshot.in_trash else self._clients.get(key, set())
        try:
            return len(snapshot.cluster.watchers(snapshot.image)) > len(own)
        except BackupError:
            return True  # it cannot be found out


def _began(run: str) -> datetime | None:
    """Return when a run began, by its node's clock; None if no run can have this name."""
    found = _RUN.fullmatch(run)
    try:
        return datetime.strptime(found[1], "%Y%m%dT%H%M%S%z") if found else None
    except ValueError:
        return None


def _belongs_to(owner: Domain) -> str:
    return f"its image belongs to domain {owner.name}, which has another UUID"
