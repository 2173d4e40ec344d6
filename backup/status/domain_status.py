"""What is known of each domain: its newest restore point, its proofs, its base snapshots, its active job."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Optional

from ..command import COMMAND
from ..errors import BackupError, ConfigError
from ..model import Domain
from ..report.domain_record import DomainRecord
from ..selection import has_name
from ..stored import StoredPoint, is_future


@dataclass(frozen=True)
class BaseSnapshots:
    """A domain's base snapshots: how many, and how many bytes they hold at the most; None if unknown."""

    number: int = 0
    used_bytes: Optional[int] = 0


@dataclass(frozen=True)
class DomainStatus:
    """One domain. `selected`: a run of this node backs it up. `newest` is a complete restore point.

    `bases` is None, and `job` "", if the cluster was not asked, or did not answer. `job` is what holds the
    domain's lock now: "backup on node1". `group` is the group whose settings select it, "" for none.
    """

    name: str
    uuid: str
    selected: bool
    newest: Optional[StoredPoint]
    record: DomainRecord
    bases: Optional[BaseSnapshots] = None
    job: str = ""
    group: str = ""

    @property
    def shown(self) -> str:
        """Its name, with its group if it has one."""
        return f"{self.name} of group {self.group}" if self.group else self.name

    def age(self, now: datetime) -> Optional[timedelta]:
        """Return the newest restore point's age, 0 if another node's clock is ahead; None without one."""
        return max(timedelta(), now - self.newest.taken) if self.newest else None

    def is_late(self, now: datetime, limit: timedelta) -> bool:
        """Return whether it has no restore point that is at most as old as the limit.

        The age of one from the future is unknown, and must not pass for 0 until that time has come.
        """
        age = self.age(now)
        return age is None or age > limit or self.is_from_future(now)

    def is_from_future(self, now: datetime) -> bool:
        """Return whether all its restore points are from the future: a clock was wrong."""
        return self.newest is not None and is_future(self.newest.taken, now)


def all_domains(
    selected: Iterable[Domain], points: Sequence[StoredPoint], records: Mapping[str, DomainRecord]
) -> Sequence[DomainStatus]:
    """Return the domains that this node backs up, and those with a restore point, by name.

    `points` are the oldest first, as outputs list them; those of the future, which a wrong clock made, are no
    domain's newest one if there are others. A domain has the name of its definition on this node, or of its
    newest restore point.
    """
    points = sorted(points, key=lambda point: not is_future(point.taken))
    here = {domain.uuid: domain.name for domain in selected}
    names = {**{point.id.uuid: point.domain for point in points}, **here}
    newest = {point.id.uuid: point for point in points if point.manifest_id}
    found = [
        DomainStatus(name, uuid, uuid in here, newest.get(uuid), records.get(uuid, DomainRecord()))
        for uuid, name in names.items()
    ]
    return sorted(found, key=lambda one: (one.name, one.uuid))


def named(domains: Sequence[DomainStatus], names: Collection[str]) -> Sequence[DomainStatus]:
    """Return those with these names, UUIDs or patterns; without names all. Raises ConfigError."""
    unknown = [name for name in names if not with_names(domains, [name])]
    if unknown:
        hint = f"`{COMMAND} status` shows all domains"
        text = "this node backs up no domain {!r}, and there is no restore point of one"
        raise ConfigError([BackupError(text.format(name), hint) for name in unknown])
    return with_names(domains, names)


def with_names(domains: Sequence[DomainStatus], names: Collection[str]) -> Sequence[DomainStatus]:
    """As `named`, but names that no domain has are no error."""
    exact = {text for one in domains for text in (one.name, one.uuid)}
    return [
        one
        for one in domains
        if not names or any(has_name(one.name, one.uuid, name, exact) for name in names)
    ]
