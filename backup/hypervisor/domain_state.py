"""The state of a domain, from what libvirt reports, and what of it no backup has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import libvirt

from ..model import State
from .errors import HypervisorError, libvirt_errors

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: State.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: State.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: State.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: State.SUSPENDED,
    libvirt.VIR_DOMAIN_SHUTOFF: State.SHUT_OFF,
    libvirt.VIR_DOMAIN_CRASHED: State.CRASHED,
}
# Reasons of a pause that QEMU itself is about to end.
TRANSIENT_PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
}


def state_of(handle: Any) -> State:
    """Return the state of a virDomain. Raises libvirtError."""
    state, why = handle.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and why in TRANSIENT_PAUSES:
        return State.BUSY
    if state == libvirt.VIR_DOMAIN_SHUTOFF and why == libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED:
        return State.ELSEWHERE
    if state == libvirt.VIR_DOMAIN_SHUTOFF and handle.hasManagedSaveImage():
        return State.SAVED
    return STATES.get(state, State.BUSY)


def not_saved(handle: Any) -> Iterator[str]:
    """Yield what libvirt itself stores of a virDomain besides its definition. Raises libvirtError."""
    for what, names in (("snapshot", _snapshots(handle)), ("checkpoint", _checkpoints(handle))):
        if names:
            plural = "s" if len(names) > 1 else ""
            yield f"the metadata of libvirt's {what}{plural} {', '.join(names)}"
    if handle.hasManagedSaveImage():
        yield "the memory that virsh managedsave saved"


def _snapshots(handle: Any) -> list[str]:
    with suppress(libvirt.libvirtError):  # not every driver has them
        return sorted(handle.snapshotListNames())
    return []


def _checkpoints(handle: Any) -> list[str]:
    with suppress(libvirt.libvirtError):
        return sorted(one.getName() for one in handle.listAllCheckpoints())
    return []


def migrates_away(handle: Any, sending: bool = False) -> bool:
    """Return whether libvirt is migrating a virDomain to another node. Raises libvirtError.

    `sending`: only if its memory is on its way; while the other node prepares, there is none to count.
    """
    try:
        job = handle.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return False  # it migrates to this node
        raise
    if sending and job.get("memory_total", 1) == 0:
        return False
    return bool(job.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)


def cancel_migration(handle: Any, sending: bool) -> bool:
    """Cancel a virDomain's live migration to another node; return False if there is none."""
    try:
        with libvirt_errors("cannot cancel the domain's migration"):
            if not migrates_away(handle, sending):
                return False
            handle.abortJob()
    except HypervisorError as error:
        if error.code != libvirt.VIR_ERR_OPERATION_INVALID:  # it has just ended
            raise
        return False
    return True


def has_job(handle: Any) -> bool:
    """Return whether libvirt is migrating, saving or dumping the domain."""
    try:
        with libvirt_errors("cannot read the domain's job"):
            return bool(handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except HypervisorError as error:
        if error.code == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return True  # it migrates to this node: only the other one has the statistics
        if error.code in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
            return False  # the test driver has no jobs, nor has a domain that is shut off
        raise
