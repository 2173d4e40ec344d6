"""Parses restic's output: the summary of a backup, and the messages of a failure."""

from __future__ import annotations

import json
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from backup.errors import BackupError

Json = TypeVar("Json", list[Any], dict[str, Any])

CLEAR_LINE = "\x1b[2K"  # precedes the message of 0.18 about an interrupt
MESSAGE_LINES = 4  # the longest messages, such as those about locks

# restic's exit codes that have a hint of their own (restic.readthedocs.io, "Scripting"); since 0.17
NO_REPOSITORY, LOCKED, WRONG_PASSWORD = 10, 11, 12
INCOMPLETE = 3  # of `restic backup`, of all versions
NOT_STARTED = (126, 127)  # of env, or of a shell that wraps restic
LOCKED_MESSAGE = "repository is already locked"  # of older versions, whose exit code is always 1
HINTS = {
    NO_REPOSITORY: "check RESTIC_REPOSITORY, or create the repository with `restic init`",
    LOCKED: "another program, such as a prune, has locked the repository; see LOCK_WAIT. If that program is "
    "dead: `restic unlock`, or `restic unlock --remove-all` while no other program uses the repository",
    WRONG_PASSWORD: "check RESTIC_PASSWORD_FILE",
}

# Messages of back ends and file systems, in lower case, after which a retry would fail again.
PERMANENT = re.compile(
    "no space left|disk full|quota|read-only file system|permission denied|access ?denied|unauthorized"
    "|invalidaccesskeyid|signaturedoesnotmatch|host key verification failed"
    "|wrong password|no key found|unsupported repository version|unknown (command|flag|shorthand flag)"
    "|unable to open config file.*(no such file|not exist|404)"
)
# Lines that may come with each call, in lower case: about files of ssh's and of restic's own on this
# node. They say nothing about the repository.
HARMLESS = re.compile(
    "hostfile_replace_entries failed|could not create directory '.*/[.]ssh'|unable to open cache:"
)
# Messages about data that is missing or damaged in the repository.
DAMAGED = re.compile(
    "ciphertext verification failed|not found in (the )?(repository|index)|no matching id found"
    "|invalid data returned|hash mismatch|path .* not found in snapshot"
    "|(load|readfull).<(data|snapshot|index)/.*(no such file|not exist|404)"
)

# Of a restic that loads all snapshots to find those that it was asked for: these are of any domain.
OF_SNAPSHOT = re.compile("could not load snapshot|<snapshot/")
# Of a restic that ends with code 0: it has listed none, or not this one. (From 0.18 on it may be in JSON.)
NONE_LISTED = "could not load snapshots"
NOT_LISTED = re.compile(r'Ignoring \\?"')
# Of a restic that was interrupted, and could not remove its lock, such as where the connection was lost.
NOT_TIDY = re.compile("error while unlocking|error in cleanup handler")
SEPARATOR = "; "


