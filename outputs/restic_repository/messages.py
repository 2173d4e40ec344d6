"""What restic prints: the summary of a backup, and its last words when it fails."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from typing import Any

from backup.errors import BackupError

CLEAR_LINE = "\x1b[2K"  # comes before what 0.18 says of an interrupt
MESSAGE_LINES = 4  # of restic's last words: what it says of a lock, for one


# restic's exit codes that have a way out of their own (restic.readthedocs.io, "Scripting"); since 0.17
NO_REPOSITORY, LOCKED, WRONG_PASSWORD = 10, 11, 12
NOT_STARTED = (126, 127)  # what env, or a shell as a wrapper, makes of it
LOCKED_MESSAGE = "repository is already locked"  # of older ones, whose exit code is 1 for everything
HINTS = {
    NO_REPOSITORY: "check RESTIC_REPOSITORY, or make the repository with `restic init`",
    LOCKED: "another program, such as a prune, works on the repository; see LOCK_WAIT. If the owner of that "
    "lock is dead: `restic unlock`, or `restic unlock --remove-all` while nobody uses the repository",
    WRONG_PASSWORD: "check RESTIC_PASSWORD_FILE",
}

# Of a failure that no second attempt mends: what back ends and file systems say, in lower case.
LASTING = re.compile(
    "no space left|disk full|quota|read-only file system|permission denied|access ?denied|unauthorized"
    "|invalidaccesskeyid|signaturedoesnotmatch|host key verification failed"
    "|wrong password|no key found|unsupported repository version|unknown (command|flag|shorthand flag)"
    "|unable to open config file.*(no such file|not exist|404)"
)
# Of what can't be read back because it is not there or not what was written, whoever tries.
DAMAGED = re.compile(
    "ciphertext verification failed|not found in (the )?(repository|index)|no matching id found"
    "|invalid data returned|hash mismatch"
    "|(load|readfull).<(data|snapshot|index)/.*(no such file|not exist|404)"
)


class ResticError(BackupError):
    """restic failed; the message ends with its own words.

    `locked`: another program has the repository to itself. `damaged`: what was to be read is
    not there, or not as it was saved.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        locked: bool = False,
        transient: bool = False,
        damaged: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.locked = locked
        self.transient = transient or locked
        self.damaged = damaged


def failure(command: str, code: int, printed: str, words: str) -> ResticError:
    """Give the error of a restic that ran and failed; `words` are the last of what it printed.

    Exit code 1 says nothing, so what is not known to last is transient: networks and their servers fail in
    many words.
    """
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    message = f"restic {command} {how}"
    locked = is_locked(code, printed)
    lower = printed.lower()
    damaged = bool(DAMAGED.search(lower))
    lasting = code in (NO_REPOSITORY, WRONG_PASSWORD, *NOT_STARTED) or bool(LASTING.search(lower))
    other_hint = "see RESTIC_REPOSITORY and RESTIC_PASSWORD_FILE" if words else ""
    hint = HINTS.get(LOCKED if locked else code, other_hint)
    full = f"{message}: {words}" if words else message
    return ResticError(full, hint, locked, transient=not lasting, damaged=damaged)


def is_locked(code: int, printed: str) -> bool:
    """Return whether it failed as another program has the repository to itself; it has no lock then."""
    return code == LOCKED or (code == 1 and LOCKED_MESSAGE in printed)


@dataclass(frozen=True)
class Summary:
    """What restic says of a snapshot that it has saved. Bytes read, and bytes that the repository grew by."""

    snapshot_id: str
    processed: int
    added: int


def summary_in(printed: str) -> Summary:
    for line in printed.splitlines():
        item = _json(line)
        if item.get("message_type") == "summary":
            added = item.get("data_added_packed", item["data_added"])  # packed: since 0.18
            return Summary(str(item["snapshot_id"]), int(item["total_bytes_processed"]), int(added))
    raise ResticError("restic ended well but did not say what it saved", "is RESTIC_BINARY really restic?")


def last_lines(printed: str) -> str:
    """Give the last lines of restic's standard error: text, or from 0.18 on JSON.

    Left out is where in its own source an error arose: a function, and then in a line of its own the file.
    """
    lines = []
    printed_lines = printed.replace(CLEAR_LINE, "").splitlines()
    for line, next_line in zip(printed_lines, [*printed_lines[1:], ""]):
        if "\t" in (line[:1], next_line[:1]):
            continue
        item = _json(line)
        error = item.get("error")
        nested = error.get("message", "") if isinstance(error, dict) else ""
        words = str(item.get("message") or nested or ("" if item else line)).strip()
        if words:
            lines.append(words)
    return "; ".join(lines[-MESSAGE_LINES:])


def _json(line: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError:
        return {}
    return item if isinstance(item, dict) else {}
