"""Records in STATE_DIR when each domain was last saved, verified and drilled."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from ..errors import reason
from ..model import Level
from ..protocols import Reporter
from ..system.atomic_file import write_atomically
from ..system.private_directory import make_private

FILE = "proofs.json"
RESTORED, INSTANT = "restored", "instant"  # kinds of drills: only the first compares the data
TIMES = ("saved", "verified", "tried", "drilled")  # fields that are times
LOCK_LIMIT = 30.0  # seconds for another process to write the file, which takes it milliseconds
LOCK_POLL = 0.05


@dataclass(frozen=True)
class DomainRecord:
    """What this node knows of one domain. Times are ISO 8601, "" means never.

    `saved` is the time of its newest restore point, `verified` of the last verification that passed, `tried`
    of the last drill, `drilled` of the last drill that passed, whose kind is `drill_kind`: "" before kinds
    were recorded. `failure` is the message of a verification or drill that failed after the last one that
    passed; `failed_drill` is the kind of that drill, "" for a verification.
    """

    saved: str = ""
    verified: str = ""
    tried: str = ""
    drilled: str = ""
    failure: str = ""
    drill_kind: str = ""
    failed_drill: str = ""


def read_records(state_dir: str) -> Mapping[str, DomainRecord]:
    """Give the records by the domains' UUIDs; none if there is no file that can be read."""
    try:
        return _read(Path(state_dir, FILE))
    except (OSError, ValueError):
        return {}


def _read(path: Path) -> Mapping[str, DomainRecord]:
    """Raises OSError if the file is missing or can't be read, ValueError if it is damaged."""
    content: Mapping[str, Mapping[str, Any]] = json.loads(path.read_bytes())
    try:
        return {
            uuid: DomainRecord(**{k: v for k, v in one.items() if _is_valid(k, v)})
            for uuid, one in content.items()
        }
    except AttributeError as error:
        raise ValueError("unexpected content") from error


def _is_valid(name: str, value: object) -> bool:
    """Return whether it is a field and its value: what an admin, or another version, wrote may be none."""
    if name not in DomainRecord.__dataclass_fields__ or not isinstance(value, str):
        return False
    try:
        return name not in TIMES or not value or datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class DomainRecords:
    """Changes the records. A failure to write them is only reported: it does not change any result."""

    def __init__(self, state_dir: str, reporter: Reporter) -> None:
        self._state_dir = state_dir
        self._reporter = reporter

    def record_verified(self, uuid: str, name: str) -> None:
        """Record that a whole restore point has just been verified."""
        self.update(uuid, name, verified=now(), failure="")

    def update(self, uuid: str, name: str, **changes: str) -> None:
        """Change the record of a domain."""
        self.update_all({uuid: changes}, name)

    def update_all(self, changes: Mapping[str, Mapping[str, str]], name: str = "") -> None:
        """Change the records of domains, by their UUIDs."""
        try:
            self._write(changes)
        except OSError as error:
            message = f"cannot record in {self._state_dir} what was saved or verified: {reason(error)}"
            self._reporter.message(Level.WARNING, name, f"{message} (hint: see STATE_DIR)")

    def _write(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        directory = Path(self._state_dir)
        make_private(directory)
        with _locked(directory):  # backup, verify and drill may end together
            known = dict(self._known(directory / FILE))
            for uuid, changed in changes.items():
                if "failure" in changed:
                    changed = {"failed_drill": "", **changed}
                known[uuid] = replace(known.get(uuid, DomainRecord()), **changed)
            content = {uuid: asdict(one) for uuid, one in known.items()}
            write_atomically(directory / FILE, json.dumps(content, indent=2).encode())

    def _known(self, path: Path) -> Mapping[str, DomainRecord]:
        """Give the file's records, none if there is no file; rename a damaged file.

        Raises OSError if it exists and can't be read: its records must not be overwritten.
        """
        try:
            return _read(path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            aside = path.with_name(f"{FILE}.damaged")
            os.replace(path, aside)
            text = f"{path} is damaged ({error}): renamed to {aside.name}, and replaced by a new one"
            hint = "the times of earlier verifications and drills are lost"
            self._reporter.message(Level.WARNING, "", f"{text} (hint: {hint})")
            return {}


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock the directory during the block. Raises OSError, also if another process keeps it locked."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_LIMIT
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has kept it locked for {LOCK_LIMIT:.0f} s")
            time.sleep(LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
