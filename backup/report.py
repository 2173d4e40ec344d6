"""What a run came to: its results, as values and as the JSON of REPORT_FILE."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .errors import BackupError, reason
from .model import JobResult, Status
from .proof import Proof


@dataclass(frozen=True)
class RunResult:
    """A run that has ended; `signal_number` is the signal that ended it, 0 for none."""

    run: str
    host: str
    started: datetime
    finished: datetime
    results: Sequence[JobResult]
    signal_number: int = 0
    nothing_done: bool = False
    errors: Sequence[str] = ()  # what kept domains from being looked at, such as a libvirt out of reach
    not_selected: Sequence[JobResult] = ()

    @property
    def exit_code(self) -> int:
        """0 all saved, 1 nothing could be done, 3 some failed or can't be known, 130 or 143 interrupted."""
        if self.signal_number:
            return 128 + self.signal_number
        if self.nothing_done:
            return 1
        failed = any(result.status is Status.FAILED for result in self.results)
        return 3 if failed or self.errors else 0


def write_report(result: RunResult, path: str, proofs: Mapping[str, Proof]) -> None:
    """Replace the report file in one step. `proofs` are by the domains' UUIDs. Raises BackupError."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=Path(path).parent, delete=False) as file:
            try:
                json.dump(_as_json(result, proofs), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise BackupError(f"cannot write the report {path}: {reason(error)}", "see REPORT_FILE") from error


def _as_json(result: RunResult, proofs: Mapping[str, Proof]) -> dict[str, object]:
    return {
        "run": result.run,
        "host": result.host,
        "started": result.started.isoformat(timespec="seconds"),
        "finished": result.finished.isoformat(timespec="seconds"),
        "exit_code": result.exit_code,
        "errors": list(result.errors),
        "domains": [
            _domain(one, proofs.get(one.uuid, Proof())) for one in (*result.results, *result.not_selected)
        ],
    }


def _domain(one: JobResult, proof: Proof) -> dict[str, object]:
    return {
        "name": one.name,
        "uuid": one.uuid,
        "status": one.status,
        "reason": one.reason,
        "consistency": one.consistency,
        "frozen_seconds": round(one.frozen_seconds, 3),
        "seconds": round(one.seconds, 3),
        "last_verified": proof.verified or None,
        "last_drill": proof.drilled or None,
        "proof_failure": proof.failure,
        "images": [
            {
                "image": image.image,
                "target": image.target,
                "size": image.size,
                "data_bytes": image.data_bytes,
                "stored_bytes": image.stored_bytes,
                "seconds": round(image.seconds, 3),
                "restore_id": image.restore_id,
            }
            for image in one.images
        ],
        "not_covered": [
            {"target": disk.target, "source": disk.source, "reason": disk.not_covered}
            for disk in one.not_covered
        ],
    }
