"""The keys of a repository: lists them, tells what each costs, and learns which one to try first.

restic turns the password into a key in each call, by scrypt with the key's own parameters (restic's
design.rst, "Keys, Encryption and MAC").
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Callable

from backup.stored import RepositoryKey

from .key_hint import LEARNT_FOR, VARIABLE
from .program import Program

FAST_USER = "virt-rbd-backup-fast"  # the user name in the keys that this program adds
SLOW = 0.1  # seconds of a key from which on it is worth a word
SHORT = 8  # characters of a key's id that restic prints


def list_keys(program: Program, check_stop: Callable[[], None]) -> Sequence[RepositoryKey]:
    """List all keys, the oldest first. Raises ResticError."""
    ids = _call(program, check_stop, "list", "keys").split()
    opening = _opening(_rows(program, check_stop))
    keys = []
    for one in ids:
        found = json.loads(_call(program, check_stop, "cat", "key", one))
        user, n, r, p = found["username"], found["N"], found["r"], found["p"]
        key = RepositoryKey(
            id=one,
            opens=one[:SHORT] == opening,
            fast=user == FAST_USER,
            owner=f"{user}@{found['hostname']}",
            created=datetime.fromisoformat(found["created"][:19]),
            work=n * r * p,
            seconds=_seconds(n, r, p),
        )
        keys.append(key)
    return sorted(keys, key=lambda key: key.created)


def learn(program: Program, check_stop: Callable[[], None]) -> None:
    """Once a day, learn which key opens the repository fastest, for later calls. Raises ResticError."""
    hint = program.key_hint
    if VARIABLE in program.environment or program.has_one_key():
        return
    if hint.age is not None and 0 <= hint.age < LEARNT_FOR:
        return
    rows = _rows(program, check_stop)
    opening = _opening(rows)
    for row in rows:
        fast = str(row["id"])[:SHORT]
        if row["userName"] == FAST_USER and fast != opening and opens(program, fast, check_stop):
            opening = fast
            break
    hint.remember(opening if len(rows) > 1 else "")


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


def _rows(program: Program, check_stop: Callable[[], None]) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = json.loads(_call(program, check_stop, "key", "list", "--json"))
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
