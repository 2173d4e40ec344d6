"""Putting right what a killed run left: guests that stand still, snapshots, locks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from .cluster import LockHeld
from .connect import connect_all
from .errors import BackupError
from .freeze import Holder
from .hypervisor import Hypervisor
from .journal import Journal
from .lock import domain_lock
from .model import Domain, Level, Reporter, State
from .node import only_run
from .settings import Settings
from .snapshots import remove_leftovers
from .stop import StopRequest


def clean_node(settings: Settings, reporter: Reporter) -> int:
    """Let all domains of this node go and remove their leftovers; return how many that failed for.

    Raises AlreadyRunning while a run is active, as what it left is not left.
    """
    with only_run(settings.runtime_dir), Hypervisor(settings.libvirt_uri) as hypervisor:
        failed = let_all_go(hypervisor, settings, reporter)
        return failed + remove_all_leftovers(hypervisor.domains(), hypervisor, settings, reporter)


def let_all_go(hypervisor: Hypervisor, settings: Settings, reporter: Reporter) -> int:
    """Thaw or resume every domain that a killed run noted; return how many that failed for.

    For the holder of the node's lock: nobody else can be holding them still on purpose.
    """
    journal = Journal(settings.runtime_dir)
    holder = Holder(hypervisor, journal, settings, reporter)
    failed = 0
    for note in journal.notes():
        try:
            holder.let_go(Domain(note.uuid, note.name, State.RUNNING, ()), note.hold)
            reporter.message(
                Level.WARNING, note.name, f"let go: a killed run had left it in {note.hold.value}"
            )
        except BackupError as error:
            failed += 1
            reporter.message(Level.ERROR, note.name, str(error))
    return failed


def remove_all_leftovers(
    domains: Sequence[Domain], hypervisor: Hypervisor, settings: Settings, reporter: Reporter
) -> int:
    """Remove the snapshots that killed runs left; return how many domains that failed for."""
    failed = 0
    for domain in domains:
        try:
            with ExitStack() as stack:
                _remove(domain, hypervisor, settings, reporter, stack)
        except LockHeld as error:
            reporter.message(Level.INFO, domain.name, error.message)
        except BackupError as error:
            failed += 1
            reporter.message(Level.ERROR, domain.name, str(error))
    return failed


def _remove(
    domain: Domain, hypervisor: Hypervisor, settings: Settings, reporter: Reporter, stack: ExitStack
) -> None:
    clusters = connect_all(domain, hypervisor, settings, stack)
    images = [(clusters[disk.address], disk.image) for disk in domain.disks if disk.image]
    if images:
        cluster, image = images[0]
        stack.enter_context(
            domain_lock(cluster, image, domain, settings.lock_duration, StopRequest(), reporter)
        )
    for cluster, image in images:
        remove_leftovers(cluster, image, domain, reporter)
