"""libvirt: domains, their definitions and states, secrets, pause and resume."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import libvirt

from ..errors import BackupError, DomainGone
from ..model import ClusterAddress, Definition, Disk, Domain, Override, State
from ..system.time_limit import Bounded, CheckStop, never_stop, within
from . import domain_xml
from .disk_xml import Places
from .domain_state import has_job, state_of
from .errors import HypervisorError, libvirt_errors
from .guest_agent import GuestAgent
from .mapped_device import mapped_image
from .metadata import override
from .nvram import read_nvram
from .storage_pools import pool_xml, read_file

# Codes of a resume that finds nothing to resume: QEMU's driver, libvirt's test driver.
NOT_PAUSED = {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INTERNAL_ERROR}

ANSWER_LIMIT = 5  # seconds for a libvirt that has not answered in time to show that it answers at all
CLOSE_LIMIT = 2  # seconds to say goodbye to libvirt; a connection that hangs ends with the process


class Hypervisor:
    """A connection to libvirt. Close it; or use it as a context manager.

    Connecting, `domains` and `domain` are given up when their `check_stop` raises the reason to stop. Nothing
    else is: a freeze, a thaw, a pause or a resume that was begun is waited for.
    """

    def __init__(self, uri: str, timeout: int = 60, check_stop: CheckStop = never_stop) -> None:
        """Connect. Raises HypervisorError.

        `timeout`, in seconds, bounds each call, beyond what a guest agent is given.
        """
        self.uri = uri
        self._timeout = timeout
        self.local = not urlsplit(uri).hostname
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # or it writes to standard error
        self._open = self._connect(check_stop)

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(TimeoutError):  # it hangs; whatever was to be done has failed over that already
            self._open.within(min(CLOSE_LIMIT, self._timeout)).close()

    def domains(self, check_stop: CheckStop = never_stop) -> Sequence[Domain]:
        """List all domains, those that vanish meanwhile left out.

        Raises HypervisorError too if libvirt hangs in the middle of it.
        """
        with libvirt_errors("cannot list the domains"):
            handles = self._connection(check_stop).listAllDomains(0)
        found = []
        for handle in handles:
            try:
                found.append(self._described(handle))
            except DomainGone:
                continue
            except BackupError as error:  # this domain's failure alone
                check_stop()
                if isinstance(error.__cause__, TimeoutError):
                    self._require_answer(check_stop)
                name, uuid = handle.name(), handle.UUIDString()
                found.append(Domain(uuid, name, State.BUSY, (), uri=self.uri, problem=error))
        return sorted(found, key=lambda domain: domain.name)

    def domain(self, uuid: str, check_stop: CheckStop = never_stop) -> Domain:
        """Look one up as it is now; busy if libvirt is at work on it. Raises DomainGone."""
        handle = self._handle(uuid, check_stop)
        found = self._described(handle)
        return replace(found, state=State.BUSY) if has_job(handle) else found

    def state(self, uuid: str) -> State:
        """Tell what the domain is doing, at once: a guest may stand still. Raises DomainGone."""
        handle = self._handle(uuid)
        with libvirt_errors("cannot ask for the domain's state"):
            return State.BUSY if has_job(handle) else state_of(handle)

    def instance(self, uuid: str) -> int:
        """Give libvirt's id of the domain as it runs now, -1 if it does not. Raises DomainGone."""
        with libvirt_errors("cannot ask for the domain's id"):
            return int(self._handle(uuid).ID())

    def secret(self, address: ClusterAddress) -> str:
        """Give the cephx key that the disk's <auth> refers to, "" if it refers to none."""
        connection = self._connection()
        name = address.secret_uuid or address.secret_usage
        if not name:
            return ""
        hint = "see virsh secret-list; a secret with private='yes' is not handed out to anybody"
        with libvirt_errors(f"cannot get libvirt's secret {name} of client.{address.user}", hint):
            if address.secret_uuid:
                secret = connection.secretLookupByUUIDString(address.secret_uuid)
            else:
                secret = connection.secretLookupByUsage(
                    libvirt.VIR_SECRET_USAGE_TYPE_CEPH, address.secret_usage
                )
            return base64.b64encode(secret.value()).decode()

    def definition(self, domain: Domain) -> Definition:
        """Give all that is needed to define the domain again. Raises BackupError if NVRAM can't be read."""
        handle = self._handle(domain.uuid)
        with libvirt_errors(f"cannot get the definition of {domain.name}"):
            secure = libvirt.VIR_DOMAIN_XML_SECURE
            inactive = handle.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
            live = handle.XMLDesc(secure) if handle.isActive() else ""
        # where libvirt chose the firmware itself, only the live XML names the file
        path = domain_xml.nvram_path(live or inactive)
        return Definition(inactive, live, path, read_nvram(path, domain.state, self._read))

    def define(self, xml: str) -> None:
        """Define a domain, or change the definition of the one with its UUID."""
        connection = self._connection()
        with libvirt_errors("cannot define the domain", "does this node have what its definition names?"):
            connection.defineXML(xml)

    def start(self, uuid: str) -> None:
        """Start a domain that is shut off."""
        handle = self._handle(uuid)
        with libvirt_errors("cannot start the domain", f"it is defined: virsh start {uuid} tells more"):
            handle.create()

    def run_once(self, xml: str) -> None:
        """Run a domain that is not defined; libvirt destroys it when this connection ends."""
        connection = self._connection()
        with libvirt_errors("cannot start the domain"):
            connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)

    def destroy(self, uuid: str) -> None:
        """End a domain at once; that it has ended counts as success."""
        with suppress(DomainGone):
            handle = self._handle(uuid)
            with libvirt_errors("cannot destroy the domain"):
                handle.destroy()

    def probe_agent(self, domain: Domain, timeout: int) -> None:
        """Ask the guest agent whether it is there; see GuestAgent.probe."""
        self._agent(domain, timeout).probe()

    def freeze(self, domain: Domain, timeout: int) -> int:
        """Freeze the guest's file systems; see GuestAgent.freeze.

        It is given up after three times the agent's `timeout`, as libvirt waits for other calls of the agent
        for half a minute.
        """
        return GuestAgent(self._handle(domain.uuid), timeout, min(self._timeout, 2 * timeout)).freeze()

    def thaw(self, domain: Domain, timeout: int) -> int:
        """Thaw the guest's file systems; see GuestAgent.thaw."""
        return self._agent(domain, timeout).thaw()

    def pause(self, domain: Domain) -> None:
        """Hold the domain's processors. QEMU then drains and flushes all disks before this returns."""
        handle = self._handle(domain.uuid)
        with libvirt_errors("cannot pause the domain"):
            handle.suspend()

    def resume(self, domain: Domain) -> None:
        """Let the domain run on; that somebody else has already done so is fine.

        Always asked for, as it waits behind a pause that was given up and may still happen; a look at the
        state would not.
        """
        handle = self._handle(domain.uuid)
        try:
            with libvirt_errors("cannot resume the domain"):
                handle.resume()
        except HypervisorError as error:
            with libvirt_errors("cannot ask for the domain's state"):
                if error.code not in NOT_PAUSED or handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    raise

    def _require_answer(self, check_stop: CheckStop) -> None:
        """Raise HypervisorError if libvirt hangs: then all other domains would cost their time limits too."""
        connection = self._open.within(min(ANSWER_LIMIT, self._timeout)).until_stop(check_stop)
        with libvirt_errors(f"libvirt at {self.uri} no longer answers"):
            connection.getLibVersion()

    def _connect(self, check_stop: CheckStop = never_stop) -> Any:
        hint = f"is libvirtd running? try: virsh --connect {self.uri} list; see LIBVIRT_URI"
        with libvirt_errors(f"cannot connect to libvirt at {self.uri}", hint):
            opened = within(self._timeout, partial(libvirt.open, self.uri), check_stop)
        return Bounded(opened, self._timeout)

    def _connection(self, check_stop: CheckStop = never_stop) -> Any:
        """Give the connection, a new one if libvirtd was restarted meanwhile."""
        if not self._open.isAlive():
            self._open = self._connect(check_stop)
        return self._open if check_stop is never_stop else self._open.until_stop(check_stop)

    def _handle(self, uuid: str, check_stop: CheckStop = never_stop) -> Any:
        with libvirt_errors(f"cannot find domain {uuid}"):
            return self._connection(check_stop).lookupByUUIDString(uuid)

    def _agent(self, domain: Domain, timeout: int) -> GuestAgent:
        return GuestAgent(self._handle(domain.uuid), timeout, self._timeout)

    def _described(self, handle: Any) -> Domain:
        with libvirt_errors("cannot read the domain's definition"):
            xml = handle.XMLDesc(0)
            state = state_of(handle)
            inactive = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if state.active else xml
            disks = self._disks(xml, inactive, handle.check_stop)
        problem = None
        try:  # the last word is what was set to last: --config, when the domain runs
            found = override(inactive) or override(xml)
        except BackupError as error:
            found, problem = None, error
        return Domain(
            uuid=handle.UUIDString(),
            name=handle.name(),
            state=state,
            disks=disks,
            agent_connected=domain_xml.agent_connected(xml),
            override=found or Override(),
            uri=self.uri,
            problem=problem,
            instance=handle.ID(),
        )

    def _disks(self, xml: str, inactive: str, check_stop: CheckStop) -> tuple[Disk, ...]:
        """Give the disks that the domain has now, then those that it will have when it is started next."""
        pool = partial(self._pool_xml, check_stop=check_stop)
        places = Places(pool, partial(mapped_image, local=self.local), self.local)
        now = domain_xml.disks(xml, places)
        targets = {disk.target for disk in now}
        later = domain_xml.disks(inactive, places) if inactive is not xml else ()
        return now + tuple(disk for disk in later if disk.target not in targets)

    def _pool_xml(self, name: str, check_stop: CheckStop) -> str:
        return pool_xml(self._connection(check_stop), name)

    def _read(self, path: str) -> bytes:
        """Read a file of the domain's node. Raises OSError, HypervisorError."""
        if self.local:
            return Path(path).read_bytes()
        return read_file(self._connection(), self.uri, path)
