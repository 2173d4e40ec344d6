"""Hooks: the admin's programs that run before and after the steps of a backup.

HOOKS has a directory for each phase; its programs run one after the other, in the order of their names.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Callable, Optional

from ..errors import BackupError, reason
from ..job_result import JobResult, Phase
from ..model import Domain, Finding, Level
from ..protocols import Reporter
from ..report.run_report import RunResult
from ..settings import Settings, written_by_others
from .program import AdminProgram, ProgramFailed

NAME = re.compile("[A-Za-z0-9_-]+")  # as in run-parts: no backup files, none set aside by a package manager
VARIABLE = "VIRT_RBD_BACKUP_"
HOOK_MARGIN = 120  # seconds that a hook may take to begin, and to end after its limit


class When(str, Enum):
    """A phase of hooks; its value is that of VIRT_RBD_BACKUP_PHASE."""

    BEFORE_RUN = "before-run"
    BEFORE_FREEZE = "before-freeze"
    AFTER_THAW = "after-thaw"
    AFTER_JOB = "after-job"
    AFTER_RUN = "after-run"

    @property
    def undoes(self) -> bool:
        """Whether all of its hooks run, even if others fail."""
        return self.value.startswith("after")


@dataclass(frozen=True)
class Hooks:
    """The hooks of a run, or of one domain's job in it."""

    settings: Settings
    run_id: str
    reporter: Reporter
    domain: str = ""

    def run(
        self, when: When, about: Mapping[str, str], check_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Run a phase's hooks; `about` are their variables, without the common prefix.

        Before a step the first failure ends the phase, after it the other hooks follow. Raises BackupError of
        the first failure; what `check_stop` raises, after the hook has been ended.
        """
        failed: Optional[BackupError] = None
        paths = self._paths(when)
        if paths and self.domain:
            self.reporter.phase(self.domain, Phase.HOOKS, self.settings.hook_timeout + HOOK_MARGIN)
        for path in paths:
            try:
                self._run(path, when, about, check_stop)
            except ProgramFailed as error:
                if not when.undoes:
                    raise
                if failed:
                    self.reporter.message(Level.ERROR, self.domain, str(error))
                failed = failed or error
        if failed:
            raise failed

    def _paths(self, when: When) -> Sequence[Path]:
        if not self.settings.hooks:
            return ()
        if not os.path.isdir(self.settings.hooks):
            raise ProgramFailed(f"directory {self.settings.hooks} does not exist", "see HOOKS")
        try:
            return [path for path, ignored in _programs(Path(self.settings.hooks), when) if not ignored]
        except OSError as error:
            raise ProgramFailed(f"cannot read {self.settings.hooks}: {reason(error)}", "see HOOKS") from error

    def _run(self, path: Path, when: When, about: Mapping[str, str], check_stop: Callable[[], None]) -> None:
        name = f"hook {path.parent.name}/{path.name}"
        _require_ours(path)
        self.reporter.message(Level.DEBUG, self.domain, f"{name} starts")  # for each, as a sign of life
        variables = environment({"PHASE": when.value, "RUN": self.run_id, **about}, self.settings.group)
        program = AdminProgram(name, [str(path)], variables, self.settings.hook_timeout)

        def log(line: str) -> None:
            self.reporter.message(Level.INFO, self.domain, f"{name}: {line}")

        program.run(log, check_stop)


def environment(about: Mapping[str, str], group: str = "") -> Mapping[str, str]:
    """Return the variables with their prefix, HOST, and GROUP if there is one."""
    values = {"HOST": socket.gethostname(), **({"GROUP": group} if group else {}), **about}
    return {f"{VARIABLE}{key}": value for key, value in values.items()}


def about_domain(domain: Domain) -> Mapping[str, str]:
    """Return the variables that describe the domain."""
    return {
        "DOMAIN": domain.name,
        "UUID": domain.uuid,
        "LIBVIRT": domain.uri,
        "STATE": domain.state.value,
    }


def about_job(result: JobResult) -> Mapping[str, str]:
    """Return the variables that describe the result of a job."""
    return {
        "DOMAIN": result.name,
        "UUID": result.uuid,
        "STATUS": result.status.value,
        "REASON": result.reason,
        "CONSISTENCY": result.consistency.value if result.consistency else "",
    }


def about_run(result: RunResult) -> Mapping[str, str]:
    """Return the variables that describe the result of a run."""
    return {"EXIT_CODE": str(result.exit_code), "SUMMARY": result.summary}


def check_hooks(settings: Settings) -> Iterator[Finding]:
    """List the hooks, entries that are ignored, and files writable by other users."""
    directory = Path(settings.hooks)
    phases = {f"{when.value}.d": when for when in When}
    try:
        entries = sorted(entry.name for entry in directory.iterdir())
        yield Finding(f"HOOKS {directory}", written_by_others(directory))
        for entry in entries:
            if entry not in phases:
                yield Finding(f"{directory / entry}: ignored, as it is no phase of hooks")
                continue
            for path, ignored in _programs(directory, phases[entry]):
                yield _finding(path, ignored)
    except OSError as error:
        yield Finding("HOOKS", BackupError(f"cannot read {directory}: {reason(error)}", "see HOOKS"))


def _finding(path: Path, ignored: str) -> Finding:
    subject = f"hook {path.parent.name}/{path.name}"
    if ignored:
        return Finding(f"{subject}: ignored, {ignored}")
    try:
        _require_ours(path)
    except ProgramFailed as error:
        return Finding(subject, error)
    return Finding(subject)


def _programs(directory: Path, when: When) -> Iterator[tuple[Path, str]]:
    """Yield the entries of a phase's directory, sorted, with the reason to ignore each. Raises OSError."""
    try:
        paths = sorted((directory / f"{when.value}.d").iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        if not NAME.fullmatch(path.name):
            yield path, "its name has other characters than letters, digits, - and _"
        elif not path.is_file():
            yield path, "not a file"
        else:
            yield path, "" if os.access(path, os.X_OK) else "not executable"


def _require_ours(path: Path) -> None:
    """Raise ProgramFailed if another user could have created or changed the hook."""
    try:
        for one in (path.parent.parent, path.parent, path):
            if wrong := written_by_others(one):
                raise ProgramFailed(wrong.message, wrong.hint)
    except OSError as error:
        raise ProgramFailed(f"cannot read {path}: {reason(error)}") from error
