"""Writes the files of a restored domain to this node: its NVRAM, its TPM's state, and what it boots from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import BackupError, reason
from ..model import TPM_STATE, Level, NodeFile
from ..protocols import Reporter
from ..system.undo import undone_by

RESTORING = ".virt-rbd-backup.restoring"  # suffix of temporary names
MODES = {"tpm2": 0o700, "tpm1.2": 0o700}  # of new directories; libvirt gives them to swtpm's user


@dataclass(frozen=True)
class NodeFiles:
    """The `own` files of a restored domain, which nothing else uses, and those that it `shares`."""

    own: Sequence[NodeFile]
    shared: Sequence[NodeFile]
    reporter: Reporter
    name: str

    def require_writable(self, local: bool, uri: str) -> None:
        """Raise BackupError unless the domain's own files can be written."""
        for file in self.own:
            text = f"cannot write the {file.use} {file.path}"
            if not local:
                hint = 'restore on that node, with LIBVIRT_URI = "qemu:///system"'
                raise BackupError(f"{text} on another node ({uri})", hint)
            directory = os.path.dirname(file.path)
            while file.use == TPM_STATE and not os.path.exists(directory):
                directory = os.path.dirname(directory)
            if not os.access(directory, os.W_OK | os.X_OK):
                hint = "libvirt's package creates it; a systemd unit needs it in ReadWritePaths="
                raise BackupError(f"{text}: {directory} is missing or not writable", hint)

    def require_free(self) -> None:
        """Raise BackupError if one of the domain's own files exists."""
        for file in self.own:
            if os.path.exists(file.path):
                hint = "move it away, or replace it with --force"
                raise BackupError(f"the {file.use} {file.path} exists", hint)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the domain's own files, and shared ones that are missing; none is left after the block."""
        with ExitStack() as stack:
            # those of its own may overwrite a killed drill's: no domain has that name
            for file in (*self.own, *self._missing()):
                stack.enter_context(self._undone(file))
                _write(file, file.path)
            yield

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Write the domain's own files under temporary names before the block, and rename them after it."""
        with ExitStack() as stack:
            for file in self.own:
                filling = f"{file.path}{RESTORING}"
                stack.enter_context(_new_directories_removed_on_failure(file.path))
                stack.enter_context(undone_by(partial(_remove, file.use, filling), self.reporter, self.name))
                _write(file, filling)
            yield
            for file in self.own:
                with _errors("write", file.use, file.path):
                    os.replace(f"{file.path}{RESTORING}", file.path)

    def add_missing(self) -> None:
        """Write shared files that this node lacks; report it, and those that cannot be written."""
        for file in self._missing():
            try:
                _write(file, file.path)
            except BackupError as error:
                self.reporter.message(Level.WARNING, self.name, str(error))
            else:
                text = f"restored the {file.use} {file.path}, which was missing on this node"
                self.reporter.message(Level.INFO, self.name, text)

    def _missing(self) -> Iterator[NodeFile]:
        for file in self.shared:
            if not os.path.exists(file.path):
                yield file
            elif not _same(file):
                text = f"the {file.use} {file.path} on this node is not the saved one; it stays as it is"
                self.reporter.message(Level.WARNING, self.name, text)

    @contextmanager
    def _undone(self, file: NodeFile) -> Iterator[None]:
        """Remove the file after the block, and directories that are made for it."""
        with undone_by(partial(_remove, file.use, _first_new(file.path)), self.reporter, self.name):
            yield


@contextmanager
def _new_directories_removed_on_failure(path: str) -> Iterator[None]:
    """Remove the directories that the block makes for a file, if the block fails.

    libvirt would take an empty one for the state of a TPM.
    """
    first = _first_new(path)
    try:
        yield
    except BaseException:  # Ctrl-C too
        if first != path:
            shutil.rmtree(first, ignore_errors=True)
        raise


def _first_new(path: str) -> str:
    """Return the file, or the topmost of its directories that does not exist yet."""
    while not os.path.exists(os.path.dirname(path)):
        path = os.path.dirname(path)
    return path


def _same(file: NodeFile) -> bool:
    with suppress(OSError):
        return (
            os.path.getsize(file.path) == len(file.content) and Path(file.path).read_bytes() == file.content
        )
    return False


def _write(file: NodeFile, path: str) -> None:
    """Write it with its mode, for its owner if this node has that user. Raises BackupError."""
    with _errors("write", file.use, path):
        _make_directory(os.path.dirname(path))
        with open(path, "wb", opener=_closed_to_others) as new:
            new.write(file.content)
        user, _, group = file.owner.partition(":")
        if user:
            with suppress(LookupError, PermissionError):  # libvirt gives a TPM's state to swtpm itself
                shutil.chown(path, user, group)
        os.chmod(path, file.mode)


def _make_directory(directory: str) -> None:
    if not os.path.exists(directory):
        _make_directory(os.path.dirname(directory))
        os.mkdir(directory)
        os.chmod(directory, MODES.get(os.path.basename(directory), 0o711))


def _remove(use: str, path: str) -> None:
    """Remove a file or directory; already gone counts as success."""
    with _errors("remove", use, path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


@contextmanager
def _errors(action: str, use: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = f"check the free space and permissions of {Path(path).parent}"
        raise BackupError(f"cannot {action} the {use} {path}: {reason(error)}", hint) from error


def _closed_to_others(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
