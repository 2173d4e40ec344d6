"""The command check: can backups run? It takes seconds and changes no guest and no image."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable

from ..ceph.cluster import Cluster
from ..ceph.clusters import Clusters
from ..command import COMMAND
from ..errors import AlreadyFrozen, BackupError, reason
from ..hooks.hooks import check_hooks
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import Hypervisors
from ..instant.guest import DIRECTORY_LIMIT
from ..job.leftovers import base_snapshots
from ..job.snapshots import not_open
from ..model import ClusterAddress, Disk, Domain, Finding, Gap, Image, State
from ..orphaned.growing import growing
from ..orphaned.places import domains_of_nodes, known_points
from ..protocols import Output
from ..quiesce.booting import boot_seconds_left, is_booting
from ..selection import choose, effective, require_complete, select_disks
from ..settings import Settings
from ..system.parallel_calls import Calls
from ..system.private_directory import make_private
from ..system.time_limit import CheckStop, never_stop, within
from ..watch.node_lock import prepare_runtime_dir, require_writable
from .instant_restores import instant_restores

CEPH_LIMIT = 10  # seconds for an answer of Ceph
AGENT_LIMIT = 5  # seconds for an answer of a guest agent
AT_A_TIME = 16  # calls at the same time
GRACE = 4  # seconds for agents to answer after a request to stop, as their timeouts have to be reset


def examine(
    settings: Settings, output: Output, check_stop: CheckStop = never_stop
) -> Generator[Finding, None, None]:
    """Check everything that a backup needs, and yield each finding at once.

    Raises what `check_stop` raises, immediately even if a call hangs.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(f"interpreter {sys.executable} {version}, with libvirt, rados and rbd")
    yield _finding(f"RUNTIME_DIR {settings.runtime_dir}", lambda: prepare_runtime_dir(settings.runtime_dir))
    yield _finding(f"STATE_DIR {settings.state_dir}", lambda: _require_state_dir(settings.state_dir))
    if settings.report_file:
        yield _finding(f"REPORT_FILE {settings.report_file}", lambda: require_writable(settings.report_file))
    if settings.metrics_file:
        yield _finding(
            f"METRICS_FILE {settings.metrics_file}", lambda: require_writable(settings.metrics_file)
        )
    yield from _programs(settings)
    yield _instant_drill(settings)
    answers = yield from _output(settings, output, check_stop)
    try:
        hypervisors = Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, check_stop)
    except BackupError as error:
        check_stop()
        yield Finding("libvirt", error)
        return
    with hypervisors:
        domains = hypervisors.domains()
        choices = choose(domains, settings)
        yield from [Finding("libvirt", error) for error in hypervisors.unreachable]
        for hypervisor in hypervisors:
            chosen = [one.domain for one in choices if one.domain.uri == hypervisor.uri and not one.skipped]
            yield Finding(f"libvirt at {hypervisor.uri}: {len(chosen)} domains to back up")
            yield from _domains(chosen, hypervisor, settings, check_stop)
        if answers:
            yield from _growing(hypervisors, domains, settings, output, check_stop)


def _growing(
    hypervisors: Hypervisors,
    domains: Sequence[Domain],
    settings: Settings,
    output: Output,
    check_stop: CheckStop,
) -> Iterator[Finding]:
    """Report snapshots of ours that no backup replaces any more: each grows with every write of the guest.

    And instant restores that have not ended.
    """
    try:
        points = known_points(output, check_stop)
    except BackupError as error:
        check_stop()
        yield Finding(error.message, warning=True)
        return
    timeout, failed = min(CEPH_LIMIT, settings.ceph_timeout), list[str]()
    restores = instant_restores(hypervisors, domains, points, settings, timeout, check_stop, failed.append)
    yield from [Finding(one.title, warning=one.needs_admin) for one in restores]
    yield from [Finding(text, warning=True) for text in failed]
    stack = ExitStack()
    nodes = domains_of_nodes(hypervisors, domains, settings, timeout, stack)
    yield from growing(nodes, not hypervisors.unreachable, points, settings, check_stop, stack.close)


