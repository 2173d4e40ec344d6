"""The state of a node and its domains, from the reports of past runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..exit_codes import FAILED, SUCCESS
from ..job_result import NOT_BEGUN, Status
from .report_types import DomainEntry, Report


@dataclass(frozen=True)
class DomainHealth:
    """A domain's entries in the reports, newest first; at least one."""

    entries: Sequence[DomainEntry]

    @property
    def newest(self) -> DomainEntry:
        return self.entries[0]

    @property
    def job(self) -> DomainEntry | None:
        """The result of the last job that did not skip the domain."""
        return next((one for one in self.entries if one["status"] != Status.SKIPPED), None)

    @property
    def saved(self) -> DomainEntry | None:
        """The result of the last job that saved the domain."""
        return next((one for one in self.entries if one["status"] == Status.SAVED), None)

    @property
    def failures(self) -> int:
        """How many of its last jobs failed in a row; a job that skipped it ends the row.

        One that an interrupted run never began says nothing about the domain.
        """
        begun = (one for one in self.entries if one.get("reason") != NOT_BEGUN)
        return len(list(takewhile(lambda one: one["status"] == Status.FAILED, begun)))

    @property
    def selected(self) -> bool:
        return self.newest.get("selected", True)


@dataclass(frozen=True)
class NodeHealth:
    """`run` is the last run of all domains; if there is none, the last run; None if there is no run at all.

    `domains` are those that were selected when they were last listed.
    """

    run: Report | None
    domains: Sequence[DomainHealth]


def node_health(reports: Iterable[Report]) -> NodeHealth:
    """Read reports, newest first, as far back as necessary.

    A domain that is missing in the last complete list of domains is gone. The list is incomplete in a run of
    named domains, with an unreachable libvirt, or that was interrupted: domains that it lacks may exist.
    """
    run: Report | None = None
    found: dict[str, list[DomainEntry]] = {}
    listed = False
    for report in reports:
        if run is None or (run["named"] and not report["named"]):
            run = report
        for entry in report["domains"]:
            if not listed or entry["uuid"] in found:
                found.setdefault(entry["uuid"], []).append(entry)
        listed = listed or _is_complete(report)
        if listed and all(_is_settled(entries) for entries in found.values()):
            break
    domains = [DomainHealth(entries) for entries in found.values()]
    chosen = (one for one in domains if one.selected)
    return NodeHealth(run, sorted(chosen, key=lambda one: one.newest["name"]))


def _is_complete(report: Report) -> bool:
    listed = report.get("all_listed", not report["errors"])  # other errors say nothing about the list
    return not report["named"] and listed and report["exit_code"] in (SUCCESS, FAILED)


def _is_settled(entries: Sequence[DomainEntry]) -> bool:
    """Whether older reports can add nothing about the domain."""
    health = DomainHealth(entries)
    return health.saved is not None or not health.selected
