"""The errors that an admin can act on. Everything else that is raised is a bug."""

from __future__ import annotations

from collections.abc import Sequence


def reason(error: OSError) -> str:
    """Give what the operating system says, as a part of a message."""
    return (error.strerror or str(error)).lower()


class BackupError(Exception):
    """One line that says what failed, and a hint that says what to do about it.

    `passing` tells that it may be over in a while, so that a second attempt is worth it.
    """

    passing = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class NotNow(BackupError):
    """Another moment is better."""

    passing = True


class ConfigError(BackupError):
    """All that is wrong with the configuration or the command line, an error each."""

    def __init__(self, errors: Sequence[BackupError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[BackupError, ...]]]:
        return type(self), (self.errors,)


class AlreadyRunning(BackupError):
    """Another run is active on this node."""


class Skipped(BackupError):
    """The domain is not to be backed up now, which is no failure."""


class DomainGone(Skipped):
    """libvirt no longer knows the domain."""


class FreezeFailed(BackupError):
    """The freeze failed, or did not last until the thaw.

    Where the thaw failed too the guest may be frozen all the same: its record in RUNTIME_DIR then stays.
    """


class FrozenAlready(FreezeFailed):
    """Somebody else has frozen the guest, and is to thaw it."""


class NotDefined(BackupError):
    """A domain's images are restored, but the domain itself is not there, or does not run."""


class NotProven(BackupError):
    """A drill has failed: that the domain comes back as it was saved is not proven."""


class Interrupted(BackupError):
    """The run was asked to stop, by the signal of this number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (self.message, self.signal_number)