def _require_state_dir(path: str) -> None:
    """Create the directory, as a run does. Raises BackupError if it cannot be written."""
    try:
        make_private(Path(path))
    except OSError as error:
        raise BackupError(f"cannot create {path}: {reason(error)}", "see STATE_DIR") from error
    require_writable(f"{path}/reports")


def _programs(settings: Settings) -> Iterator[Finding]:
    """Check the admin's own programs; none is run."""
    if settings.notify_command:
        name = settings.notify_command[0]
        missing = None if shutil.which(name) else BackupError("program not found", "see NOTIFY_COMMAND")
        yield Finding(f"NOTIFY_COMMAND {name}", missing)
    if settings.hooks:
        yield from check_hooks(settings)


def _instant_drill(settings: Settings) -> Finding:
    """Report whether this node has what `drill --instant` needs, which no backup does."""
    programs = {"qemu-img": "qemu-utils", "fusermount3": "fuse3"}
    if missing := [package for name, package in programs.items() if not shutil.which(name)]:
        return Finding(f"drill --instant is not possible here: apt-get install {' '.join(missing)}")
    problems = {
        "the device /dev/fuse is missing: modprobe fuse": os.path.exists("/dev/fuse"),
        f"DRILL_DIR {settings.drill_dir} does not exist": os.path.isdir(settings.drill_dir),
        f"DRILL_DIR {settings.drill_dir} is longer than {DIRECTORY_LIMIT} bytes": (
            len(os.fsencode(settings.drill_dir)) <= DIRECTORY_LIMIT
        ),
        "it needs root": os.geteuid() == 0,
    }
    for problem, fine in problems.items():
        if not fine:
            return Finding(f"drill --instant is not possible here: {problem}")
    return Finding("drill --instant is possible: qemu-img, fusermount3 and DRILL_DIR are there")


def _output(settings: Settings, output: Output, check_stop: CheckStop) -> Generator[Finding, None, bool]:
    """Check the output; return whether it can be used."""
    problems = output.configuration_errors() or within(math.inf, output.problems, check_stop)
    subject = f"output {settings.output}"
    if problems:
        yield from [Finding(subject, problem) for problem in problems]
        return False
    yield Finding(subject)
    yield from [Finding(f"{subject}: {text}") for text in within(math.inf, output.advice, check_stop)]
    return True


def _domains(
    domains: Sequence[Domain], hypervisor: Hypervisor, settings: Settings, check_stop: CheckStop
) -> Iterator[Finding]:
    stack = ExitStack()
    clusters = stack.enter_context(
        Clusters(hypervisor.secret, settings, min(CEPH_LIMIT, settings.ceph_timeout))
    )
    with Calls(AT_A_TIME, check_stop, stack.close, GRACE) as calls:
        for domain in domains:
            yield from _selected_images(domain)
        for found in calls.map(lambda one: _files(one, hypervisor, settings), domains):
            yield from found
        yield from calls.map(lambda one: _agent(one, hypervisor, effective(one, settings)), domains)
        yield from _clusters(domains, clusters, settings, calls)


def _selected_images(domain: Domain) -> Iterator[Finding]:
    """Report what of the domain is not backed up, and a disk that keeps it from being backed up."""
    for disk in domain.disks:
        if disk.gap is Gap.FOREIGN:
            yield Finding(f"domain {domain.name}: {disk} is not backed up: {disk.skipped}")
    try:
        require_complete(domain)
    except BackupError as error:
        yield Finding(f"domain {domain.name}", error)


def _files(domain: Domain, hypervisor: Hypervisor, settings: Settings) -> Sequence[Finding]:
    """Report the files that the domain boots from or needs and that are not backed up."""
    subject = f"domain {domain.name}"
    try:
        unsaved = tuple(hypervisor.unsaved_files(domain, settings.max_file_size))
        domain = select_disks(replace(domain, disks=unsaved), settings)
        require_complete(domain)
    except BackupError as error:
        return [Finding(subject, error)]
    return [
        Finding(f"{subject}: {disk} is not backed up: {disk.skipped}")
        for disk in domain.disks
        if disk.gap is Gap.FOREIGN
    ]


