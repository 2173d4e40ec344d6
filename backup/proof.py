"""When each domain was last saved, and last proven to come back: a file in STATE_DIR."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from .errors import reason
from .model import Level
from .protocols import Reporter
from .whole_file import write_whole

FILE = "proofs.json"


@dataclass(frozen=True)
class Proof:
    """Of one domain, as ISO 8601: of when its newest restore point is that this node made, when one was last
    verified, when a drill was last tried, and when one went well.

    `failure` is what has failed since.
    """

    saved: str = ""
    verified: str = ""
    tried: str = ""
    drilled: str = ""
    failure: str = ""


def proofs(state_dir: str) -> Mapping[str, Proof]:
    """Give what is known, by the domains' UUIDs; nothing where there is no file that can be read."""
    known = set(Proof.__dataclass_fields__)
    try:
        content: Mapping[str, Mapping[str, Any]] = json.loads(Path(state_dir, FILE).read_text())
        return {uuid: Proof(**{k: v for k, v in one.items() if k in known}) for uuid, one in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Proofs:
    """What is known, to be changed.

    Where that fails it is only said: what was proven, or was not, is as it is.
    """

    def __init__(self, state_dir: str, reporter: Reporter) -> None:
        self._state_dir = state_dir
        self._reporter = reporter

    def note_verified(self, uuid: str, name: str) -> None:
        """Note that all of a restore point verified just now."""
        self.note(uuid, name, verified=now(), failure="")

    def note(self, uuid: str, name: str, **changes: str) -> None:
        """Change what is known of a domain."""
        self.note_all({uuid: changes}, name)

    def note_all(self, changes: Mapping[str, Mapping[str, str]], name: str = "") -> None:
        """Change what is known of domains, by their UUIDs."""
        try:
            _write(self._state_dir, changes)
        except OSError as error:
            message = f"cannot note in {self._state_dir} what was saved or verified: {reason(error)}"
            self._reporter.message(Level.WARNING, name, f"{message} (hint: see STATE_DIR)")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Have the directory to oneself during the block, as far as those go that ask for it. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flock(descriptor, LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(state_dir: str, changes: Mapping[str, Mapping[str, str]]) -> None:
    directory = Path(state_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory):  # backup, verify and drill may end together
        known = dict(proofs(state_dir))
        for uuid, of_one in changes.items():
            known[uuid] = replace(known.get(uuid, Proof()), **of_one)
        content = {uuid: asdict(one) for uuid, one in known.items()}
        write_whole(directory / FILE, json.dumps(content, indent=2).encode())
