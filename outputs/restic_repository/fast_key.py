"""Adds a key to the repository that costs a call of restic next to nothing, and removes it again.

restic chooses the parameters of a new key so that half a second passes on the machine that adds it (restic's
internal/repository/key.go). That protects a password that can be guessed; behind one of 128 random bits it
protects nothing. A restic that gets a small share of a processor while it measures chooses a cheap key.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Callable

from backup.errors import BackupError
from backup.stored import RepositoryKey

from .child import Child
from .keys import FAST_USER, list_keys, opens, with_hint
from .password import password_of, random_bits
from .program import Program

FEWEST_BITS = 128
FAST_WORK = 8192 * 8  # scrypt's N times r times p: about 0.02 s of a processor
SHARES = (
    0.015,
    0.005,
    0.002,
)  # of a processor, one after the other: what is enough differs by restic and node
TURN = 0.002  # seconds that restic runs at a time
ASK_POLL = 0.02  # seconds between two looks whether restic asks for the new password


def add_fast_key(program: Program, check_stop: Callable[[], None]) -> RepositoryKey:
    """Add a fast key with the same password, and have this node's calls try it first.

    Return the one that is there already, if so. Raises BackupError if the password is not random enough, or
    the node is too busy.
    """
    password = password_of(program)
    bits = random_bits(password)
    if bits < FEWEST_BITS:
        message = f"the password has about {bits:.0f} random bits, and a fast key needs {FEWEST_BITS}"
        hint = "`openssl rand -base64 32` makes one with 256, `restic key passwd` sets it"
        raise BackupError(message, hint)
    known = list_keys(program, check_stop)
    for key in known:
        if key.fast and (key.opens or opens(program, key.id, check_stop)):
            program.key_hint.remember(key.id)
            return key
    key = _added(program, password, known, check_stop)
    program.key_hint.remember(key.id)
    return key


def remove_fast_keys(program: Program, check_stop: Callable[[], None]) -> Sequence[RepositoryKey]:
    """Remove the fast keys that this program added, and return them.

    Raises BackupError if the password opens the repository with none of the others.
    """
    keys = list_keys(program, check_stop)
    fast = [key for key in keys if key.fast]
    if not fast:
        return ()
    slow = next((key for key in keys if not key.fast and opens(program, key.id, check_stop)), None)
    if not slow:
        message = "the password opens the repository with its fast key only"
        raise BackupError(message, "add a slow key first: `restic key add`")
    program.key_hint.remember(slow.id)
    for key in fast:
        _remove(with_hint(program, slow.id), key, check_stop)
    return fast


def _added(
    program: Program, password: str, known: Sequence[RepositoryKey], check_stop: Callable[[], None]
) -> RepositoryKey:
    """Add a key, and another one in its place as long as it is slow."""
    before = {key.id for key in known}
    for share in SHARES:
        _add(program, password, share, check_stop)
        after = list_keys(program, check_stop)
        (key,) = (one for one in after if one.fast and one.id not in before)
        if key.work <= FAST_WORK:
            return key
        _remove(with_hint(program, next(one.id for one in known if one.opens)), key, check_stop)
    message = "restic chose a slow key each time, as this node is too busy for it to measure its share"
    raise BackupError(message, "try again later; no key was added")


def _add(program: Program, password: str, share: float, check_stop: Callable[[], None]) -> None:
    """Run `restic key add`, with a share of a processor from the moment when it asks for the new password.

    It reads that from a named pipe: having opened that, it has also opened the repository, at full speed.
    """
    names = ("--user", FAST_USER, "--host", socket.gethostname())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "password")
        os.mkfifo(path, 0o600)
        arguments = ("key", "add", *names, "--new-password-file", str(path))
        with program.running(*arguments, limit=program.call_limit, check_stop=check_stop) as child:
            while child.runs and not _fed(path, password, child):
                child.wait(ASK_POLL)
                check_stop()
            _slow_down(child, share, check_stop)


def _fed(path: Path, password: str, child: Child) -> bool:
    """Stop restic and write the password, if it has opened the pipe."""
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody reads yet
            return False
        raise
    with os.fdopen(pipe, "w") as file:
        child.group.send(signal.SIGSTOP)
        file.write(password)
    return True


def _slow_down(child: Child, share: float, check_stop: Callable[[], None]) -> None:
    """Let restic run for this share of the time until it has ended."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        _be_on_time()
        while child.runs:
            child.group.send(signal.SIGCONT)
            time.sleep(TURN)
            child.group.send(signal.SIGSTOP)
            child.wait(TURN / share)
            check_stop()
    finally:
        child.group.send(signal.SIGCONT)
        os.sched_setscheduler(0, policy, parameter)


def _be_on_time() -> None:
    """Have this process run as soon as its sleep is over, on a busy node too, so that turns are short."""
    with suppress(PermissionError):  # in a container; what is added is measured in any case
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _remove(program: Program, key: RepositoryKey, check_stop: Callable[[], None]) -> None:
    program.call("key", "remove", key.id, limit=program.call_limit, check_stop=check_stop)
