"""The QEMU guest agent of a running domain, called through libvirt with a time limit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import libvirt
import libvirt_qemu

from ..errors import AlreadyFrozen, CannotFreeze, DomainGone
from ..system.time_limit import Bounded, CheckStop, never_stop, within
from .errors import HypervisorError, libvirt_errors
from .guest_mounts import (
    BlockDevices,
    Mount,
    PartialFreeze,
    agent_mounts,
    block_devices,
    listed_mounts,
    partial_freeze,
)

# Codes of an agent that does not answer, as opposed to answering with an error. 112 is new in libvirt 11.2.
SILENT_AGENT = {
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", 112),
}


FREEZE_AT_MOST = 256  # mountpoints that libvirt passes on (REMOTE_DOMAIN_FSFREEZE_MOUNTPOINTS_MAX)
RESET_LIMIT = 2  # seconds to reset the agent's limit after a request to stop


def is_silent(error: HypervisorError) -> bool:
    """Return whether the error is that the agent, or libvirt in its place, did not answer in time."""
    refused = {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED}
    return error.code in SILENT_AGENT - refused or isinstance(error.__cause__, TimeoutError)


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """Raise HypervisorError if what a guest's agent says is nothing that an agent says, or no text at all.

    libvirt's module cannot convert what is no UTF-8; JSON may be nested without an end.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        hint = "is that qemu-guest-agent, and not broken? restart or reinstall it in the guest"
        raise HypervisorError(f"the guest agent answers, but {what} cannot be understood", hint) from error


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
        reset_limit = self._limit if check_stop is never_stop else RESET_LIMIT
        self._reset = handle.within(reset_limit).until_stop(never_stop)
        self._check_stop = check_stop
        self._timeout = timeout

    def probe(self) -> PartialFreeze | None:
        """Return what to freeze, None for all.

        Raises HypervisorError unless the agent answers, AlreadyFrozen if the guest is frozen, CannotFreeze if
        a freeze could block the agent for ever.
        """
        with self._bounded():
            try:
                with libvirt_errors("the guest agent does not answer"), _understood("its mounts"):
                    mounts = listed_mounts(self._handle.fsInfo())
                return partial_freeze(mounts, self._block_devices)
            except HypervisorError as error:
                if error.code in SILENT_AGENT or isinstance(error.__cause__, TimeoutError):
                    raise
                return self._probe_by_devices(error)

    def mounts(self) -> Sequence[Mount] | None:
        """Return what the guest has mounted; None if the agent answers, but does not list it.

        Raises HypervisorError if it does not answer.
        """
        with self._bounded():
            try:
                with libvirt_errors("the guest agent does not answer"), _understood("its mounts"):
                    return listed_mounts(self._handle.fsInfo())
            except HypervisorError as error:
                if error.code in SILENT_AGENT or isinstance(error.__cause__, TimeoutError):
                    raise
            self._command("guest-ping")
            return None

    def freeze(self, mountpoints: Sequence[str] = ()) -> int:
        """Freeze the guest's file systems, all or those at the mountpoints; return their number.

        A freeze that failed can still happen later: always thaw after it.
        """
        with self._bounded(), libvirt_errors("cannot freeze the guest's file systems"):
            if len(mountpoints) > FREEZE_AT_MOST:
                count = self._command("guest-fsfreeze-freeze-list", mountpoints=[*mountpoints])
                with _understood("the number of frozen file systems"):
                    return int(count)
            return int(self._handle.fsFreeze(list(mountpoints)) if mountpoints else self._handle.fsFreeze())

    def thaw(self) -> int:
        """Thaw the guest's file systems, return the number of those that were frozen."""
        with self._bounded(), libvirt_errors("cannot thaw the guest's file systems"):
            return int(self._handle.fsThaw())

    def _probe_by_devices(self, error: HypervisorError) -> PartialFreeze | None:
        """Probe an agent from which libvirt got no list of mounts, but this error.

        The guest is frozen, the agent does not know the command or fails at it, or there are more mounts than
        libvirt passes on (REMOTE_DOMAIN_FSINFO_MAX, 256), which is an error of RPC.
        """
        devices = self._block_devices()
        if devices.made_of and not devices.guest_made():
            return None  # nothing is in a file, and the agent of a frozen guest would not have listed them
        if self._frozen():
            raise AlreadyFrozen("another program has already frozen the guest") from error
        with suppress(HypervisorError):
            answer = self._command("guest-get-fsinfo")
            with _understood("its mounts"):
                mounts = agent_mounts(answer)
            return partial_freeze(mounts, lambda: devices)
        if found := devices.guest_made():
            message = f"its file systems cannot be listed, and {', '.join(found)} may hold one in a file"
            hint = "that must not be frozen; see why guest-get-fsinfo fails in the guest agent's log"
            raise CannotFreeze(message, hint) from error
        self._command("guest-ping")  # a lost connection, or an agent that is silent by now, says nothing
        return None

    def _block_devices(self) -> BlockDevices:
        """Return what the guest's block devices are made of, as far as the agent knows."""
        info = {}
        for kind in (libvirt.VIR_DOMAIN_GUEST_INFO_DISKS, libvirt.VIR_DOMAIN_GUEST_INFO_FILESYSTEM):
            listed = libvirt_errors("cannot list the guest's block devices")
            with suppress(HypervisorError), listed, _understood("its block devices"):
                info.update(self._handle.guestInfo(kind, 0))  # an agent before 5.2 does not know the first
        return block_devices(info)

    def _frozen(self) -> bool:
        """Return whether file systems are frozen, False if that is unknown."""
        try:
            return bool(self._command("guest-fsfreeze-status") == "frozen")
        except HypervisorError:
            return False  # the freeze itself will then fail

    def _command(self, name: str, **arguments: object) -> Any:
        """Return the agent's answer to a command.

        Only for cases of doubt, as libvirt marks a domain as tainted by this.
        """
        command = json.dumps({"execute": name, **({"arguments": arguments} if arguments else {})})
        ask = partial(libvirt_qemu.qemuAgentCommand, self._handle.bare, command, self._timeout, 0)
        with (
            libvirt_errors(f"the guest agent does not answer to {name}"),
            _understood(f"its answer to {name}"),
        ):
            return json.loads(within(self._limit, ask, self._check_stop))["return"]

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
