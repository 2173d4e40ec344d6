"""Notes on disk of guests that are, or are about to be, frozen or paused, so that any process can undo it."""

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

from ..errors import BackupError, TransientError, reason
from ..groups import directories
from ..model import Domain
from ..system.atomic_file import write_atomically
from ..system.process_group import ProcessId, is_running, process_id, sees_own_pids


class Method(str, Enum):
    """How a domain is quiesced."""

    FREEZE = "freeze"
    PAUSE = "pause"


@dataclass(frozen=True)
class Note:
    """A domain of the libvirt at `uri` that is, or is about to be, frozen or paused.

    `instance` is libvirt's id of the running domain, -1 if unknown: each start of a domain gives it another.
    `owner` is the process that has to thaw or resume it, if known, and `until` its deadline, in
    time.monotonic(), which all processes share. `releasing`: it has begun to. `possible`: until when the
    freeze or pause may still happen, as libvirt lets a call wait.
    """

    uuid: str
    name: str
    method: Method
    uri: str
    instance: int = field(default=-1, compare=False)
    owner: Optional[ProcessId] = field(default=None, compare=False)
    until: float = field(default=0.0, compare=False)
    releasing: bool = field(default=False, compare=False)
    possible: float = field(default=0.0, compare=False)

    @property
    def owned(self) -> bool:
        """Whether the process that has to thaw or resume it is alive."""
        return is_running(self.owner) if self.owner else not self.overdue()

    def is_same(self, other: Note) -> bool:
        """Return whether both are of the same freeze or pause."""
        return (self.owner, self.possible) == (other.owner, other.possible)

    def overdue(self, seconds: float = 0) -> bool:
        """Return whether the thaw or resume is late by more than so many seconds."""
        return time.monotonic() > self.until + seconds


DIRECTORY = "held"  # in RUNTIME_DIR


