"""Finds domains whose memory is saved (virsh managedsave): it goes on with the disks' present content only.

A start after a restore would resume the guest with its old memory on other disks, and damage their data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..errors import BackupError
from ..model import Domain, Image, Level, State
from ..protocols import Reporter
from ..settings import Settings
from ..stored import SavedDomain
from ..system.module_import import failed_imports
from ..system.stop_request import StopRequest


def require_no_saved_memory(
    saved: SavedDomain,
    places: Mapping[str, Image],
    settings: Settings,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Raise BackupError if a domain with these images, by their disks' targets, has its memory saved.

    Where libvirt does not answer, a warning has the command to remove it.
    """
    originals = {one.target: one.image for one in saved.images}
    replaces = any(str(image) == originals[target] for target, image in places.items())
    for uri in settings.libvirt_uris:
        try:
            domains = _domains(uri, settings, stop)
        except BackupError as error:
            stop.check()
            if replaces:
                text = f"not checked whether virsh managedsave has saved its memory: {error.message}"
                hint = f"before its start, where it is defined: virsh managedsave-remove {saved.name}"
                reporter.message(Level.WARNING, saved.name, str(BackupError(text, hint)))
            continue
        for domain in domains:
            if domain.state is State.SAVED:
                _require_other_images(domain, places.values(), replaces and domain.uuid == saved.point.uuid)


def _domains(uri: str, settings: Settings, stop: StopRequest) -> Sequence[Domain]:
    """List the domains of a libvirt. Raises BackupError."""
    if failed := failed_imports(["libvirt"]):
        raise BackupError(str(failed[0]))
    from ..hypervisor.connection import Hypervisor

    with Hypervisor(uri, settings.libvirt_timeout, stop.check) as hypervisor:
        return hypervisor.domains(stop.check)


def _require_other_images(domain: Domain, places: Collection[Image], its_own: bool) -> None:
    """Raise BackupError if a domain whose memory is saved has one of these images. `its_own`: it has."""
    used = [str(disk.image) for disk in domain.disks if disk.image in places]
    if used or its_own:
        images = ", ".join(dict.fromkeys(used)) or "its images"
        message = f"virsh managedsave has saved the memory of domain {domain.name}, which uses {images}"
        hint = (
            f"virsh managedsave-remove {domain.name} discards the memory, which does not fit restored disks"
        )
        raise BackupError(message, hint)
