"""libvirt: domains, their definitions and states, secrets, pause and resume."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

import libvirt

from ..errors import BackupError, DomainGone, TransientError
from ..model import TPM_STATE, ClusterAddress, Definition, Disk, Domain, State
from ..system.time_limit import Bounded, CheckStop, NoThread, Result, never_stop, within
from . import domain_xml, node_files, node_users
from .described_domain import described
from .disk_xml import Places
from .domain_state import cancel_migration, has_job, not_saved, state_of
from .errors import HypervisorError, libvirt_errors
from .firmware import unnamed_nvram, with_current_loader, writable_loader
from .guest_agent import GuestAgent
from .guest_mounts import Mount, PartialFreeze
from .mapped_device import mapped_image
from .nvram import first_nvram, read_nvram
from .storage_pools import pool_xml, read_file
from .tpm_state import with_current_tpm

# Codes of a resume of a domain that is not paused: QEMU's driver, libvirt's test driver.
NOT_PAUSED = {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INTERNAL_ERROR}

ANSWER_LIMIT = 5  # seconds within which a libvirt that was too slow has to answer a simple call
CLOSE_LIMIT = 2  # seconds to close a connection; one that hangs ends with the process


class Hypervisor:
    """A connection to libvirt. Close it; or use it as a context manager.

    Connecting, and calls that have a `check_stop`, are abandoned when that raises the reason to stop. All
    other calls are awaited, such as a freeze, a thaw, a pause or a resume.
    """

    def __init__(self, uri: str, timeout: int = 60, check_stop: CheckStop = never_stop) -> None:
        """Connect. Raises HypervisorError.

        `timeout` limits each call, in seconds; calls of a guest agent get its own timeout on top.
        """
        self.uri = uri
        self._timeout = timeout
        self.local = not urlsplit(uri).hostname
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else it writes to stderr
        self.connection_number = 1  # grows with each restart of libvirtd that was noticed
        self._open = self._connect(check_stop)

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open.under_way:  # an abandoned call would use freed memory: its end closes the connection
            return
        # it hangs, and the calls that mattered have failed already
        with suppress(TimeoutError, NoThread):
            self._open.within(min(CLOSE_LIMIT, self._timeout)).close()

    def domains(self, check_stop: CheckStop = never_stop) -> Sequence[Domain]:
        """List all domains, except those that vanish meanwhile.

        Raises HypervisorError, also if libvirt hangs while listing.
        """
        with libvirt_errors("cannot list the domains"):
            handles = self._connection(check_stop).listAllDomains(0)
        found = []
        for handle in handles:
            try:
                found.append(self._described(handle))
            except DomainGone:
                continue
            except BackupError as error:  # the failure of this domain only
                check_stop()
                if isinstance(error.__cause__, TimeoutError):
                    self._require_answer(check_stop)
                name, uuid = handle.name(), handle.UUIDString()
                found.append(Domain(uuid, name, State.BUSY, (), uri=self.uri, problem=error))
        return sorted(found, key=lambda domain: domain.name)

    def domain(self, uuid: str, check_stop: CheckStop = never_stop) -> Domain:
        """Return a domain as it is now; its state is BUSY if it has a libvirt job. Raises DomainGone."""
        handle = self.handle(uuid, check_stop)
        found = self._described(handle)
        return replace(found, state=State.BUSY) if has_job(handle) else found

    def state(self, uuid: str) -> State:
        """Return the domain's state, quickly, as its guest may be frozen. Raises DomainGone."""
        handle = self.handle(uuid)
        with libvirt_errors("cannot read the domain's state"):
            return State.BUSY if has_job(handle) else state_of(handle)

    def cancel_migration(self, uuid: str, sending: bool = False) -> bool:
        """Cancel the domain's live migration to another node; return False if there is none.

        `sending`: only one that sends the domain's memory, which it does not do as long as it is prepared.
        """
        return cancel_migration(self.handle(uuid), sending)

    def instance(self, uuid: str) -> int:
        """Return libvirt's id of the running domain, -1 if it is not running. Raises DomainGone."""
        with libvirt_errors("cannot read the domain's id"):
            return int(self.handle(uuid).ID())

    def secret(self, address: ClusterAddress, check_stop: CheckStop = never_stop) -> str:
        """Return the cephx key that the disk's <auth> refers to, "" if there is none."""
        connection = self._connection(check_stop)
        name = address.secret_uuid or address.secret_usage
        if not name:
            return ""
        hint = "see virsh secret-list; libvirt does not return secrets with private='yes'"
        with libvirt_errors(f"cannot get libvirt's secret {name} of client.{address.user}", hint):
            if address.secret_uuid:
                secret = connection.secretLookupByUUIDString(address.secret_uuid)
            else:
                secret = connection.secretLookupByUsage(
                    libvirt.VIR_SECRET_USAGE_TYPE_CEPH, address.secret_usage
                )
            return base64.b64encode(secret.value()).decode()

    def definition(self, domain: Domain, check_stop: CheckStop = never_stop) -> Definition:
        """Return what is needed to define the domain again. Raises BackupError if NVRAM cannot be read."""
        handle = self.handle(domain.uuid, check_stop)
        with libvirt_errors(f"cannot get the definition of {domain.name}"):
            secure = libvirt.VIR_DOMAIN_XML_SECURE
            inactive = handle.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
            live = handle.XMLDesc(secure) if handle.isActive() else ""
            autostart, besides = bool(handle.autostart()), tuple(not_saved(handle))
        path = domain_xml.nvram_path(live or inactive)

        def read() -> tuple[str, bytes]:
            if path or live:
                return path, read_nvram(path, domain.state, self._read)
            return first_nvram(unnamed_nvram(inactive, domain.name), self._read)

        path_and_nvram = self._of_node(read, check_stop=check_stop) if self.local else read()
        return Definition(inactive, live, *path_and_nvram, autostart, besides)

    def with_files(
        self, domain: Domain, definition: Definition, limit: int, check_stop: CheckStop = never_stop
    ) -> tuple[Definition, tuple[Disk, ...]]:
        """Return the definition with the files that it needs, of `limit` bytes at most, and its TPM's state.

        Also those that are not saved, described like disks. Raises BackupError if the TPM's state cannot be
        read, or a file system hangs.
        """
        read = partial(node_files.with_files, domain, definition, limit, self.local)
        return self._of_node(read, check_stop=check_stop)

    def unsaved_files(self, domain: Domain, limit: int) -> Sequence[Disk]:
        """Return the files that the domain needs and that are not saved, described like disks.

        Raises BackupError if its TPM's state cannot be read, or a file system hangs.
        """
        with libvirt_errors("cannot read the domain's definition"):
            handle = self.handle(domain.uuid)
            xmls = (handle.XMLDesc(0), handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        read = partial(node_files.read_files, domain, xmls, limit, self.local, read=False)
        return self._of_node(read)[1]

    def with_current_state(
        self, domain: Domain, definition: Definition, limit: float, check_stop: CheckStop = never_stop
    ) -> Definition:
        """Return the definition with NVRAM, firmware and TPM state as they are now. Raises BackupError.

        `limit`: seconds that it may take, as the guest may be frozen. On another node they stay as they were.
        """
        changing = any(file.use == TPM_STATE for file in definition.files) or definition.nvram_path
        if not (self.local and domain.state.active and (changing or writable_loader(definition.live_xml))):
            return definition

        def read() -> Definition:
            nvram = read_nvram(definition.nvram_path, domain.state, self._read)
            current = with_current_loader(definition)
            return replace(current, nvram=nvram, files=with_current_tpm(current, domain.uuid))

        return self._of_node(read, limit, check_stop)

    def needed_paths(self) -> frozenset[str]:
        """Return the paths of the files that the domains here boot from or need."""
        with libvirt_errors("cannot list the domains"):
            handles = self._connection().listAllDomains(0)
        found: set[str] = set()
        for handle in handles:
            with suppress(DomainGone), libvirt_errors("cannot read the domain's definition"):
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
                    found.update(path for _, path in node_files.needed_files(handle.XMLDesc(flags)))
        return frozenset(found)

    def qemu_users(self) -> frozenset[int]:
        """Return the UIDs that QEMU runs as, unless a domain's definition names another."""
        with libvirt_errors("cannot read libvirt's capabilities"):
            return frozenset(node_users.qemu_users(self._connection().getCapabilities()))

    def define(self, xml: str) -> None:
        """Define a domain, or redefine the one with its UUID."""
        connection = self._connection()
        with libvirt_errors(
            "cannot define the domain", "check that this node has everything that the definition names"
        ):
            connection.defineXML(xml)

    def set_autostart(self, uuid: str, autostart: bool) -> None:
        """Let libvirt start the domain whenever the node starts, or not."""
        handle = self.handle(uuid)
        option = "" if autostart else "--disable "
        with libvirt_errors("cannot set the domain's autostart", f"virsh autostart {option}{uuid}"):
            handle.setAutostart(autostart)

    def start(self, uuid: str, paused: bool = False) -> None:
        """Start a domain that is shut off. `paused`: its processors do not run."""
        handle = self.handle(uuid)
        with libvirt_errors("cannot start the domain", f"the domain is defined; try: virsh start {uuid}"):
            handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def run_once(self, xml: str) -> None:
        """Run a domain without defining it; libvirt destroys it when this connection ends."""
        connection = self._connection()
        try:
            with libvirt_errors("cannot start the domain"):
                connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
        except HypervisorError as error:
            if error.code == libvirt.VIR_ERR_INTERNAL_ERROR:  # what QEMU refuses has this code too
                error.transient = not self._open.isAlive()
            raise

    def destroy(self, uuid: str) -> None:
        """Destroy a domain; one that has already ended counts as success."""
        with suppress(DomainGone):
            handle = self.handle(uuid)
            with libvirt_errors("cannot destroy the domain"):
                handle.destroy()

    def probe_agent(
        self, domain: Domain, timeout: int, check_stop: CheckStop = never_stop
    ) -> PartialFreeze | None:
        """Check that the guest agent answers; see GuestAgent.probe."""
        handle = self.handle(domain.uuid, check_stop)
        return GuestAgent(handle, timeout, self._timeout, check_stop).probe()

    def mounts(
        self, domain: Domain, timeout: int, check_stop: CheckStop = never_stop
    ) -> Sequence[Mount] | None:
        """Return what the guest has mounted; see GuestAgent.mounts."""
        return GuestAgent(self.handle(domain.uuid, check_stop), timeout, self._timeout, check_stop).mounts()

    def freeze(self, domain: Domain, timeout: int, mountpoints: Sequence[str] = ()) -> int:
        """Freeze the guest's file systems; see GuestAgent.freeze.

        The limit is three times the agent's `timeout`, as libvirt waits half a minute for other agent calls.
        """
        agent = GuestAgent(self.handle(domain.uuid), timeout, min(self._timeout, 2 * timeout))
        return agent.freeze(mountpoints)

    def thaw(self, domain: Domain, timeout: int) -> int:
        """Thaw the guest's file systems; see GuestAgent.thaw."""
        return GuestAgent(self.handle(domain.uuid), timeout, self._timeout).thaw()

    def pause(self, domain: Domain) -> None:
        """Pause the domain's processors. Before this returns, QEMU has drained and flushed all disks."""
        handle = self.handle(domain.uuid)
        with libvirt_errors("cannot pause the domain"):
            handle.suspend()

    def resume(self, domain: Domain) -> None:
        """Resume the domain; one that is already running counts as success.

        The state is not checked before: unlike a check, the resume waits for a pause that timed out and may
        still happen.
        """
        handle = self.handle(domain.uuid)
        try:
            with libvirt_errors("cannot resume the domain"):
                handle.resume()
        except HypervisorError as error:
            with libvirt_errors("cannot read the domain's state"):
                if error.code not in NOT_PAUSED or handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    raise

    def _require_answer(self, check_stop: CheckStop) -> None:
        """Raise HypervisorError if libvirt hangs: every further domain would cost another timeout."""
        connection = self._open.within(min(ANSWER_LIMIT, self._timeout)).until_stop(check_stop)
        with libvirt_errors(f"libvirt at {self.uri} no longer answers"):
            connection.getLibVersion()

    def _connect(self, check_stop: CheckStop = never_stop) -> Any:
        hint = f"check that libvirtd is running: virsh --connect {self.uri} list; see LIBVIRT_URI"
        with libvirt_errors(f"cannot connect to libvirt at {self.uri}", hint):
            opened = within(self._timeout, partial(libvirt.open, self.uri), check_stop)
        return Bounded(opened, self._timeout)

    def _connection(self, check_stop: CheckStop = never_stop) -> Any:
        """Return the connection, a new one if libvirtd was restarted meanwhile."""
        if not self._open.isAlive():
            self._open = self._connect(check_stop)
            self.connection_number += 1
        return self._open if check_stop is never_stop else self._open.until_stop(check_stop)

    def handle(self, uuid: str, check_stop: CheckStop = never_stop) -> Any:
        """Return libvirt's own object of a domain, for this room. Raises DomainGone, HypervisorError."""
        with libvirt_errors(f"cannot find domain {uuid}"):
            return self._connection(check_stop).lookupByUUIDString(uuid)

    def _described(self, handle: Any) -> Domain:
        pool = partial(self._pool_xml, check_stop=handle.check_stop)
        return described(handle, self.uri, Places(pool, partial(mapped_image, local=self.local), self.local))

    def _pool_xml(self, name: str, check_stop: CheckStop) -> str:
        return pool_xml(self._connection(check_stop), name)

    def _of_node(
        self, read: Callable[[], Result], limit: float = math.inf, check_stop: CheckStop = never_stop
    ) -> Result:
        """Read files of this node, which may be on a file system that hangs. Raises BackupError."""
        try:
            return within(max(0, min(limit, self._timeout)), read, check_stop)
        except TimeoutError as error:
            hint = "does a file system hang that has its kernel, firmware, NVRAM or TPM state?"
            raise TransientError(f"cannot read the domain's files: {error}", hint) from error

    def _read(self, path: str) -> bytes:
        """Read a file of the domain's node. Raises OSError, HypervisorError."""
        if self.local:
            return Path(path).read_bytes()
        return read_file(self._connection(), self.uri, path)
