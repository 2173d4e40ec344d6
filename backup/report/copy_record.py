"""Records in STATE_DIR what the last `copy` came to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

from ..errors import reason
from ..model import Level
from ..protocols import Reporter
from ..system.atomic_file import write_atomically
from ..system.private_directory import make_private

FILE = "copy.json"


@dataclass(frozen=True)
class CopyRecord:
    """A copy to the second repository: restore points that were copied, and those that it still lacks.

    The times are in ISO 8601. `error` is why something is missing, "" if nothing is.
    """

    began: str
    finished: str
    copied: int = 0
    missing: int = 0
    error: str = ""

    def __str__(self) -> str:
        if self.error and not self.copied:
            result = f"failed: {self.error}"
        else:
            noun = "restore point" if self.copied == 1 else "restore points"
            result = f"{self.copied} {noun} copied; {self.error or 'none is missing'}"
        return f"copy of {self.finished[:16].replace('T', ' ')} UTC: {result}"


def write_record(state_dir: str, record: CopyRecord, reporter: Reporter) -> None:
    """Replace the record. A failure is only reported: it changes nothing in the copy."""
    try:
        make_private(Path(state_dir))
        write_atomically(Path(state_dir, FILE), json.dumps(asdict(record), indent=2).encode())
    except OSError as error:
        message = f"cannot record in {state_dir} what was copied: {reason(error)} (hint: see STATE_DIR)"
        reporter.message(Level.WARNING, "", message)


def read_record(state_dir: str) -> Optional[CopyRecord]:
    """Return the last record, None if there is none, or it cannot be read."""
    try:
        read = CopyRecord(**json.loads(Path(state_dir, FILE).read_bytes()))
        datetime.fromisoformat(read.began), datetime.fromisoformat(read.finished)
    except (OSError, ValueError, TypeError):
        return None
    return read


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
