"""Remembers on this node which of a repository's keys restic tries first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from backup.system.atomic_file import write_atomically

VARIABLE = "RESTIC_KEY_HINT"
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
        try:
            found = self.path.read_text("ascii")
        except (OSError, ValueError):
            return {}
        return {VARIABLE: found} if found else {}

    @property
    def age(self) -> Optional[float]:
        """Seconds since it was learnt, None if it never was."""
        try:
            return time.time() - self.path.stat().st_mtime
        except OSError:
            return None

    def remember(self, key: str) -> None:
        with suppress(OSError):  # STATE_DIR cannot be written: restic still finds the key by itself
            write_atomically(self.path, key.encode(), durable=False)
