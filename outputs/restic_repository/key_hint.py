"""Remembers on this node which of a repository's keys restic tries first."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from backup.system.atomic_file import write_atomically

VARIABLE = "RESTIC_KEY_HINT"
LONGEST_ID = 64  # characters
KEY = re.compile(f"[0-9a-f]{{8,{LONGEST_ID}}}")
LEARNT_FOR = 24 * 3600  # seconds; another node may add a faster key


@dataclass(frozen=True)
class KeyHint:
    """The file with a key's id. Without it, or with a wrong one, restic tries one key after another."""

    path: Path

    @classmethod
    def of(cls, state_dir: str, repository: str, environment: Mapping[str, str]) -> KeyHint:
        named = sorted(one for one in environment.items() if one[0].startswith("RESTIC_REPOSITORY"))
        digest = hashlib.sha256(repr((repository, named)).encode()).hexdigest()
        return cls(Path(state_dir, f"restic-key-{digest[:16]}"))

    @property
    def variables(self) -> Mapping[str, str]:
        """Restic's environment variable with the hint, or nothing."""
        found = self._key
        return {VARIABLE: found} if found else {}

    @property
    def _key(self) -> str:
        """The key's id, "" if there is none: after a crash the file may hold anything."""
        try:
            with self.path.open("rb") as file:
                found = file.read(LONGEST_ID + 1).decode("ascii", errors="replace")
        except OSError:
            return ""
        return found if KEY.fullmatch(found) else ""

    @property
    def age(self) -> Optional[float]:
        """Seconds since it was learnt, None if it never was, or the file is damaged."""
        try:
            learnt = self.path.stat().st_mtime
        except OSError:
            return None
        return time.time() - learnt if self._key else None

    def remember(self, key: str) -> None:
        with suppress(OSError):  # STATE_DIR cannot be written: restic still finds the key by itself
            write_atomically(self.path, key.encode(), durable=False)
