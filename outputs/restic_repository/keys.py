"""The keys of a repository: lists them, tells what each costs, and learns which one to try first.

restic turns the password into a key in each call, by scrypt with the key's own parameters (restic's
design.rst, "Keys, Encryption and MAC").
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Callable, Optional

from backup.stored import RepositoryKey

from .key_hint import LEARNT_FOR, VARIABLE
from .messages import ResticError, from_json
from .own_directory import OwnDirectory
from .program import Program

FAST_USER = "virt-rbd-backup-fast"  # the user name in the keys that this program adds
FAST_WORK = 8192 * 8  # scrypt's N times r times p: about 0.02 s of a processor
SLOW = 0.1  # seconds of a key from which on it is worth a word
SHORT = 8  # characters of a key's id that restic prints


def list_keys(program: Program, check_stop: Callable[[], None]) -> Sequence[RepositoryKey]:
    """List all keys, the oldest first. Raises ResticError."""
    return stored_keys(program, check_stop, _opening(_rows(program, check_stop)))


def stored_keys(
    program: Program, check_stop: Callable[[], None], opening: str = ""
) -> Sequence[RepositoryKey]:
    """List all keys without a lock; `opening` is the id of the one that opens. Raises ResticError."""
    found = [_read(program, one, opening, check_stop) for one in key_ids(program, check_stop)]
    return sorted(filter(None, found), key=lambda key: key.created)


def key_ids(program: Program, check_stop: Callable[[], None]) -> Sequence[str]:
    """List the ids of all keys, without a lock. Raises ResticError."""
    return _call(program, check_stop, "list", "keys").split()


def own_keys(
    program: Program, keys: Sequence[RepositoryKey], check_stop: Callable[[], None]
) -> Sequence[RepositoryKey]:
    """Return those that this program added, and that the password opens. Raises ResticError."""
    return [key for key in keys if key.ours and (key.opens or opens(program, key.id, check_stop))]


def learn(program: Program, check_stop: Callable[[], None]) -> None:
    """Once a day, learn which key opens the repository fastest, for later calls. Raises ResticError."""
    hint = program.key_hint
    if VARIABLE in program.environment or OwnDirectory(program, check_stop).has_one_key:
        return
    if hint.age is not None and 0 <= hint.age < LEARNT_FOR:
        return
    rows = _rows(program, check_stop)
    opening = _opening(rows)
    if any(row["userName"] == FAST_USER for row in rows):
        ours = own_keys(program, list_keys(program, check_stop), check_stop)
        opening = next((key.id[:SHORT] for key in ours if key.fast), opening)
    hint.remember(opening if len(rows) > 1 else "")


def tried_first(program: Program, key: RepositoryKey) -> bool:
    """Return whether the next call on this node tries this key first."""
    hint = program.environment.get(VARIABLE) or program.key_hint.variables.get(VARIABLE)
    return bool(hint) and key.id.startswith(str(hint))


def advice(program: Program, check_stop: Callable[[], None]) -> Sequence[str]:
    """Return what the keys cost, if that could be less. Raises ResticError."""
    keys = list_keys(program, check_stop)
    opening = next((key for key in keys if key.opens), None)
    texts = []
    if opening and opening.seconds > SLOW:
        texts.append(
            f"each call of restic takes {opening.seconds:.1f} s to check the password: see `key --help`"
        )
    if len(keys) > 1 and not program.key_hint.variables and VARIABLE not in program.environment:
        texts.append(
            f"{len(keys)} keys, which restic tries one after the other; the next run learns which it is"
        )
    return texts


def opens(program: Program, key: str, check_stop: Callable[[], None]) -> bool:
    """Return whether the password opens the repository with this key. Raises ResticError."""
    return _opening(_rows(with_hint(program, key), check_stop)) == key[:SHORT]


def with_hint(program: Program, key: str) -> Program:
    """Return a program whose restic tries this key first."""
    return replace(program, environment={**program.environment, VARIABLE: key})


def _read(
    program: Program, key: str, opening: str, check_stop: Callable[[], None]
) -> Optional[RepositoryKey]:
    """Read a key. None if it was removed since it was listed."""
    try:
        found = from_json(_call(program, check_stop, "cat", "key", key), dict)
    except ResticError:
        if key in key_ids(program, check_stop):
            raise
        return None
    user, n, r, p = found["username"], found["N"], found["r"], found["p"]
    return RepositoryKey(
        id=key,
        opens=key[:SHORT] == opening,
        ours=user == FAST_USER,
        fast=user == FAST_USER and n * r * p <= FAST_WORK,
        owner=f"{user}@{found['hostname']}",
        created=datetime.fromisoformat(found["created"][:19]),
        work=n * r * p,
        seconds=_seconds(n, r, p),
    )


def _rows(program: Program, check_stop: Callable[[], None]) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = from_json(_call(program, check_stop, "key", "list", "--json"), list)
    if not rows:  # it opens with one: the directory has gone meanwhile, which restic takes for an empty one
        raise ResticError("restic lists no key of the repository", "is it still there?", transient=True)
    return rows


def _opening(rows: Sequence[Mapping[str, Any]]) -> str:
    return next((str(row["id"])[:SHORT] for row in rows if row["current"]), "")


def _call(program: Program, check_stop: Callable[[], None], *arguments: str) -> str:
    return program.call(*arguments, "--no-lock", limit=program.call_limit, check_stop=check_stop)


def _seconds(n: int, r: int, p: int) -> float:
    """Measure what such a key takes on this node."""
    began = time.perf_counter()
    hashlib.scrypt(b"password", salt=bytes(64), n=n, r=r, p=p, maxmem=2 * 128 * r * (n + p))
    return time.perf_counter() - began
