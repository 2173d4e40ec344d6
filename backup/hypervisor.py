"""libvirt: domains, secrets, freeze, thaw, pause. The only importer of libvirt."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import libvirt
import libvirt_qemu

from . import domain_xml
from .bounded import Bounded, within
from .disk_xml import Places
from .errors import BackupError, DomainGone, FrozenAlready
from .kernel_device import mapped_image
from .model import ClusterAddress, Definition, Disk, Domain, Override, State
from .nvram import read_nvram
from .override import override

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: State.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: State.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: State.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: State.SUSPENDED,
    libvirt.VIR_DOMAIN_SHUTOFF: State.SHUT_OFF,
    libvirt.VIR_DOMAIN_CRASHED: State.CRASHED,
}
# Paused, but on its way to or from somewhere: QEMU itself will change that any moment.
PAUSED_IN_PASSING = {
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
}
# Codes of an agent that says nothing, other than one that answers with an error. 112 came with libvirt 11.2.
SILENT_AGENT = {
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", 112),
}
# Codes of a resume that finds nothing to resume: QEMU's driver, libvirt's test driver.
NOT_PAUSED = {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INTERNAL_ERROR}
# Codes of a libvirt that was restarted or is out of reach.
DISCONNECTED = {
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_INTERNAL_ERROR,
}


class HypervisorError(BackupError):
    """libvirt refused or did not answer. `code` is libvirt's (virErrorNumber)."""

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message, hint)
        self.code = code
        self.passing = code in DISCONNECTED


