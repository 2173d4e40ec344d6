"""Adds a key to the repository that costs a call of restic next to nothing, and removes it again.

What restic's own keys cost protects a password that can be guessed; behind one of 128 random bits it protects
nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from functools import partial
from typing import Callable, Optional

from backup.errors import BackupError
from backup.stored import RepositoryKey

from .calibration import add_key
from .keys import FAST_USER, SHORT, list_keys, opens, own_keys, stored_keys, with_hint
from .locks import remove_dead_locks
from .messages import ResticError
from .password import FEWEST_BITS, password_of, random_bits
from .program import Program
from .waits import limited, when_free

# Of a processor, one after the other: what is enough differs by restic and node.
SHARES = 0.015, 0.005, 0.002
PAUSES = 1, 2, 4, 8, 16  # seconds between attempts while another program, or node, has locked the repository
UNDO_PAUSES = 1, 2, 4
UNDO_LIMIT = 60  # seconds to remove the keys of an attempt that failed or was stopped


def add_fast_key(program: Program, check_stop: Callable[[], None]) -> RepositoryKey:
    """Add a fast key with the same password, and have this node's calls try it first.

    Return the one that is there already, if so. Slow keys, of this or an earlier attempt, are removed; an
    error names those that stay. Raises BackupError if the password is not random enough, or the node is too
    busy.
    """
    password = password_of(program)
    _require_random(password)
    known = when_free(partial(list_keys, program, check_stop), PAUSES, check_stop)
    before = {key.id for key in known}
    # with a key that stays: restic does not remove the one that has opened the repository
    staying = with_hint(program, next((key.id for key in known if key.opens), ""))
    fast = _fast(program, known, check_stop)
    try:
        fast = fast or _added(staying, password, before, check_stop)
        program.key_hint.remember(fast.id)
        _remove_slow(with_hint(program, fast.id), check_stop)
    except BaseException as error:  # Ctrl-C too: a slow key would stay
        _undo(staying, before, fast, error)
        raise
    return fast


def remove_fast_keys(program: Program, check_stop: Callable[[], None]) -> Sequence[RepositoryKey]:
    """Remove the keys that this program added for the password, and return them.

    Raises BackupError if the password opens the repository with none of the others, or a key stays.
    """
    keys = when_free(partial(list_keys, program, check_stop), PAUSES, check_stop)
    ours = when_free(partial(own_keys, program, keys, check_stop), PAUSES, check_stop)
    if not ours:
        return ()
    other = when_free(partial(_other, program, keys, check_stop), PAUSES, check_stop)
    if not other:
        message = "the password opens the repository with its fast key only"
        raise BackupError(message, "add a slow key first: `restic key add`")
    program.key_hint.remember(other)
    for key in ours:
        _remove(with_hint(program, other), key.id, PAUSES, check_stop)
    return ours


def _require_random(password: str) -> None:
    bits = random_bits(password)
    if bits < FEWEST_BITS:
        message = f"the password has about {bits:.0f} random bits, and a fast key needs {FEWEST_BITS}"
        if not bits:
            message = f"the password does not look random, and a fast key needs {FEWEST_BITS} random bits"
        hint = "`openssl rand -base64 32` makes one with 256, `restic key passwd` sets it"
        raise BackupError(message, hint)


def _fast(
    program: Program, keys: Sequence[RepositoryKey], check_stop: Callable[[], None]
) -> Optional[RepositoryKey]:
    """Return one of the keys that is fast, and that the password opens."""
    ours = when_free(partial(own_keys, program, keys, check_stop), PAUSES, check_stop)
    return next((key for key in ours if key.fast), None)


def _other(program: Program, keys: Sequence[RepositoryKey], check_stop: Callable[[], None]) -> str:
    """Return the id of a key that somebody else added and the password opens, "" for none."""
    others = (key.id for key in keys if not key.ours)
    return next((one for one in others if opens(program, one, check_stop)), "")


def _added(
    program: Program, password: str, before: Collection[str], check_stop: Callable[[], None]
) -> RepositoryKey:
    """Add keys until one is fast, and return it."""
    for share in SHARES:
        when_free(partial(add_key, program, password, share, check_stop), PAUSES, check_stop)
        new = _new(program, before, check_stop)
        if fast := _fast(program, new, check_stop):
            return fast
        if any(key.fast for key in new):
            raise BackupError(
                "the password does not open the key that restic added", "see RESTIC_PASSWORD_FILE"
            )
    message = "restic chose a slow key each time, as this node is too busy for it to measure its share"
    raise BackupError(message, "try again later")


def _new(
    program: Program, before: Collection[str], check_stop: Callable[[], None]
) -> Sequence[RepositoryKey]:
    """Return the keys that were added on this node since; another node may add its own meanwhile."""
    owner = f"{FAST_USER}@{socket.gethostname()}"
    return [key for key in stored_keys(program, check_stop) if key.owner == owner and key.id not in before]


def _remove_slow(program: Program, check_stop: Callable[[], None]) -> None:
    """Remove the keys that this program added for the password and that turned out slow."""
    keys = [key for key in stored_keys(program, check_stop) if key.ours and not key.fast]
    for key in when_free(partial(own_keys, program, keys, check_stop), PAUSES, check_stop):
        _remove(program, key.id, PAUSES, check_stop)


def _undo(
    program: Program, before: Collection[str], keep: Optional[RepositoryKey], error: BaseException
) -> None:
    """Remove the new keys but the one to keep; the error then names those that stay."""
    check = limited(UNDO_LIMIT, "the removal of new keys")
    stay = ["ID"]  # unknown
    try:
        stay = [key.id for key in _new(program, before, check) if not keep or key.id != keep.id]
        remove_dead_locks(program, check)  # of a restic that had to be killed
        while stay:
            _remove(program, stay[-1], UNDO_PAUSES, check)
            stay.pop()
    except BackupError:
        if isinstance(error, BackupError):
            _name(error, stay)


def _remove(program: Program, key: str, pauses: Sequence[float], check_stop: Callable[[], None]) -> None:
    """Remove a key, unless it is gone; an error names it."""
    remove = partial(program.call, "key", "remove", key, limit=program.call_limit, check_stop=check_stop)
    try:
        when_free(remove, pauses, check_stop)
    except BackupError as error:
        if isinstance(error, ResticError) and error.damaged:  # no such key: another node has removed it
            return
        _name(error, [key])
        raise


def _name(error: BackupError, keys: Sequence[str]) -> None:
    """Add the keys that stay to an error, and how to remove them."""
    names = [key[:SHORT] for key in keys if key[:SHORT] not in error.message]
    if names:
        error.message += f"; not removed: key {', '.join(names)}"
        commands = ", ".join(f"`restic key remove {name}`" for name in names)
        error.hint = f"once no other program uses the repository: {commands}; `restic key list` shows the ids"
