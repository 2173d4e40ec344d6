"""The part of the command check that compares the groups of a node: do they fit together?"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

from ..command import COMMAND
from ..errors import BackupError
from ..hypervisor.connections import Hypervisors
from ..model import Domain, Finding
from ..selection import choose
from ..settings import Settings
from ..system.time_limit import CheckStop, never_stop
from ..watch.other_groups import APART_HINT, apart

OWN_FILES = ("state_dir", "report_file", "metrics_file")  # no two groups write to the same


def examine_groups(
    groups: Sequence[Settings],
    unreadable: Mapping[str, Sequence[BackupError]],
    check_stop: CheckStop = never_stop,
) -> Generator[Finding, None, None]:
    """Check all groups of the node, with the settings without a group if these are used.

    `unreadable` are the errors of settings files, by their groups. Raises what `check_stop` raises.
    """
    yield from [Finding(f"group {group}", error) for group, found in unreadable.items() for error in found]
    selected: dict[str, list[tuple[Settings, Domain]]] = {}
    listed: dict[tuple[str, ...], Sequence[Domain] | BackupError] = {}
    for one in groups:
        if one.libvirt_uris not in listed:
            listed[one.libvirt_uris] = _domains(one, check_stop)
        domains = listed[one.libvirt_uris]
        if isinstance(domains, BackupError):
            yield Finding(name_of(one), domains)
            continue
        chosen = [choice.domain for choice in choose(domains, one) if not choice.skipped]
        for domain in chosen:
            selected.setdefault(domain.uuid, []).append((one, domain))
        if one.group:
            more = f"`{COMMAND} --group {one.group} check` checks it"
            yield Finding(f"group {one.group}: {len(chosen)} domains to back up ({more})")
    yield from _shared_paths(groups)
    yield from _shared_domains(selected)


def name_of(settings: Settings) -> str:
    """Return how messages name a group."""
    return f"group {settings.group}" if settings.group else "the settings without a group"


def _domains(settings: Settings, check_stop: CheckStop) -> Sequence[Domain] | BackupError:
    try:
        with Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, check_stop) as hypervisors:
            return hypervisors.domains()
    except BackupError as error:
        check_stop()
        return error


def _shared_paths(groups: Sequence[Settings]) -> Iterator[Finding]:
    """Report groups without a common RUNTIME_DIR, and those with a common path that each needs alone."""
    for one in groups[1:]:
        if Path(one.node_dir) != Path(groups[0].node_dir):
            yield Finding("RUNTIME_DIR", BackupError(apart(one, groups[0]), APART_HINT))
    for constant in OWN_FILES:
        users: dict[str, list[str]] = {}
        for one in groups:
            if path := getattr(one, constant):
                users.setdefault(os.path.realpath(path), []).append(name_of(one))
        for path, names in users.items():
            if len(names) > 1:
                message = f"{' and '.join(names)} write to {path}"
                error = BackupError(message, f"set another {constant.upper()} for each group")
                yield Finding(constant.upper(), error)


def _shared_domains(selected: Mapping[str, Sequence[tuple[Settings, Domain]]]) -> Iterator[Finding]:
    for users in selected.values():
        if len(users) < 2:
            continue
        names = " and ".join(name_of(one) for one, _ in users)
        text = f"domain {users[0][1].name} is selected by {names}: it is backed up by each of them"
        if len({_repository(one) for one, _ in users if _is_incremental(one)}) > 1:
            text += "; each backup is a full read, as the base snapshots of one are none for the other"
        yield Finding(f"{text} (INCLUDE_DOMAINS, EXCLUDE_DOMAINS)", warning=True)


def _is_incremental(settings: Settings) -> bool:
    is_raw = settings.output == "directory" and settings.directory_format == "raw"
    return settings.output != "restic" and not is_raw


def _repository(settings: Settings) -> tuple[str, ...]:
    """Return what is different for groups whose base snapshots are none for each other."""
    if settings.output == "rbd":
        return ("rbd", settings.rbd_output_conf or settings.ceph_conf, settings.rbd_output_pool)
    if settings.output == "directory":
        return ("directory", settings.directory_output)
    return (settings.output, settings.restic_repository)
