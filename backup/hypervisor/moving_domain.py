"""A running domain whose disks are copied from overlays into other images, below its guest.

(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCopy)
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import libvirt

from ..errors import DomainGone
from ..model import State
from .connection import Hypervisor
from .disk_xml import attribute
from .domain_state import state_of
from .errors import HypervisorError, libvirt_errors

COPY = libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
TRANSIENT_JOB = libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB  # else only a domain that is not defined has any
PIVOT = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
UNDEFINE = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
UNDEFINE |= getattr(libvirt, "VIR_DOMAIN_UNDEFINE_TPM", 0)  # since libvirt 8.9
# Why a domain is shut off that nobody has shut down.
BY_ACCIDENT = (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)


@dataclass(frozen=True)
class RunningDisk:
    """The image that a disk has now, and whether that is being copied. `ready`: the copy has all of it."""

    image: str
    copied: bool
    ready: bool


@dataclass(frozen=True)
class MovingDomain:
    """A domain that is moved. All methods raise HypervisorError, and DomainGone if it is not defined."""

    hypervisor: Hypervisor
    uuid: str

    def state(self) -> State | None:
        """Return its state, None if it is not defined."""
        with suppress(DomainGone), self._errors("cannot read the domain's state") as handle:
            return state_of(handle)
        return None

    def paused_by_error(self) -> bool:
        """Return whether a read or write that failed has paused it."""
        with self._errors("cannot read the domain's state") as handle:
            return bool(
                tuple(handle.state()) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
            )

    def ended_by_accident(self) -> bool:
        """Return whether its QEMU has ended although nobody shut it down."""
        with self._errors("cannot read the domain's state") as handle:
            state, why = handle.state()
            return state == libvirt.VIR_DOMAIN_SHUTOFF and why in BY_ACCIDENT

    def disks(self) -> Mapping[str, RunningDisk]:
        """Return the disks that it has now, or will have after its next start, by their targets."""
        with self._errors("cannot read the domain's definition") as handle:
            xml = handle.XMLDesc(0)
        found = {}
        for disk in ElementTree.fromstring(xml).iterfind("./devices/disk"):
            mirror = disk.find("mirror")
            ready = mirror is not None and mirror.get("ready") == "yes"
            image = attribute(disk, "source", "name")
            found[attribute(disk, "target", "dev")] = RunningDisk(image, mirror is not None, ready)
        return found

    def start_copy(self, target: str, destination: str) -> None:
        """Begin to copy what the guest has written into the image of this <disk>, and then what it writes."""
        with self._errors(f"cannot copy {target}") as handle:
            handle.blockCopy(target, destination, {}, COPY | TRANSIENT_JOB)

    def copied_bytes(self, target: str) -> tuple[int, int]:
        """Return how many bytes are copied, and of how many; both 0 if nothing is being copied."""
        with self._errors(f"cannot read how far the copy of {target} is") as handle:
            job = handle.blockJobInfo(target)
        return (int(job["cur"]), int(job["end"])) if job else (0, 0)

    def cancel_copy(self, target: str) -> None:
        """End a copy; the disk stays where it is."""
        with self._errors(f"cannot cancel the copy of {target}") as handle:
            handle.blockJobAbort(target)

    def pivot(self, target: str) -> None:
        """Let the disk have the copy as its image from now on."""
        with self._errors(f"cannot move {target}") as handle:
            handle.blockJobAbort(target, PIVOT)

    def pause(self) -> None:
        """Pause its processors. Before this returns, QEMU has flushed all disks."""
        with self._errors("cannot pause the domain") as handle:
            handle.suspend()

    def resume(self) -> None:
        """Resume it; that it runs then is not certain: see `paused_by_error`."""
        with self._errors("cannot resume the domain") as handle:
            handle.resume()

    def undefine(self) -> None:
        """Undefine it, with its NVRAM and the state of its TPM."""
        with suppress(DomainGone), self._errors("cannot undefine the domain") as handle:
            handle.undefineFlags(UNDEFINE)

    @contextmanager
    def _errors(self, action: str) -> Iterator[Any]:
        handle = self.hypervisor.handle(self.uuid)
        with libvirt_errors(action):
            yield handle


def is_over(error: HypervisorError) -> bool:
    """Return whether libvirt has refused as the domain does not run, or has no such job, any more."""
    return bool(error.code == libvirt.VIR_ERR_OPERATION_INVALID)
