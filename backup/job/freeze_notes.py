"""Notes on disk of which guests are, or are about to be, frozen or paused: whoever comes next can undo it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Optional, Union

from ..errors import BackupError, reason
from ..model import Domain
from ..system.atomic_file import write_atomically
from ..system.process_group import ProcessId, is_running, process_id, sees_own_pids


class Hold(str, Enum):
    """How a domain is quiesced."""

    FREEZE = "freeze"
    PAUSE = "pause"


@dataclass(frozen=True)
class Note:
    """A domain of the libvirt at `uri` that is, or is about to be, frozen or paused.

    `instance` is libvirt's id of the running domain, -1 if unknown: a domain that was started anew has
    another. `owner` is the process that is to undo it, if that can be told, `until` when at the latest, of
    time.monotonic(), which all processes share. `releasing`: it has begun to. `possible`: until when it may
    still happen, as libvirt lets a call wait.
    """

    uuid: str
    name: str
    hold: Hold
    uri: str
    instance: int = field(default=-1, compare=False)
    owner: Optional[ProcessId] = field(default=None, compare=False)
    until: float = field(default=0.0, compare=False)
    releasing: bool = field(default=False, compare=False)
    possible: float = field(default=0.0, compare=False)

    @property
    def owned(self) -> bool:
        """Whether the process that is to undo it lives."""
        return is_running(self.owner) if self.owner else not self.overdue()

    def overdue(self, seconds: float = 0) -> bool:
        """Tell whether it was to be undone, by so many seconds ago."""
        return time.monotonic() > self.until + seconds


class Journal:
    """One file a domain; there from before the guest is quiesced until it provably runs again."""

    def __init__(self, runtime_dir: str) -> None:
        self._directory = Path(runtime_dir, "held")

    def write(self, domain: Domain, hold: Hold, seconds: float = 0.0, possible: float = 0.0) -> Note:
        """Note that the domain is about to be quiesced, for so long at the most. Raises BackupError.

        `possible`: seconds in which the call for it may still be carried out, at the least as long.
        """
        path = self._path(domain.uuid)
        now = time.monotonic()
        try:
            note = Note(
                *(domain.uuid, domain.name, hold, domain.uri, domain.instance),
                owner=process_id(os.getpid()) if sees_own_pids() else None,
                until=now + seconds,
                possible=now + max(seconds, possible),
            )
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._put(note)
        except OSError as error:
            message = f"cannot note in {path} that the guest is about to stand still: {reason(error)}"
            raise BackupError(message, "see RUNTIME_DIR") from error
        return note

    def releasing(self, note: Note, seconds: float) -> None:
        """Note that its owner has begun to undo it, which takes it so long at the most."""
        until = max(note.until, time.monotonic() + seconds)
        with suppress(OSError):  # the old note does: its owner is killed a little earlier, maybe
            self._put(replace(note, until=until, releasing=True))

    def erase(self, uuid: str) -> None:
        """Note that the domain runs. Raises BackupError."""
        path = self._path(uuid)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot remove {path}, the note of a guest that stood still: {reason(error)}"
            raise BackupError(message, "see RUNTIME_DIR") from error

    def erase_note(self, note: Note) -> None:
        """Note that the domain runs, unless there is a newer note of it by now. Raises BackupError."""
        current = next((one for one in self.notes() if one.uuid == note.uuid), None)
        if current is None or (current.owner, current.possible) == (note.owner, note.possible):
            self.erase(note.uuid)

    def holds(self, uuid: str) -> bool:
        return self._path(uuid).exists()

    def path(self, uuid: str) -> Path:
        """Give the file, for messages."""
        return self._path(uuid)

    def notes(self) -> Sequence[Note]:
        """Give those that can be read."""
        return [one for one in self._read() if isinstance(one, Note)]

    def unreadable(self) -> Sequence[BackupError]:
        """Tell of those that can't: only an admin can let these guests go."""
        return [one for one in self._read() if isinstance(one, BackupError)]

    def _read(self) -> Iterator[Union[Note, BackupError]]:
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield _note(json.loads(path.read_text()))
            except FileNotFoundError:
                continue  # its worker has just erased it
            except (OSError, ValueError, KeyError, TypeError):
                hint = f"virsh domfsthaw {path.stem}; virsh resume {path.stem}; then remove the file"
                yield BackupError(f"cannot read {path}, the note of a guest that may stand still", hint)

    def _put(self, note: Note) -> None:
        # nobody needs it after a power cut, and a guest waits while the disk does
        write_atomically(self._path(note.uuid), json.dumps(asdict(note)).encode(), durable=False)

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"


def _note(told: dict[str, Any]) -> Note:
    owner = told.get("owner")  # an older version notes less
    return Note(
        uuid=told["uuid"],
        name=told["name"],
        hold=Hold(told["hold"]),
        uri=told["uri"],
        instance=told.get("instance", -1),
        owner=ProcessId(*owner) if owner else None,
        until=told.get("until", 0.0),
        releasing=told.get("releasing", False),
        possible=told.get("possible", 0.0),
    )
