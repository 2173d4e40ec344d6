"""What the command files is to do, and what it came to."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ..errors import BackupError, ConfigError
from .copy_out import Copied
from .entries import Entry
from .volumes import Volume


@dataclass(frozen=True)
class FilesOrder:
    """What to list or copy, "" for what was not given.

    `disk`: vda, vda1, or GROUP/VOLUME of LVM; `key`: a file with the passphrase of encrypted disks.
    """

    domain: str
    at: str = "latest"
    path: str = ""
    disk: str = ""
    to: str = ""
    key: str = ""

    def require_consistent(self) -> None:
        """Raise ConfigError unless there is something to copy where it is to be copied to."""
        if self.key and not self.path:
            raise wrong_use("--key requires a PATH", "name a file or directory of the guest, such as /")
        if not self.to:
            return
        if not self.path:
            raise wrong_use("--to requires a PATH", "name a file or directory of the guest, such as /etc")
        if not os.path.isdir(self.to):
            raise wrong_use(f"{self.to} is not a directory", f"mkdir {shlex.quote(self.to)}")


@dataclass(frozen=True)
class Result:
    """The file systems; or with a path a directory's entries or what was copied, of the one of this name."""

    volumes: Sequence[Volume] = ()
    name: str = ""
    entries: Optional[Sequence[Entry]] = None
    copied: Optional[Copied] = None

    @property
    def failed(self) -> bool:
        """Whether something of it could not be read."""
        unread = any(one.unread for one in self.entries or ()) or any(one.damaged for one in self.volumes)
        return unread or bool(self.copied and self.copied.failed)


def wrong_use(message: str, hint: str) -> ConfigError:
    """Return the error of a wrong use, with exit code 2."""
    return ConfigError([BackupError(message, hint)])