class FreezeNotes:
    """One file per domain; it exists from before the guest is quiesced until it provably runs again.

    The notes are of one group, which alone writes and removes them. `node_dir` has those of all groups: no
    two quiesce the same domain at once. "" for one whose notes nobody else has.
    """

    def __init__(self, runtime_dir: str, node_dir: str = "") -> None:
        self._directory = Path(runtime_dir, DIRECTORY)
        self._node_dir = node_dir

    def write(self, domain: Domain, method: Method, seconds: float = 0.0, possible: float = 0.0) -> Note:
        """Record that the domain is about to be quiesced, for so long at the most. Raises BackupError.

        `possible`: seconds during which libvirt may still carry out the freeze or pause, at least `seconds`.
        Raises TransientError if another group has a note of the domain: nothing may be quiesced then.
        """
        path = self._path(domain.uuid)
        now = time.monotonic()
        try:
            note = Note(
                *(domain.uuid, domain.name, method, domain.uri, domain.instance),
                owner=process_id(os.getpid()) if sees_own_pids() else None,
                until=now + seconds,
                possible=now + max(seconds, possible),
            )
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._put(note)
        except OSError as error:
            message = f"cannot write {path}, the note that the guest is about to be frozen or paused"
            raise BackupError(f"{message}: {reason(error)}", "see RUNTIME_DIR") from error
        try:
            self._require_no_other(domain.uuid)
        except BackupError:
            self.remove(domain.uuid)
            raise
        return note

    def _require_no_other(self, uuid: str) -> None:
        """Raise TransientError if another group has a note of the domain, BackupError if that is not known.

        After the own note is written: of two groups that begin at once, at least one sees the other's.
        """
        if other := self.of_other_group(uuid):
            message = "a backup of another group has just begun to freeze or pause the guest"
            raise TransientError(f"{message} ({other})", "a retry waits for it")

    def of_other_group(self, uuid: str) -> Optional[Path]:
        """Return the note of this domain that another group has, None if none has. Raises BackupError."""
        if not self._node_dir:
            return None
        try:
            every = [Path(path, DIRECTORY) for path in directories(self._node_dir).values()]
            others = [directory / f"{uuid}.json" for directory in every if directory != self._directory]
            return next((path for path in others if path.exists()), None)
        except OSError as error:
            message = f"cannot find out whether another group has frozen or paused the guest: {reason(error)}"
            raise BackupError(message, f"see RUNTIME_DIR, {self._node_dir}") from error

    def live_of_other_group(self, uuid: str) -> Optional[Note]:
        """Return such a note if the process that has to thaw or resume the domain is alive, else None.

        Raises BackupError.
        """
        path = self.of_other_group(uuid)
        notes = FreezeNotes(str(path.parents[1])).all() if path else ()
        return next((note for note in notes if note.uuid == uuid and note.owned), None)

    def mark_releasing(self, note: Note, seconds: float) -> None:
        """Record that its owner has begun to thaw or resume, which takes it so long at the most."""
        until = max(note.until, time.monotonic() + seconds)
        with suppress(OSError):  # then the old note stays: its owner may be killed a little earlier
            self._put(replace(note, until=until, releasing=True))

    def forget_instance(self, note: Note) -> None:
        """Record that the domain goes on at its next start as it was quiesced: libvirt has saved its memory.

        Unless a newer note of it exists by now.
        """
        current = self._current(note.uuid)
        if current and current.is_same(note) and current.instance != -1:
            with suppress(OSError):  # then its next start counts as a new one
                self._put(replace(current, instance=-1))

    def remove(self, uuid: str) -> None:
        """Record that the domain runs. Raises BackupError."""
        path = self._path(uuid)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot remove {path}, the note of a guest that was frozen or paused: {reason(error)}"
            raise BackupError(message, "see RUNTIME_DIR") from error

    def remove_unless_newer(self, note: Note) -> None:
        """Record that the domain runs, unless a newer note of it exists by now. Raises BackupError."""
        current = self._current(note.uuid)
        if current is None or current.is_same(note):
            self.remove(note.uuid)

    def _current(self, uuid: str) -> Optional[Note]:
        return next((one for one in self.all() if one.uuid == uuid), None)

    def exists(self, uuid: str) -> bool:
        return self._path(uuid).exists()

    def path(self, uuid: str) -> Path:
        """Return the file, for messages."""
        return self._path(uuid)

    def all(self) -> Sequence[Note]:
        """Return those that can be read."""
        return [one for one in self._read() if isinstance(one, Note)]

    def unreadable(self) -> Sequence[BackupError]:
        """Return an error for each that cannot be read: only an admin can thaw or resume these guests."""
        return [one for one in self._read() if isinstance(one, BackupError)]

    def _read(self) -> Iterator[Union[Note, BackupError]]:
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield _from_json(json.loads(path.read_text()))
            except FileNotFoundError:
                continue  # its worker has just removed it
            except (OSError, ValueError, KeyError, TypeError):
                hint = f"virsh domfsthaw {path.stem}; virsh resume {path.stem}; then remove the file"
                yield BackupError(
                    f"cannot read {path}, the note of a guest that may be frozen or paused", hint
                )

    def _put(self, note: Note) -> None:
        # not durable: after a power cut the guest is not frozen, and now it would wait for the disk
        write_atomically(self._path(note.uuid), json.dumps(_to_json(note)).encode(), durable=False)

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"


def _to_json(note: Note) -> dict[str, Any]:
    fields = asdict(note)
    fields["hold"] = fields.pop("method")
    return fields


def _from_json(fields: dict[str, Any]) -> Note:
    owner = fields.get("owner")  # older versions write fewer fields
    return Note(
        uuid=str(fields["uuid"]),
        name=str(fields["name"]),
        method=Method(fields["hold"]),
        uri=str(fields["uri"]),
        instance=int(fields.get("instance", -1)),
        owner=ProcessId(*map(int, owner)) if owner else None,
        until=float(fields.get("until", 0.0)),
        releasing=bool(fields.get("releasing", False)),
        possible=float(fields.get("possible", 0.0)),
    )
