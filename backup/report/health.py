"""How a node and its domains stand, as the reports of past runs tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..exit_codes import FAILED, SUCCESS
from ..job_result import Status
from .report_types import DomainEntry, Report


@dataclass(frozen=True)
class Standing:
    """A domain's entries in the reports, newest first; at least one."""

    entries: Sequence[DomainEntry]

    @property
    def newest(self) -> DomainEntry:
        return self.entries[0]

    @property
    def job(self) -> DomainEntry | None:
        """What the last job came to that did not pass the domain over."""
        return next((one for one in self.entries if one["status"] != Status.SKIPPED), None)

    @property
    def saved(self) -> DomainEntry | None:
        """What the last job came to that saved the domain."""
        return next((one for one in self.entries if one["status"] == Status.SAVED), None)

    @property
    def failures(self) -> int:
        """How many of its last jobs have failed in a row; one that passed it over ends the row."""
        return len(list(takewhile(lambda one: one["status"] == Status.FAILED, self.entries)))

    @property
    def selected(self) -> bool:
        return self.newest.get("selected", True)


@dataclass(frozen=True)
class Overview:
    """`run` is the last one of all domains; where there was none, the last one; None: there was none at all.

    `domains` are those that were selected when they were last listed.
    """

    run: Report | None
    domains: Sequence[Standing]


def overview(reports: Iterable[Report]) -> Overview:
    """Read reports, newest first, for as far back as it takes.

    A domain that the last complete list of domains does not have is gone. A run of named domains has no list,
    nor one that a libvirt kept from looking, or that was interrupted: it changes nothing about the others.
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
        listed = listed or _is_list(report)
        if listed and all(_is_settled(entries) for entries in found.values()):
            break
    standings = [Standing(entries) for entries in found.values()]
    chosen = (one for one in standings if one.selected)
    return Overview(run, sorted(chosen, key=lambda one: one.newest["name"]))


def _is_list(report: Report) -> bool:
    return not report["named"] and not report["errors"] and report["exit_code"] in (SUCCESS, FAILED)


def _is_settled(entries: Sequence[DomainEntry]) -> bool:
    """Tell whether an older report has nothing more to say of the domain."""
    standing = Standing(entries)
    return standing.saved is not None or not standing.selected
