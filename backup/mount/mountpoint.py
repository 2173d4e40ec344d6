"""Checks the directory to mount on, and unmounts what a killed process has left there."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from functools import partial
from pathlib import Path
from typing import Callable, TypeVar

from ..errors import BackupError, ConfigError, reason
from ..system.mounts import unmount
from ..system.time_limit import within

ANSWER_LIMIT = 5.0  # seconds for what is mounted there: its process may be stopped
SOURCE = "virt-rbd-backup"  # what the mount table has as the source of our file systems

Answer = TypeVar("Answer")


def prepared(directory: str, in_repository: Callable[[str], bool]) -> str:
    """Return the absolute path of an empty directory of ours. Raises ConfigError if it is anything else."""
    if not directory:  # for realpath it is the current directory
        raise _wrong("the name of the directory is empty", "name an empty directory")
    path: str = _answer(directory, partial(os.path.realpath, directory))  # as the mount table has it
    while _is_dead(path):
        _unmount_ours(path)
    shown = shlex.quote(path)
    if _is_ours(path):
        raise _wrong(f"{path} shows a restore point already", f"fusermount3 -u {shown}, or another directory")
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise _wrong(f"{path} does not exist", f"mkdir -m 700 {shown}") from error
    except OSError as error:
        raise _wrong(f"{path}: {reason(error)}", "name an empty directory") from error
    if not stat.S_ISDIR(status.st_mode):
        raise _wrong(f"{path} is not a directory", "name an empty directory")
    if status.st_uid != os.geteuid():
        raise _wrong(f"{path} belongs to another user (UID {status.st_uid})", "name a directory of your own")
    if os.listdir(path):
        raise _wrong(f"{path} is not empty", "name an empty directory")
    if in_repository(path):
        raise _wrong(f"{path} is in the repository", "name a directory outside of it")
    return path


def _is_dead(path: str) -> bool:
    """Return whether a FUSE file system is mounted there whose process has ended."""
    try:
        _answer(path, partial(os.listdir, path))  # for `stat` the kernel may still know the answer
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _answer(path: str, ask: Callable[[], Answer]) -> Answer:
    """Ask a file system something. Raises OSError, and ConfigError if it does not answer."""
    try:
        return within(ANSWER_LIMIT, ask)
    except TimeoutError as error:
        raise _wrong(f"the file system on {path} does not answer", "name another directory") from error


def _unmount_ours(path: str) -> None:
    if not _is_ours(path):
        hint = f"it is not one of this program; to unmount it: fusermount3 -u {shlex.quote(path)}"
        raise _wrong(f"the process that served the file system on {path} has ended", hint)
    try:
        unmount(path)
    except OSError as error:
        message = f"cannot unmount {path}, which a killed process has left: {reason(error)}"
        raise _wrong(message, f"fusermount3 -u -z {shlex.quote(path)}") from error


def _is_ours(path: str) -> bool:
    """Return whether the topmost file system on this path is ours (man 5 proc_pid_mountinfo)."""
    mounted = [line.split(b" ") for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    found = [fields for fields in mounted if _unescaped(fields[4]) == os.fsencode(path)]
    if not found:
        return False
    kind, source = found[-1][found[-1].index(b"-") + 1 :][:2]
    return kind.startswith(b"fuse") and source == SOURCE.encode()


def _unescaped(field: bytes) -> bytes:
    """Return a field as it was before the kernel replaced blanks by their octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def _wrong(message: str, hint: str) -> ConfigError:
    return ConfigError([BackupError(message, hint)])
