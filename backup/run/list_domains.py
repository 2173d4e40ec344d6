"""The domains of this node: which ones a run backs up, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import BackupError, ConfigError, DomainGone
from ..hypervisor.connections import Hypervisors
from ..job_result import JobResult, Status
from ..model import Domain, Level
from ..protocols import Reporter
from ..quiesce.booting import is_booting
from ..selection import Choice, choose, select_disks
from ..settings import Settings
from ..system.parallel_calls import Calls
from ..system.time_limit import CheckStop
from .largest_first import largest_first

AT_A_TIME = 16  # domains whose files are checked at the same time


def list_domains(
    names: Sequence[str], hypervisors: Hypervisors, settings: Settings, reporter: Reporter
) -> Sequence[Choice]:
    """List the domains and whether each is backed up; report libvirts that cannot be reached."""
    domains = hypervisors.domains()
    for error in hypervisors.unreachable:
        reporter.message(Level.ERROR, "", str(error))
    try:
        return choose(domains, settings, names)
    except ConfigError as error:
        if hypervisors.unreachable:  # maybe the name is right
            raise BackupError(
                error.message, "it may be defined on a libvirt that could not be reached"
            ) from error
        raise


def with_unsaved_files(
    choices: Sequence[Choice], hypervisors: Hypervisors, settings: Settings, check_stop: CheckStop
) -> Sequence[Choice]:
    """Add to the selected domains what is not saved of the files that they need; raise the reason to stop."""
    at = {hypervisor.uri: hypervisor for hypervisor in hypervisors}

    def with_files(choice: Choice) -> Choice:
        domain = choice.domain
        if choice.skipped or domain.problem:
            return choice
        try:
            unsaved = at[domain.uri].unsaved_files(domain, settings.max_file_size)
        except DomainGone:
            return choice
        except BackupError as error:
            return replace(choice, domain=replace(domain, problem=error))
        domain = replace(domain, disks=(*domain.disks, *unsaved))
        return replace(choice, domain=select_disks(domain, settings))

    with Calls(AT_A_TIME, check_stop) as calls:
        return list(calls.map(with_files, choices))


def skipped_domains(choices: Sequence[Choice]) -> Sequence[JobResult]:
    """Return the domains that are backed up at no libvirt, each with the reason."""
    chosen = {choice.domain.uuid for choice in choices if not choice.skipped}
    left = {choice.domain.uuid: choice for choice in choices if choice.domain.uuid not in chosen}
    return [
        JobResult(choice.domain.name, uuid, Status.SKIPPED, choice.skipped) for uuid, choice in left.items()
    ]


def ordered(
    choices: Sequence[Choice],
    names: Sequence[str],
    hypervisors: Hypervisors,
    settings: Settings,
    reporter: Reporter,
    check_stop: CheckStop,
) -> Sequence[tuple[Domain, int]]:
    """Return the selected domains with the sizes of their images, the largest first.

    Those that have just started come last: until then their agents may be connected.
    """
    domains = [choice.domain for choice in choices if not choice.skipped]
    chosen = {domain.uuid for domain in domains}
    for choice in choices:
        named = {choice.domain.name, choice.domain.uuid} & set(names)
        if named and choice.domain.uuid not in chosen:
            text = f"named, but not backed up: {choice.skipped}"
            reporter.message(Level.WARNING, choice.domain.name, text)
    sized = largest_first(domains, hypervisors, settings, check_stop) if domains else []
    return sorted(sized, key=lambda one: is_booting(one[0], settings))
