"""Maps libvirt's errors to errors that an admin can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from ..errors import BackupError, DomainGone
from ..system.time_limit import NoThread

# Codes of a libvirt that was restarted or cannot be reached.
DISCONNECTED = {
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_INTERNAL_ERROR,
}

# Codes of a command that libvirt's driver does not have, or does not permit this client.
NOT_CARRIED_OUT = {
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_DENIED,
    libvirt.VIR_ERR_ACCESS_DENIED,
}

# Texts with which a guest agent (qemu-ga, which is not translated) refuses a command instead of carrying it
# out; libvirt gives all errors of an agent the same code. The command is blocked (--block-rpcs), or was not
# built in, or Windows lacks VSS.
AGENT_REFUSES = re.compile(
    r"command (\S+ )?has (not been found|been disabled)"
    r"|this feature or command is not currently supported"
    r"|VSS failed to initialize",
    re.IGNORECASE,
)


class HypervisorError(BackupError):
    """libvirt refused or did not answer. `code` is libvirt's error code (virErrorNumber)."""

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message, hint)
        self.code = code
        self.transient = code in DISCONNECTED

    @property
    def refused(self) -> bool:
        """Whether libvirt or the guest agent refused the command as such, so that nothing was carried out."""
        return self.code in NOT_CARRIED_OUT or bool(AGENT_REFUSES.search(self.message))


@contextmanager
def libvirt_errors(action: str, hint: str = "") -> Iterator[None]:
    """Map errors of libvirt in the block to HypervisorError, or DomainGone."""
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainGone("the domain is no longer defined") from error
        raise HypervisorError(f"{action}: {error.get_error_message()}", hint, code) from error
    except TimeoutError as error:
        hint = "libvirt may hang: see the journal of libvirtd; a restart of libvirtd does not affect guests"
        raise HypervisorError(f"{action}: {error}", hint, libvirt.VIR_ERR_RPC) from error
    except NoThread as error:  # for a thaw, an error like any other of libvirt: it is retried
        raise HypervisorError(f"{action}: {error.message}", error.hint, libvirt.VIR_ERR_RPC) from error