class ResticError(BackupError):
    """restic failed; the message ends with restic's own.

    `locked`: another program has locked the repository. `damaged`: data is missing or damaged in the
    repository. `incomplete`: it has saved a snapshot nevertheless, for which it could not read everything.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        locked: bool = False,
        transient: bool = False,
        damaged: bool = False,
        incomplete: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.locked = locked
        self.transient = transient or locked
        self.damaged = damaged
        self.incomplete = incomplete


class MountEnded(ResticError):
    """A `restic mount` has ended by itself."""


def failed_to_tidy_up(printed: str) -> bool:
    """Return whether an interrupted restic prints that its lock may be left."""
    return bool(NOT_TIDY.search(printed))


def from_json(printed: str, kind: type[Json]) -> Json:
    """Read the list or the object that restic printed with --json; it prints null for an empty list.

    Raises ResticError: a wrapper may print lines of its own.
    """
    with suppress(ValueError):
        read = json.loads(printed)
        if read is None and kind is list:
            return kind()
        if isinstance(read, kind):
            return read
    first = printed.strip().partition("\n")[0][:80]
    message = f"restic printed no JSON, but {first!r}"
    raise ResticError(message, "RESTIC_BINARY may print nothing of its own on standard output")


def failure(command: str, code: int, printed: str, lines: str) -> ResticError:
    """Return the error of a restic that failed; `lines` are the last ones of its output.

    Exit code 1 has no meaning of its own, so every error that is not known as permanent counts as transient:
    networks and servers fail with many messages.
    """
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    message = f"restic {command} {how}"
    locked = is_locked(code, printed)
    damaged = is_damage(printed)
    permanent = code in (NO_REPOSITORY, WRONG_PASSWORD, *NOT_STARTED) or _is_permanent(printed)
    other_hint = "check RESTIC_REPOSITORY and RESTIC_PASSWORD_FILE" if lines else ""
    hint = HINTS.get(LOCKED if locked else code, other_hint)
    full = f"{message}: {lines}" if lines else message
    return ResticError(
        full, hint, locked, transient=not permanent, damaged=damaged, incomplete=code == INCOMPLETE
    )


def unread_snapshots(command: str, printed: str, lines: str, complete: bool) -> Optional[ResticError]:
    """Return the error of a restic that has succeeded without snapshots that it could not read.

    `complete`: one is enough. It may be unreadable for a moment only, or just removed by another program.
    """
    if NONE_LISTED not in printed and not (complete and NOT_LISTED.search(printed)):
        return None
    hint = "is the repository's host reachable? If it stays so, `restic check` finds what is damaged"
    return ResticError(f"restic {command} could not read all snapshots: {lines}", hint, transient=True)


def _is_permanent(printed: str) -> bool:
    lines = [line for line in printed.lower().splitlines() if not HARMLESS.search(line)]
    return bool(PERMANENT.search("\n".join(lines)))


def is_damage(printed: str) -> bool:
    """Return whether it has printed that data is missing or damaged in the repository."""
    return bool(DAMAGED.search(printed.lower()))


def without_snapshots(lines: str) -> str:
    """Return those of restic's `last_lines` that are not about the file of a snapshot."""
    return SEPARATOR.join(line for line in lines.split(SEPARATOR) if not OF_SNAPSHOT.search(line))


def is_locked(code: int, printed: str) -> bool:
    """Return whether it failed because another program had locked the repository; then it has no lock."""
    return code == LOCKED or (code == 1 and LOCKED_MESSAGE in printed)


@dataclass(frozen=True)
class Summary:
    """restic's summary of a saved snapshot: `processed` bytes were read, the repository grew by `added`."""

    snapshot_id: str
    processed: int
    added: int


def summary_in(printed: str) -> Summary:
    for line in printed.splitlines():
        item = _json(line)
        if item.get("message_type") == "summary":
            added = item.get("data_added_packed", item["data_added"])  # packed: since 0.18
            return Summary(str(item["snapshot_id"]), int(item["total_bytes_processed"]), int(added))
    raise ResticError("restic succeeded but printed no summary", "check that RESTIC_BINARY is restic")


def last_lines(printed: str) -> str:
    """Return the last lines of restic's standard error, which is text, or from 0.18 on JSON.

    Left out are lines of stack traces: a function, and on the next line its file.
    """
    lines = []
    printed_lines = printed.replace(CLEAR_LINE, "").splitlines()
    for line, next_line in zip(printed_lines, [*printed_lines[1:], ""]):
        if "\t" in (line[:1], next_line[:1]):
            continue
        item = _json(line)
        error = item.get("error")
        nested = error.get("message", "") if isinstance(error, dict) else ""
        text = str(item.get("message") or nested or ("" if item else line)).strip()
        if text:
            lines.append(text)
    return SEPARATOR.join(lines[-MESSAGE_LINES:])


def _json(line: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError:
        return {}
    return item if isinstance(item, dict) else {}
