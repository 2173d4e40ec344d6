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

from .errors import BackupError, reason

FILE = "proofs.json"


@dataclass(frozen=True)
class Proof:
    """Of one domain: when (ISO 8601) a restore point was last verified or drilled, whose run it was.

    `booted` is when a drill last booted it, `failure` what has failed since.
    """

    name: str = ""
    verified: str = ""
    verified_run: str = ""
    drilled: str = ""
    drilled_run: str = ""
    booted: str = ""
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


def note_verified(state_dir: str, uuid: str, name: str, run: str) -> None:
    """Note that all of a run's restore point verified just now. Raises BackupError."""
    note_proof(state_dir, uuid, name=name, verified=now(), verified_run=run, failure="")


def note_proof(state_dir: str, uuid: str, **changes: str) -> None:
    """Change what is known of a domain. Raises BackupError."""
    before = proofs(state_dir)
    proof = replace(before.get(uuid, Proof()), **changes)
    content = {one: asdict(that) for one, that in {**before, uuid: proof}.items()}
    try:
        Path(state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=state_dir, delete=False) as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, Path(state_dir, FILE))
    except OSError as error:
        message = f"cannot note in {state_dir} what was verified: {reason(error)}"
        raise BackupError(message, "see STATE_DIR") from error
