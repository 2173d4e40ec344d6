"""What restic prints: the summary of a backup, and its last words when it fails."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from backup.errors import BackupError

CLEAR_LINE = "\x1b[2K"  # comes before what 0.18 says of an interrupt
MESSAGE_LINES = 4  # of restic's last words: what it says of a lock, for one


class ResticError(BackupError):
    """restic failed; the message ends with its own words.

    `locked` tells that another program has the repository to itself.
    """

    def __init__(self, message: str, hint: str = "", locked: bool = False) -> None:
        super().__init__(message, hint)
        self.passing = self.locked = locked


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


def last_words(printed: str) -> str:
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
