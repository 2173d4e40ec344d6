"""When each domain was last proven to come back: a file in STATE_DIR, which survives the run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import reason
from .model import Level
from .protocols import Reporter

FILE = "proofs.json"


@dataclass(frozen=True)
class Proof:
    """Of one domain: when (ISO 8601) it was last verified, when a drill was last tried, when one went well.

    `failure` is what has failed since.
    """

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
        try:
            _write(self._state_dir, uuid, changes)
        except OSError as error:
            message = f"cannot note in {self._state_dir} what was verified: {reason(error)}"
            self._reporter.message(Level.WARNING, name, f"{message} (hint: see STATE_DIR)")


def _write(state_dir: str, uuid: str, changes: Mapping[str, str]) -> None:
    before = proofs(state_dir)
    proof = replace(before.get(uuid, Proof()), **changes)
    content = {one: asdict(that) for one, that in {**before, uuid: proof}.items()}
    Path(state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=state_dir, delete=False) as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, Path(state_dir, FILE))
