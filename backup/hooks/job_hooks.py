"""The hooks of a job: after-thaw undoes the work of before-freeze, even if the worker is killed.

No guest is frozen or paused while a hook runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from ..errors import BackupError, Interrupted, reason
from ..job_result import JobResult, Status
from ..model import Domain, Level
from ..settings import Settings
from ..system.atomic_file import write_atomically
from .hooks import Hooks, When, about_domain, about_job

DIRECTORY = "hooked"  # in RUNTIME_DIR: a note for each domain whose after-thaw hooks have to run


class JobHooks:
    """Runs the hooks of one job."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._error: Optional[BackupError] = None

    @contextmanager
    def around_freeze(self, domain: Domain, check_stop: Callable[[], None]) -> Iterator[dict[str, str]]:
        """Run before-freeze, then the block, then after-thaw, whatever happened.

        The block may add variables for after-thaw. Raises BackupError if before-freeze fails; if after-thaw
        does, `require_success` raises: the snapshots of the block are saved all the same.
        """
        variables = {"RUN": self._hooks.run_id, **about_domain(domain)}
        note = _note(self._hooks.settings, domain.uuid)
        if self._hooks.settings.hooks:
            _write(note, variables)
        try:
            self._hooks.run(When.BEFORE_FREEZE, variables, check_stop)
            yield variables
        finally:
            try:
                self._hooks.run(When.AFTER_THAW, {"CONSISTENCY": "", **variables})
            except BackupError as error:
                self._hooks.reporter.message(Level.ERROR, domain.name, str(error))
                self._error = error
            _remove(note)

    def require_success(self) -> None:
        """Raise BackupError if after-thaw has failed."""
        if self._error:
            raise self._error

    def after_job(self, result: JobResult) -> JobResult:
        """Run the after-job hooks; return the result with their failure, if any."""
        try:
            self._hooks.run(When.AFTER_JOB, about_job(result))
        except BackupError as error:
            if result.status is not Status.FAILED:
                reason = f"{result.status.value}, but {error.message}"
                return replace(result, status=Status.FAILED, reason=reason, hint=error.hint)
            self._hooks.reporter.message(Level.ERROR, result.name, str(error))
        return result


def run_missed_hooks(
    hooks: Hooks, uuid: str | None = None, check_stop: Callable[[], None] = lambda: None
) -> int:
    """Run the after-thaw hooks that killed workers missed, of all domains or of one; return how many failed.

    Only for the holder of the node's lock, and for domains without a worker.
    """
    failed = 0
    for note in sorted(Path(hooks.settings.runtime_dir, DIRECTORY).glob(f"{uuid or '*'}.json")):
        name = ""
        try:
            variables: Mapping[str, str] = json.loads(note.read_text())
            name = variables["DOMAIN"]
            text = "running the after-thaw hooks that an interrupted backup did not run"
            hooks.reporter.message(Level.WARNING, name, text)
            replace(hooks, domain=name).run(When.AFTER_THAW, {"CONSISTENCY": "", **variables}, check_stop)
        except Interrupted:
            return failed + 1  # the note stays
        except BackupError as error:
            failed += 1
            hooks.reporter.message(Level.ERROR, name, str(error))
        except (OSError, ValueError, KeyError):  # not ours: our notes are written completely before any hook
            pass
        _remove(note)
    return failed


def _note(settings: Settings, uuid: str) -> Path:
    return Path(settings.runtime_dir, DIRECTORY, f"{uuid}.json")


def _remove(note: Path) -> None:
    with suppress(OSError):  # the hooks would run again
        note.unlink()


def _write(note: Path, variables: Mapping[str, str]) -> None:
    try:
        note.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(note, json.dumps(variables).encode())
    except OSError as error:
        message = f"cannot write {note}, the note that hooks are about to run: {reason(error)}"
        raise BackupError(message, "see RUNTIME_DIR") from error