class Hypervisor:
    """A connection to libvirt. Close it; or use it as a context manager."""

    def __init__(self, uri: str, timeout: int = 60) -> None:
        """Connect. Raises HypervisorError.

        `timeout`, in seconds, bounds each call, beyond what a guest agent is given.
        """
        self.uri = uri
        self._timeout = timeout
        self._local = not urlsplit(uri).hostname
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # or it writes to standard error
        self._open = self._connect()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(TimeoutError):  # it hangs; whatever was to be done has failed over that already
            self._open.close()

    def domains(self) -> Sequence[Domain]:
        """List all domains, those that vanish meanwhile left out."""
        with _errors("cannot list the domains"):
            handles = self._connection().listAllDomains(0)
        found = []
        for handle in handles:
            try:
                found.append(self._described(handle))
            except DomainGone:
                continue
            except BackupError as error:  # this domain's failure alone
                name, uuid = handle.name(), handle.UUIDString()
                found.append(Domain(uuid, name, State.BUSY, (), uri=self.uri, problem=error))
        return sorted(found, key=lambda domain: domain.name)

    def domain(self, uuid: str) -> Domain:
        """Look one up as it is now; busy if libvirt is at work on it. Raises DomainGone."""
        handle = self._handle(uuid)
        found = self._described(handle)
        return replace(found, state=State.BUSY) if _has_job(handle) else found

    def state(self, uuid: str) -> State:
        """Tell what the domain is doing, at once: a guest may stand still. Raises DomainGone."""
        handle = self._handle(uuid)
        with _errors("cannot ask for the domain's state"):
            return State.BUSY if _has_job(handle) else _state(handle)

    def secret(self, address: ClusterAddress) -> str:
        """Give the cephx key that the disk's <auth> refers to, "" if it refers to none."""
        connection = self._connection()
        name = address.secret_uuid or address.secret_usage
        if not name:
            return ""
        hint = "see virsh secret-list; a secret with private='yes' is not handed out to anybody"
        with _errors(f"cannot get libvirt's secret {name} of client.{address.user}", hint):
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
        with _errors(f"cannot get the definition of {domain.name}"):
            secure = libvirt.VIR_DOMAIN_XML_SECURE
            inactive = handle.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
            live = handle.XMLDesc(secure) if handle.isActive() else ""
        # where libvirt chose the firmware itself, only the live XML names the file
        path = domain_xml.nvram_path(live or inactive)
        return Definition(inactive, live, path, read_nvram(path, domain.state, self._read))

    def probe_agent(self, domain: Domain, timeout: int) -> None:
        """Raise HypervisorError unless the guest agent answers within `timeout` seconds.

        Raises FrozenAlready if the guest is frozen.
        """
        with self._agent(domain, timeout) as handle:
            try:
                with _errors("the guest agent does not answer"):
                    handle.fsInfo()
            except HypervisorError as error:
                if error.code in SILENT_AGENT:
                    raise
                # an agent that refuses this command has answered: it does not know it, or the guest is frozen
                if self._frozen(handle, timeout):
                    raise FrozenAlready("the guest is frozen already, by somebody else") from error

    def freeze(self, domain: Domain, timeout: int) -> int:
        """Freeze the guest's file systems, return how many.

        A freeze that failed can still happen later: thaw after it in any case.
        """
        with self._agent(domain, timeout) as handle, _errors("cannot freeze the guest's file systems"):
            return int(handle.fsFreeze())

    def thaw(self, domain: Domain, timeout: int) -> int:
        """Thaw the guest's file systems, return how many were frozen."""
        with self._agent(domain, timeout) as handle, _errors("cannot thaw the guest's file systems"):
            return int(handle.fsThaw())

    def _frozen(self, handle: Any, timeout: int) -> bool:
        """Ask the guest agent whether file systems are frozen; False where that can't be asked.

        Asked only where there is a doubt, as libvirt marks a domain that is sent such a command as tainted.
        """
        command = '{"execute": "guest-fsfreeze-status"}'
        ask = partial(libvirt_qemu.qemuAgentCommand, handle.bare, command, timeout, 0)
        try:
            with _errors("cannot ask for the state of the guest's file systems"):
                answer = within(self._timeout + timeout, ask)
        except HypervisorError:
            return False  # then the freeze itself will tell
        return bool(json.loads(answer)["return"] == "frozen")

    def pause(self, domain: Domain) -> None:
        """Hold the domain's processors. QEMU then drains and flushes all disks before this returns."""
        handle = self._handle(domain.uuid)
        with _errors("cannot pause the domain"):
            handle.suspend()

    def resume(self, domain: Domain) -> None:
        """Let the domain run on; that somebody else has already done so is fine.

        Always asked for, as it waits behind a pause that was given up and may still happen; a look at the
        state would not.
        """
        handle = self._handle(domain.uuid)
        try:
            with _errors("cannot resume the domain"):
                handle.resume()
        except HypervisorError as error:
            with _errors("cannot ask for the domain's state"):
                if error.code not in NOT_PAUSED or handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    raise

    def _connect(self) -> Any:
        hint = f"is libvirtd running? try: virsh --connect {self.uri} list; see LIBVIRT_URI"
        with _errors(f"cannot connect to libvirt at {self.uri}", hint):
            return Bounded(within(self._timeout, partial(libvirt.open, self.uri)), self._timeout)

    def _connection(self) -> Any:
        """Give the connection, a new one if libvirtd was restarted meanwhile."""
        if not self._open.isAlive():
            self._open = self._connect()
        return self._open

    def _handle(self, uuid: str) -> Any:
        with _errors(f"cannot find domain {uuid}"):
            return self._connection().lookupByUUIDString(uuid)

    @contextmanager
    def _agent(self, domain: Domain, timeout: int) -> Iterator[Any]:
        """Bound what the guest agent may take, in seconds. By default libvirt waits for it for ever.

        The bound holds for all users of the domain and can't be read back, so it is set to the
        default again afterwards.
        """
        handle = self._handle(domain.uuid).within(self._timeout + timeout)
        self._set_agent_timeout(handle, timeout)
        try:
            yield handle
        finally:
            # If that fails, the bound stays; what the agent did, or the error, matters more.
            with suppress(HypervisorError, DomainGone):
                self._set_agent_timeout(handle, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)

    @staticmethod
    def _set_agent_timeout(handle: Any, timeout: int) -> None:
        """A domain that has shut down, and libvirt's test driver, know no such thing, and need none."""
        try:
            with _errors("cannot set the guest agent's time limit"):
                handle.agentSetResponseTimeout(timeout)
        except HypervisorError as error:
            if error.code not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
                raise

    def _described(self, handle: Any) -> Domain:
        with _errors("cannot read the domain's definition"):
            xml = handle.XMLDesc(0)
            state = _state(handle)
            inactive = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if state.active else xml
        problem = None
        try:  # the last word is what was set to last: --config, when the domain runs
            found = override(inactive) or override(xml)
        except BackupError as error:
            found, problem = None, error
        return Domain(
            uuid=handle.UUIDString(),
            name=handle.name(),
            state=state,
            disks=self._disks(xml, inactive),
            agent_connected=domain_xml.agent_connected(xml),
            override=found or Override(),
            uri=self.uri,
            problem=problem,
        )

    def _disks(self, xml: str, inactive: str) -> tuple[Disk, ...]:
        """Give the disks that the domain has now, then those that it will have when it is started next."""
        places = Places(self._pool_xml, partial(mapped_image, local=self._local), self._local)
        now = domain_xml.disks(xml, places)
        targets = {disk.target for disk in now}
        later = domain_xml.disks(inactive, places) if inactive is not xml else ()
        return now + tuple(disk for disk in later if disk.target not in targets)

    def _pool_xml(self, name: str) -> str:
        connection = self._connection()
        with _errors(f"cannot look up libvirt's storage pool {name}", "virsh pool-list --all"):
            return str(connection.storagePoolLookupByName(name).XMLDesc())

    def _read(self, path: str) -> bytes:
        """Read a file of the domain's node; another node's libvirt gives it out of a storage pool alone."""
        if self._local:
            return Path(path).read_bytes()
        connection, (directory, name) = self._connection(), os.path.split(path)
        hint = (
            f"libvirt hands out files of its pools alone: virsh pool-define-as nvram dir --target {directory}"
        )
        try:
            with _errors(f"cannot read {path} through libvirt at {self.uri}", hint):
                pool = connection.storagePoolLookupByTargetPath(directory)
                pool.refresh()
                content, stream = bytearray(), connection.newStream()
                pool.storageVolLookupByName(name).download(stream, 0, 0)
                stream.recvAll(lambda _stream, data, _: content.extend(data), None)
                stream.finish()
        except HypervisorError as error:
            if error.code == libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise FileNotFoundError(errno.ENOENT, "no such file") from error
            raise
        return bytes(content)


def _has_job(handle: Any) -> bool:
    """Tell whether a migration, a save or a dump is under way."""
    try:
        with _errors("cannot ask for the domain's job"):
            return bool(handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except HypervisorError as error:
        if error.code in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
            return False  # the test driver knows no jobs, and what does not run has none
        raise


def _state(handle: Any) -> State:
    state, why = handle.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and why in PAUSED_IN_PASSING:
        return State.BUSY
    if state == libvirt.VIR_DOMAIN_SHUTOFF and why == libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED:
        return State.ELSEWHERE
    if state == libvirt.VIR_DOMAIN_SHUTOFF and handle.hasManagedSaveImage():
        return State.SAVED
    return STATES.get(state, State.BUSY)


@contextmanager
def _errors(action: str, hint: str = "") -> Iterator[None]:
    """Map what libvirt raises to HypervisorError, or DomainGone."""
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainGone("the domain is no longer defined") from error
        raise HypervisorError(f"{action}: {error.get_error_message()}", hint, code) from error
    except TimeoutError as error:
        hint = "does libvirt hang? see the journal of libvirtd; restarting it harms no guest"
        raise HypervisorError(f"{action}: {error}", hint, libvirt.VIR_ERR_RPC) from error
