"""Notes on disk of which domains are being held still, so that whoever comes next can let them go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Union

from .errors import BackupError, reason
from .model import Domain
from .whole_file import write_whole


class Hold(str, Enum):
    """How a domain is being held still."""

    FREEZE = "freeze"
    PAUSE = "pause"


@dataclass(frozen=True)
class Note:
    """A domain of the libvirt at `uri` that is, or is about to be, held still."""

    uuid: str
    name: str
    hold: Hold
    uri: str


class Journal:
    """One file a domain; there from before the guest stands still until it provably runs again."""

    def __init__(self, runtime_dir: str) -> None:
        self._directory = Path(runtime_dir, "held")

    def write(self, domain: Domain, hold: Hold) -> None:
        """Note that the domain is about to be held. Raises BackupError."""
        path = self._path(domain.uuid)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            note = Note(domain.uuid, domain.name, hold, domain.uri)
            write_whole(path, json.dumps(asdict(note)).encode())
        except OSError as error:
            message = f"cannot note in {path} that the guest is about to stand still: {reason(error)}"
            raise BackupError(message, "see RUNTIME_DIR") from error

    def erase(self, uuid: str) -> None:
        """Note that the domain runs. Raises BackupError."""
        path = self._path(uuid)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot remove {path}, the note of a guest that stood still: {reason(error)}"
            raise BackupError(message, "see RUNTIME_DIR") from error

    def holds(self, uuid: str) -> bool:
        return self._path(uuid).exists()

    def notes(self) -> Sequence[Note]:
        """Give those that can be read."""
        return [one for one in self._read() if isinstance(one, Note)]

    def unreadable(self) -> Sequence[BackupError]:
        """Tell of those that can't: only an admin can let these guests go."""
        return [one for one in self._read() if isinstance(one, BackupError)]

    def _read(self) -> Iterator[Union[Note, BackupError]]:
        for path in sorted(self._directory.glob("*.json")):
            try:
                note = json.loads(path.read_text())
                yield Note(note["uuid"], note["name"], Hold(note["hold"]), note["uri"])
            except FileNotFoundError:
                continue  # its worker has just erased it
            except (OSError, ValueError, KeyError, TypeError):
                hint = f"virsh domfsthaw {path.stem}; virsh resume {path.stem}; then remove the file"
                yield BackupError(f"cannot read {path}, the note of a guest that may stand still", hint)

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"
