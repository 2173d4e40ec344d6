"""The status of the domains of several groups, as if they were of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BackupError, Interrupted
from ..model import Level
from ..protocols import Reporter
from .domain_status import DomainStatus, named, with_names
from .status import Status, StatusSearch


@dataclass(frozen=True)
class AllGroups:
    """Satisfies Search. A repository that cannot be read is reported, and costs the domains of its group.

    `unread` are the groups whose settings cannot be read.
    """

    searches: Sequence[StatusSearch]
    reporter: Reporter
    unread: Sequence[str] = ()

    def status(self, names: Sequence[str], ask_clusters: bool = True) -> Status:
        """As StatusSearch. A name has to be one of a domain of any group."""
        found, missing, errors = [], [*self.unread], []
        for search in self.searches:
            group = search.settings.group
            try:
                found.append(search.status((), ask_clusters))
            except Interrupted:
                raise
            except BackupError as error:
                text = f"group {group}: {error}" if group else str(error)
                self.reporter.message(Level.ERROR, "", text)
                missing.append(group or "no group")
                errors.append(error)
        if not found:
            raise errors[0]
        domains = _without_repeated([domain for one in found for domain in one.domains])
        # with a group missing, maybe a name that is not found is right
        domains = with_names(domains, names) if missing else named(domains, names)
        return Status(found[0].now, domains, all(one.complete for one in found), missing)


def _without_repeated(domains: Sequence[DomainStatus]) -> Sequence[DomainStatus]:
    """Leave out what a group does not back up, and another one shows, as both have the same repository."""
    shown = {one.newest.id for one in domains if one.newest and one.selected}
    once = []
    for one in domains:
        if one.selected or not one.newest or one.newest.id not in shown:
            once.append(one)
            if one.newest:
                shown.add(one.newest.id)
    return once