def _agent(domain: Domain, hypervisor: Hypervisor, settings: Settings) -> Finding:
    """Report the consistency to expect; a missing agent is a problem only if a freeze is required."""
    expected = {
        State.SHUT_OFF: "shut off: offline",
        State.SAVED: "shut off, its memory saved: disks as after a power cut",
        State.PAUSED: "paused: stays paused",
        State.SUSPENDED: "suspended to memory: stays suspended",
        State.CRASHED: "crashed: disks as they are",
        State.BUSY: "starting, stopping, migrating, or another libvirt job is running on it",
    }.get(domain.state)
    if expected:
        return Finding(f"domain {domain.name}: {expected}")
    instead = {"pause": "will be paused for its snapshots", "crash": "will be backed up while it runs"}
    if settings.freeze == "never":
        return Finding(f"domain {domain.name}: {instead[settings.without_freeze]} (FREEZE)")
    if is_booting(domain, settings):
        seconds = boot_seconds_left(domain, settings)
        text = "has just started: a backup waits for its guest agent for up to"
        return Finding(f"domain {domain.name}: {text} {seconds:.0f} s more (AGENT_BOOT_TIMEOUT)")
    try:
        if not domain.agent_connected:
            raise BackupError(
                "no guest agent is connected", "install and start qemu-guest-agent in the guest"
            )
        if partial := hypervisor.probe_agent(domain, AGENT_LIMIT):
            partial.require_known()
    except BackupError as error:
        if settings.freeze == "required":
            return Finding(f"domain {domain.name}", error)
        then = "crash" if isinstance(error, AlreadyFrozen) else settings.without_freeze
        return Finding(f"domain {domain.name}: {error.message}; {instead[then]}")
    return Finding(f"domain {domain.name}: the guest agent answers")


def _clusters(
    domains: Sequence[Domain], clusters: Clusters, settings: Settings, calls: Calls
) -> Iterator[Finding]:
    """Connect with all credentials in use, then check the permissions in each pool, and open each image."""
    uses = [(domain, disk, disk.image) for domain in domains for disk in domain.disks if disk.image]
    reached = set()
    addresses = list(dict.fromkeys(disk.address for _, disk, _ in uses))
    for address, found in zip(addresses, calls.map(partial(_cluster, clusters, settings), addresses)):
        if found.problem is None:
            reached.add(address)
        yield found
    uses = [use for use in uses if use[1].address in reached]
    pools = {(disk.address, image.pool, image.namespace): image for _, disk, image in uses}
    yield from calls.map(lambda pool: _pool(clusters.at(pool[0][0]), pool[1]), list(pools.items()))
    yield from calls.map(lambda use: _image(use[0], use[1], clusters.at(use[1].address), use[2]), uses)


def _cluster(clusters: Clusters, settings: Settings, address: ClusterAddress) -> Finding:
    where = ",".join(address.monitors) or address.conf_file or settings.ceph_conf
    return _finding(f"cluster {where} as client.{address.user or 'admin'}", partial(clusters.at, address))


def _pool(cluster: Cluster, image: Image) -> Finding:
    return _finding(
        f"pool {image.place}: client.{cluster.user} may make snapshots",
        lambda: cluster.allow_snapshots(image),
    )


def _image(domain: Domain, disk: Disk, cluster: Cluster, image: Image) -> Finding:
    subject = f"domain {domain.name}, disk {disk.target}: image {image}"
    try:
        found = cluster.identified(image)
        if found.data_pool:
            cluster.require_not_full(found.data_pool)  # its own was asked, with all other images in it
        if domain.state.active and disk.written and not cluster.watchers(found):
            raise not_open([image], domain)
        notes = list(cluster.remarks(image))
        bases = base_snapshots(cluster, image, domain)
    except BackupError as error:
        return Finding(subject, error)
    if bases:
        text = f"has base snapshot {', '.join(bases)} for incremental backups"
        notes.append(f"{text} ({COMMAND} cleanup --all removes it)")
    return Finding(f"{subject} {'; '.join(notes)}".rstrip())


def _finding(subject: str, call: Callable[[], object]) -> Finding:
    try:
        call()
    except BackupError as error:
        return Finding(subject, error)
    return Finding(subject)
