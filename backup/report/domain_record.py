"""When each domain was last saved, and last proven to come back: a file in STATE_DIR."""

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

FILE = "proofs.json"
LOCK_LIMIT = 30.0  # seconds for another process to have written the file, which takes it milliseconds
LOCK_POLL = 0.05


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
    try:
        return _read(Path(state_dir, FILE))
    except (OSError, ValueError):
        return {}


def _read(path: Path) -> Mapping[str, Proof]:
    """Raises OSError where the file is missing or can't be read, ValueError where it is damaged."""
    known = set(Proof.__dataclass_fields__)
    content: Mapping[str, Mapping[str, Any]] = json.loads(path.read_bytes())
    try:
        return {uuid: Proof(**{k: v for k, v in one.items() if k in known}) for uuid, one in content.items()}
    except AttributeError as error:
        raise ValueError(f"{path} is of another form") from error


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
            self._write(changes)
        except OSError as error:
            message = f"cannot note in {self._state_dir} what was saved or verified: {reason(error)}"
            self._reporter.message(Level.WARNING, name, f"{message} (hint: see STATE_DIR)")

    def _write(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        directory = Path(self._state_dir)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(directory):  # backup, verify and drill may end together
            known = dict(self._known(directory / FILE))
            for uuid, of_one in changes.items():
                known[uuid] = replace(known.get(uuid, Proof()), **of_one)
            content = {uuid: asdict(one) for uuid, one in known.items()}
            write_atomically(directory / FILE, json.dumps(content, indent=2).encode())

    def _known(self, path: Path) -> Mapping[str, Proof]:
        """Give what the file has, nothing if there is none; one that is damaged is put aside.

        Raises OSError if it is there and can't be read: what it has must not be overwritten.
        """
        try:
            return _read(path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            aside = path.with_name(f"{FILE}.damaged")
            os.replace(path, aside)
            text = f"{path} is damaged ({error}): put aside as {aside.name}, and begun anew"
            hint = "when domains were verified and drilled is not known any more"
            self._reporter.message(Level.WARNING, "", f"{text} (hint: {hint})")
            return {}


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Have the directory to oneself during the block, as far as those go that ask for it.

    Raises OSError, also where that takes too long.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_LIMIT
        while not _had(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has had its lock for {LOCK_LIMIT:.0f} s")
            time.sleep(LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def _had(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
