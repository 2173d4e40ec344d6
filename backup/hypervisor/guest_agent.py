"""The QEMU guest agent of a running domain, called through libvirt with a time limit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import libvirt
import libvirt_qemu

from ..errors import AlreadyFrozen, DomainGone
from ..system.time_limit import Bounded, CheckStop, never_stop, within
from .errors import HypervisorError, libvirt_errors
from .guest_mounts import BlockDevices, PartialFreeze, block_devices, partial_freeze

# Codes of an agent that does not answer, as opposed to answering with an error. 112 is new in libvirt 11.2.
SILENT_AGENT = {
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", 112),
}


RESET_LIMIT = 2  # seconds to reset the agent's limit after a request to stop


def is_silent(error: HypervisorError) -> bool:
    """Return whether the error is that the agent, or libvirt in its place, did not answer in time."""
    refused = {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED}
    return error.code in SILENT_AGENT - refused or isinstance(error.__cause__, TimeoutError)


class GuestAgent:
    """The agent of one domain. All methods raise HypervisorError, DomainGone."""

    def __init__(
        self, handle: Bounded, timeout: int, libvirt_timeout: int, check_stop: CheckStop = never_stop
    ) -> None:
        """`handle` is the virDomain.

        `timeout` is the agent's time limit in seconds, `libvirt_timeout` what libvirt itself gets on top.
        Calls are abandoned when `check_stop` raises the reason to stop, so only a probe may have one.
        """
        self._limit = libvirt_timeout + timeout
        self._handle = handle.within(self._limit).until_stop(check_stop)
        self._reset = handle.within(self._limit if check_stop is never_stop else RESET_LIMIT)
        self._check_stop = check_stop
        self._timeout = timeout

    def probe(self) -> PartialFreeze | None:
        """Raise HypervisorError unless the agent answers, AlreadyFrozen if the guest is frozen.

        Returns what to freeze, None for all.
        """
        with self._bounded():
            try:
                with libvirt_errors("the guest agent does not answer"):
                    return partial_freeze(self._handle.fsInfo(), self._block_devices)
            except HypervisorError as error:
                if error.code in SILENT_AGENT:
                    raise
                # the agent has answered: it does not support this command, or the guest is frozen
                if not self._has_too_many_mounts(error) and self._frozen():
                    raise AlreadyFrozen("another program has already frozen the guest") from error
        return None

    def freeze(self, mountpoints: Sequence[str] = ()) -> int:
        """Freeze the guest's file systems, all or those at the mountpoints; return their number.

        A freeze that failed can still happen later: always thaw after it.
        """
        with self._bounded(), libvirt_errors("cannot freeze the guest's file systems"):
            return int(self._handle.fsFreeze(list(mountpoints)) if mountpoints else self._handle.fsFreeze())

    def thaw(self) -> int:
        """Thaw the guest's file systems, return the number of those that were frozen."""
        with self._bounded(), libvirt_errors("cannot thaw the guest's file systems"):
            return int(self._handle.fsThaw())

    def _block_devices(self) -> BlockDevices:
        """Return what the guest's block devices are made of, as far as the agent knows."""
        info = {}
        for kind in (libvirt.VIR_DOMAIN_GUEST_INFO_DISKS, libvirt.VIR_DOMAIN_GUEST_INFO_FILESYSTEM):
            with suppress(HypervisorError), libvirt_errors("cannot list the guest's block devices"):
                info.update(self._handle.guestInfo(kind, 0))  # an agent before 5.2 does not know the first
        return block_devices(info)

    def _has_too_many_mounts(self, error: HypervisorError) -> bool:
        """Return whether the agent answers, although libvirt could not pass on its list of mounts.

        More than 256 (REMOTE_DOMAIN_FSINFO_MAX) are an error of RPC. The agent of a frozen guest refuses the
        command with which this is checked.
        """
        if error.code != libvirt.VIR_ERR_RPC or isinstance(error.__cause__, TimeoutError):
            return False
        with suppress(HypervisorError), libvirt_errors("the guest agent does not answer"):
            self._handle.getTime()
            return True
        return False

    def _frozen(self) -> bool:
        """Return whether file systems are frozen, False if that is unknown.

        Only for cases of doubt, as libvirt marks a domain as tainted by this command.
        """
        command = '{"execute": "guest-fsfreeze-status"}'
        ask = partial(libvirt_qemu.qemuAgentCommand, self._handle.bare, command, self._timeout, 0)
        try:
            with libvirt_errors("cannot read the state of the guest's file systems"):
                answer = within(self._limit, ask, self._check_stop)
        except HypervisorError:
            return False  # the freeze itself will then fail
        return bool(json.loads(answer)["return"] == "frozen")

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Limit the agent's time.

        The limit applies to all clients of the domain and cannot be read, so it is reset to the default.
        """
        self._set_timeout(self._handle, self._timeout)
        try:
            yield
        finally:
            # if this fails, the limit stays; the agent's result, or the error, matters more
            with suppress(HypervisorError, DomainGone):
                self._set_timeout(self._reset, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)

    def _set_timeout(self, handle: Bounded, timeout: int) -> None:
        """Set the limit; a domain that has shut down, and libvirt's test driver, have none."""
        try:
            with libvirt_errors("cannot set the guest agent's timeout"):
                handle.agentSetResponseTimeout(timeout)
        except HypervisorError as error:
            if error.code not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
                raise
