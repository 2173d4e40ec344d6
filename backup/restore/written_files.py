"""Files that a restore or drill writes to this node for a while, and records of them.

With a record a later command removes what a killed one left. Records are in STATE_DIR, as such files survive
a reboot.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Optional

from ..command import COMMAND
from ..errors import BackupError, reason
from ..hypervisor.connection import Hypervisor
from ..hypervisor.tpm_state import files_of_swtpm
from ..model import Level
from ..protocols import Reporter
from ..system.private_directory import make_private
from ..system.undo import undone_by

DIRECTORY = "written"  # in STATE_DIR
HINT = (
    f"`{COMMAND} cleanup` by hand removes it, or the next drill; a systemd unit needs it in ReadWritePaths="
)


@dataclass(frozen=True)
class Written:
    """What is on this node because of a restore or drill, and has to be removed at its end.

    `own` are files that nothing else uses, `tpms` directories with the state of a drill's TPM. `shared` are
    files that other domains may use too: path, inode and time (st_mtime_ns) of each prove that it is the one
    that was written; `lacking` are those that a domain needed already when they were missing. `directories`
    were made for them. `domain` is the UUID of a drill's domain, "" for a restore's, and `uri` its libvirt.
    """

    name: str
    host: str
    uri: str
    domain: str = ""
    own: Sequence[str] = ()
    tpms: Sequence[str] = ()
    directories: Sequence[str] = ()
    shared: Sequence[tuple[str, int, int]] = ()
    lacking: Sequence[str] = ()

    def remove(self, in_use: Callable[[], Collection[str]]) -> Sequence[str]:
        """Remove what is there of it, and return that; a shared file stays if it has come into use meanwhile.

        Raises BackupError if something could not be removed, after all the rest is.
        """
        removed, errors = [], []
        shared = [path for path, *identity in self.shared if _identity(path) == identity]
        try:
            needed = set(in_use() if shared else ()) - set(self.lacking)
        except BackupError as error:
            shared, errors = [], [f"cannot know whether {', '.join(shared)} is in use: {error.message}"]
        swtpm = [path for directory in self.tpms for path in files_of_swtpm(directory)]
        for path in dict.fromkeys((*self.own, *swtpm, *(path for path in shared if path not in needed))):
            try:
                os.unlink(path)
                removed.append(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                errors.append(f"cannot remove {path}: {reason(error)}")
        for path in sorted({*self.directories, *self.tpms}, key=len, reverse=True):
            with suppress(OSError):  # it is gone, or somebody else has put something there
                os.rmdir(path)
        if errors:
            raise BackupError("; ".join(errors), HINT)
        return removed


class WrittenFiles:
    """Removes what was written, and keeps the record of it up to date, if there is one.

    A record that cannot be written is a warning: it is needed only if this process is killed.
    """

    def __init__(self, written: Written, reporter: Reporter, state_dir: str = "") -> None:
        """`state_dir`: "" for no record."""
        self.written = written
        self._reporter = reporter
        self._record: Optional[BinaryIO] = None
        if state_dir:
            with self._reported():
                self._record = _new_record(Path(state_dir, DIRECTORY))
        self.update(written)

    def update(self, written: Written) -> None:
        """Record what will be there from now on."""
        self.written = written
        if self._record:
            with self._reported():
                self._record.write(json.dumps(asdict(written)).encode() + b"\n")
                os.fsync(self._record.fileno())

    def remove(self, in_use: Callable[[], Collection[str]]) -> None:
        """Remove it and its record, which stays if something could not be removed. Raises BackupError."""
        self.written.remove(in_use)
        if self._record:
            _forget(self._record)

    def close(self) -> None:
        if self._record:
            self._record.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"cannot record in STATE_DIR what is written to this node: {reason(error)}"
            self._reporter.message(Level.WARNING, self.written.name, text)


@contextmanager
def written_for_a_while(
    state_dir: str,
    written: Written,
    in_use: Callable[[], Collection[str]],
    reporter: Reporter,
    end_domain: Callable[[], None] = lambda: None,
) -> Iterator[WrittenFiles]:
    """Record what the block writes to this node, and remove it after the block.

    `end_domain` ends the drill's domain before; if it raises BackupError, all stays recorded.
    """
    files = WrittenFiles(written, reporter, state_dir)

    def remove() -> None:
        end_domain()
        files.remove(in_use)

    with closing(files), undone_by(remove, reporter, written.name):
        yield files


def remove_left(
    state_dir: str, hypervisor_at: Callable[[str], Optional[Hypervisor]], reporter: Reporter
) -> None:
    """Remove what killed restores and drills left on this node, and end a drill's domain that still runs.

    What cannot be removed is a warning, and stays recorded; so does what belongs to a libvirt that is not
    connected.
    """
    for record, written in _abandoned(Path(state_dir, DIRECTORY)):
        hypervisor = hypervisor_at(written.uri)
        if hypervisor is None or written.host != socket.gethostname():
            continue
        try:
            if written.domain:
                hypervisor.destroy(written.domain)
            removed = written.remove(hypervisor.needed_paths)
        except BackupError as error:
            text = f"an interrupted restore or drill left files: {error}"
            reporter.message(Level.WARNING, written.name, text)
            continue
        _forget(record)
        if removed:
            text = f"removed what an interrupted restore or drill left: {', '.join(removed)}"
            reporter.message(Level.WARNING, written.name, text)


def new_directories(paths: Sequence[str]) -> Sequence[str]:
    """Return the directories above the paths that do not exist."""
    found = set()
    for path in paths:
        while not os.path.lexists(path := os.path.dirname(path)):
            found.add(path)
    return sorted(found)


def _new_record(directory: Path) -> BinaryIO:
    """Return a locked file; as soon as it is closed its record counts as abandoned. Raises OSError."""
    make_private(directory)
    file = open(directory / f"{uuid.uuid4()}.json", "xb", buffering=0)  # noqa: SIM115 - the caller closes it
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _abandoned(directory: Path) -> Iterator[tuple[BinaryIO, Written]]:
    """Yield the records whose processes have ended, each locked meanwhile."""
    for path in sorted(directory.glob("*.json")):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            written = None
            for line in file.read().splitlines():
                with suppress(ValueError, TypeError):  # its process was killed while it wrote this line
                    written = Written(**json.loads(line))
            if written:
                yield file, written
            else:  # nothing was written yet
                _forget(file)


def _forget(record: BinaryIO) -> None:
    with suppress(OSError):  # what it names is gone: it does no harm
        os.unlink(record.name)


def _identity(path: str) -> list[int]:
    with suppress(OSError):
        status = os.lstat(path)
        return [status.st_ino, status.st_mtime_ns]
    return []
