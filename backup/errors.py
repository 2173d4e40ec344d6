"""The errors that an admin can act on. Everything else that is raised is a bug."""

from __future__ import annotations

from collections.abc import Sequence


def reason(error: OSError) -> str:
    """Return the operating system's message, in lower case, as a part of a longer one."""
    return (error.strerror or str(error)).lower()


class BackupError(Exception):
    """An error message in one line: what failed and on what; the hint explains how to fix it.

    `transient`: the cause may go away by itself, so that a retry may succeed. `damaged`: data is missing or
    damaged in the repository; restic's error of that is transient too, as a run may retry it.
    """

    transient = False
    damaged = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class TransientError(BackupError):
    """Something is busy or was interrupted: a retry may succeed."""

    transient = True


class PreviousBackupDamaged(TransientError):
    """The repository has lost data of the previous backup: a retry must not build on it."""


class ConfigError(BackupError):
    """All errors in the configuration or on the command line at once."""

    def __init__(self, errors: Sequence[BackupError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[BackupError, ...]]]:
        return type(self), (self.errors,)


class AlreadyRunning(BackupError):
    """Another run is active on this node; `active` distinguishes it from other ones."""

    def __init__(self, message: str, hint: str = "", active: str = "") -> None:
        super().__init__(message, hint)
        self.active = active


class Skipped(BackupError):
    """The domain is not backed up in this run, which is not a failure."""


class DomainGone(Skipped):
    """libvirt no longer knows the domain."""


class FreezeFailed(BackupError):
    """The freeze failed, or ended before the thaw.

    If the thaw failed too, the guest may still be frozen: its record in RUNTIME_DIR then stays.
    """


class CannotFreeze(FreezeFailed):
    """The guest, as it is, cannot be frozen: a retry would fail in the same way."""


class AlreadyFrozen(FreezeFailed):
    """Another program has frozen the guest, and has to thaw it."""


class NotDefined(BackupError):
    """A domain's images are restored, but libvirt could not define or start the domain."""


class DrillFailed(BackupError):
    """A drill failed: its restore point differs from what was saved, or could not be restored or booted."""


class NotPossibleHere(BackupError):
    """This node lacks what a command needs, which proves nothing about a restore point."""


class NotDrillable(NotPossibleHere):
    """A domain cannot be drilled here, which proves nothing about its restore point."""


class Interrupted(BackupError):
    """The run was interrupted by the signal of this number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (self.message, self.signal_number)
