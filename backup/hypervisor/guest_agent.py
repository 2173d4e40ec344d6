"""The QEMU guest agent of a running domain, asked through libvirt, which by itself waits for ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import libvirt
import libvirt_qemu

from ..errors import DomainGone, FrozenAlready
from ..system.time_limit import Bounded, within
from .errors import HypervisorError, libvirt_errors

# Codes of an agent that says nothing, other than one that answers with an error. 112 came with libvirt 11.2.
SILENT_AGENT = {
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", 112),
}


class GuestAgent:
    """The agent of one domain. All raise HypervisorError, DomainGone."""

    def __init__(self, handle: Bounded, timeout: int, libvirt_timeout: int) -> None:
        """`handle` is the virDomain.

        `timeout`, in seconds, is what the agent gets for an answer, `libvirt_timeout` what libvirt itself
        gets beyond that.
        """
        self._handle = handle.within(libvirt_timeout + timeout)
        self._limit = libvirt_timeout + timeout
        self._timeout = timeout

    def probe(self) -> None:
        """Raise HypervisorError unless the agent answers, FrozenAlready if the guest is frozen."""
        with self._bounded():
            try:
                with libvirt_errors("the guest agent does not answer"):
                    self._handle.fsInfo()
            except HypervisorError as error:
                if error.code in SILENT_AGENT:
                    raise
                # an agent that refuses this command has answered: it does not know it, or the guest is frozen
                if self._frozen():
                    raise FrozenAlready("the guest is frozen already, by somebody else") from error

    def freeze(self) -> int:
        """Freeze the guest's file systems, return how many.

        A freeze that failed can still happen later: thaw after it in any case.
        """
        with self._bounded(), libvirt_errors("cannot freeze the guest's file systems"):
            return int(self._handle.fsFreeze())

    def thaw(self) -> int:
        """Thaw the guest's file systems, return how many were frozen."""
        with self._bounded(), libvirt_errors("cannot thaw the guest's file systems"):
            return int(self._handle.fsThaw())

    def _frozen(self) -> bool:
        """Ask whether file systems are frozen; False where that can't be asked.

        Asked only where there is a doubt, as libvirt marks a domain that is sent such a command as tainted.
        """
        command = '{"execute": "guest-fsfreeze-status"}'
        ask = partial(libvirt_qemu.qemuAgentCommand, self._handle.bare, command, self._timeout, 0)
        try:
            with libvirt_errors("cannot ask for the state of the guest's file systems"):
                answer = within(self._limit, ask)
        except HypervisorError:
            return False  # then the freeze itself will tell
        return bool(json.loads(answer)["return"] == "frozen")

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Bound what the agent may take.

        The bound holds for all users of the domain and can't be read back, so it is set to the default
        again afterwards.
        """
        self._set_timeout(self._timeout)
        try:
            yield
        finally:
            # If that fails, the bound stays; what the agent did, or the error, matters more.
            with suppress(HypervisorError, DomainGone):
                self._set_timeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)

    def _set_timeout(self, timeout: int) -> None:
        """A domain that has shut down, and libvirt's test driver, know no such thing, and need none."""
        try:
            with libvirt_errors("cannot set the guest agent's time limit"):
                self._handle.agentSetResponseTimeout(timeout)
        except HypervisorError as error:
            if error.code not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
                raise
