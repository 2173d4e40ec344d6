"""Writes the files of a restored domain to this node: its NVRAM, its TPM's state, and what it boots from."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable
from uuid import uuid4

from ..errors import BackupError, NotDrillable, reason
from ..hypervisor.tpm_state import STATE, files_of_swtpm
from ..model import TPM_STATE, Level, NodeFile
from ..protocols import Reporter
from .new_file import NO_LINKS
from .system_directories import in_system
from .written_files import Written, WrittenFiles, new_directories, written_for_a_while

NVRAM = "NVRAM"  # the use of the file in libvirt's own directory
RESTORING = ".virt-rbd-backup.restoring"  # suffix of temporary names
MISSING_HINT = "put it there before, or install the package that has it"
BY_HAND = 'if it belongs there, define the domain by hand: see "Restoring by hand" in res/docs/restore.md'
MODES = {"tpm2": 0o700, "tpm1.2": 0o700}  # of new directories; libvirt gives them to swtpm's user


@dataclass(frozen=True)
class NodeFiles:
    """The `own` files of a restored domain, which nothing else uses, and those that it `shares`.

    `uri` is its libvirt, `in_use` gives the paths that domains there need. Nothing that exists is written to.
    """

    own: Sequence[NodeFile]
    shared: Sequence[NodeFile]
    reporter: Reporter
    name: str
    uri: str
    state_dir: str
    in_use: Callable[[], Collection[str]]

    def require_writable(self, local: bool) -> None:
        """Raise BackupError unless the domain's own files can be written."""
        for file in self.own:
            self._require_restorable(file, BY_HAND)
            text = f"cannot write the {file.use} {file.path}"
            if not local:
                hint = 'restore on that node, with LIBVIRT_URI = "qemu:///system"'
                raise BackupError(f"{text} on another node ({self.uri})", hint)
            directory = os.path.dirname(file.path)
            while file.use != NVRAM and not os.path.lexists(directory):  # others get their directories
                directory = os.path.dirname(directory)
            if not os.access(directory, os.W_OK | os.X_OK):
                hint = "libvirt's package creates it; a systemd unit needs it in ReadWritePaths="
                raise BackupError(f"{text}: {directory} is missing or not writable", hint)

    def require_free(self) -> None:
        """Raise BackupError if one of the domain's own files exists."""
        for file in self.own:
            if os.path.lexists(file.path):
                hint = "move it away, or replace it with --force"
                raise BackupError(f"the {file.use} {file.path} exists", hint)

    @contextmanager
    def written(
        self, domain: str, end_domain: Callable[[], None] = lambda: None, created: Sequence[str] = ()
    ) -> Iterator[None]:
        """Write the domain's own files, and shared ones that are missing; none is left after the block.

        `domain` is its UUID; it runs in the block only, and `end_domain` ends it. `created`: what libvirt
        may create for it, unless it exists. Raises NotDrillable for a file in a directory of the system.
        """
        drafts = {_draft(file): file for file in self._missing()}
        self._require_drillable([*self.own, *drafts.values()])
        new = [path for path in created if not os.path.lexists(path)]
        own = list(dict.fromkeys([*drafts, *(file.path for file in self.own), *new]))
        with self._for_a_while(own, sorted(self._tpms), domain, end_domain) as files:
            for file in self.own:
                _create(file, file.path)
            for draft, file in drafts.items():
                _create(file, draft)
            shared = [(file.path, *_identity(draft, file)) for draft, file in drafts.items()]
            lacking = sorted(set(self.in_use() if shared else ()) & {file.path for file in drafts.values()})
            files.update(replace(files.written, shared=shared, lacking=lacking))
            for draft, file in drafts.items():
                _name(draft, file)
            yield

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Write the domain's own files under temporary names before the block, and rename them after it."""
        drafts = {_draft(file): file for file in self.own}
        with self._for_a_while(list(drafts)):
            for draft, file in drafts.items():
                _create(file, draft)
            yield
            for draft, file in drafts.items():
                with _errors("write", file.use, file.path):
                    os.replace(draft, file.path)
            self._remove_other_states()

    def add_missing(self) -> None:
        """Write shared files that this node lacks; report it, and those that are not written."""
        for file in self._missing():
            draft = _draft(file)
            try:
                self._require_restorable(file, MISSING_HINT)
                with self._for_a_while([draft]):
                    _create(file, draft)
                    _name(draft, file)
            except BackupError as error:
                self.reporter.message(Level.WARNING, self.name, str(error))
            else:
                text = f"restored the {file.use} {file.path}, which was missing on this node"
                self.reporter.message(Level.INFO, self.name, text)

    def _require_restorable(self, file: NodeFile, hint: str) -> None:
        """Raise BackupError for a file in a directory of the system, but for the firmware of guests."""
        if in_system(file.path, self.state_dir, firmware=False):
            message = f"a restore does not write the {file.use} {file.path} to a directory of the system"
            raise BackupError(message, hint)

    def _require_drillable(self, files: Sequence[NodeFile]) -> None:
        """Raise NotDrillable for a file in a directory of the system."""
        for file in files:
            if in_system(file.path, self.state_dir, firmware=True):
                message = f"a drill does not write the {file.use} {file.path} to a directory of the system"
                raise NotDrillable(message, MISSING_HINT)

    @property
    def _tpms(self) -> set[str]:
        """The directories with a TPM's state; one in a single file has none of its own."""
        states = (os.path.split(file.path) for file in self.own if file.use == TPM_STATE)
        return {directory for directory, name in states if STATE.fullmatch(name)}

    def _for_a_while(
        self,
        own: Sequence[str],
        tpms: Sequence[str] = (),
        domain: str = "",
        end_domain: Callable[[], None] = lambda: None,
    ) -> AbstractContextManager[WrittenFiles]:
        """Remove these files after the block, and directories that are made for them if they are empty."""
        directories = new_directories(own)
        written = Written(self.name, socket.gethostname(), self.uri, domain, own, tpms, directories)
        if not own and not domain:
            return nullcontext(WrittenFiles(written, self.reporter))
        return written_for_a_while(self.state_dir, written, self.in_use, self.reporter, end_domain)

    def _remove_other_states(self) -> None:
        """Remove files of the replaced state of a TPM that the restored one does not have."""
        own = {file.path for file in self.own}
        for path in {path for directory in self._tpms for path in files_of_swtpm(directory)} - own:
            with _errors("remove", TPM_STATE, path):
                os.unlink(path)

    def _missing(self) -> Iterator[NodeFile]:
        for file in self.shared:
            if not os.path.exists(file.path):  # a link that leads nowhere is in the way, and reported
                yield file
            elif not _same(file):
                text = f"the {file.use} {file.path} on this node is not the saved one; it stays as it is"
                self.reporter.message(Level.WARNING, self.name, text)


def _same(file: NodeFile) -> bool:
    with suppress(OSError):
        return (
            os.path.getsize(file.path) == len(file.content) and Path(file.path).read_bytes() == file.content
        )
    return False


def _create(file: NodeFile, path: str) -> None:
    """Create it with its mode, for its owner if this node has that user; replace what a killed process left.

    Raises BackupError. No link is followed: the directory may belong to a user who is not trusted.
    """
    with _errors("write", file.use, file.path):
        _make_directory(os.path.dirname(path))
        with suppress(FileNotFoundError):
            os.unlink(path)
        with open(path, "xb", opener=_closed_to_others) as new:
            new.write(file.content)
            os.fchmod(new.fileno(), file.mode & 0o777)
            user, _, group = file.owner.partition(":")
            if user:
                with suppress(LookupError, PermissionError):  # libvirt gives a TPM's state to swtpm itself
                    shutil.chown(new.fileno(), user, group)
            new.flush()
            os.fsync(new.fileno())


def _name(draft: str, file: NodeFile) -> None:
    """Give a draft its name. Raises BackupError if that has been taken."""
    with _errors("write", file.use, file.path):
        try:
            os.link(draft, file.path)
        except OSError as error:
            if error.errno not in NO_LINKS or os.path.lexists(file.path):
                raise
            os.rename(draft, file.path)


def _draft(file: NodeFile) -> str:
    """Return a temporary name that nothing else ever has: a record of it may outlive its process."""
    return f"{file.path}.{uuid4().hex[:12]}{RESTORING}"


def _identity(draft: str, file: NodeFile) -> tuple[int, int]:
    with _errors("write", file.use, draft):
        status = os.lstat(draft)
        return status.st_ino, status.st_mtime_ns


def _make_directory(directory: str) -> None:
    if not os.path.exists(directory):
        _make_directory(os.path.dirname(directory))
        os.mkdir(directory)
        os.chmod(directory, MODES.get(os.path.basename(directory), 0o711))


@contextmanager
def _errors(action: str, use: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        directory = Path(path).parent
        hint = (
            f"check the free space and permissions of {directory}; a systemd unit needs it in ReadWritePaths="
        )
        raise BackupError(f"cannot {action} the {use} {path}: {reason(error)}", hint) from error


def _closed_to_others(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
