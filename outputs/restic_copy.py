"""Copies whole restore points to a second repository, with `restic copy`.

restic copies the data of a snapshot and then the snapshot with its tags, under a new id. It passes over one
that it cannot read, with exit code 0. So the manifests come in a call of their own, once the copy lists the
images: a restore point counts there only once all of it is copied, whatever ends the copy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from backup.command import COMMAND
from backup.errors import AlreadyRunning, BackupError, ConfigError
from backup.job.failed_points import FailedPoints
from backup.model import Finding, Level
from backup.protocols import Reporter
from backup.report.copy_record import CopyRecord, now, write_record
from backup.restore_point.find import points_of_domains
from backup.settings import Settings
from backup.stored import StoredImage, StoredPoint
from backup.system.child_records import end_orphans
from backup.system.pipe_writer import Stalled
from backup.system.private_directory import make_private
from backup.system.process_group import Group
from backup.system.time_limit import CheckStop, within

from .restic import Restic
from .restic_repository.child import WAIT_POLL, Child
from .restic_repository.locks import remove_dead_locks
from .restic_repository.messages import ResticError
from .restic_repository.password import password_file_errors
from .restic_repository.program import Program

# restic's variables of one repository; those of the source of a copy are called RESTIC_FROM_...
PASSWORD = {"RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"}
PLACE = {"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE", "RESTIC_KEY_HINT"}
OF_REPOSITORY = PLACE | PASSWORD
# Restore points in a call of restic, which loads both indexes: after each one the progress is reported.
BATCH = 200


def settings_of_copy(settings: Settings) -> Settings:
    """Return the settings with the copy as the repository. Raises ConfigError if there is none."""
    if not settings.copy_repository:
        hint = "set it to the repository for the copies, see res/docs/copies.md"
        raise ConfigError([BackupError("COPY_REPOSITORY is not set", hint)])
    if not settings.output.startswith("restic"):
        message = f'OUTPUT = "{settings.output}" is no restic repository, which COPY_REPOSITORY could copy'
        raise ConfigError([BackupError(message, "see res/docs/copies.md")])
    own, password_file = settings.copy_environment, settings.copy_password_file
    dropped = PLACE
    if password_file or PASSWORD & {*own}:
        dropped = OF_REPOSITORY
    else:  # the same password
        password_file = settings.restic_password_file
    shared = {name: value for name, value in settings.restic_environment.items() if name not in dropped}
    return replace(
        settings,
        restic_repository=settings.copy_repository,
        restic_password_file=password_file,
        restic_environment={**shared, **own},
    )


def examine_copy(settings: Settings, check_stop: CheckStop) -> Iterator[Finding]:
    """Check the copy, if there is to be one."""
    if not settings.copy_repository:
        return
    subject = "the copy in COPY_REPOSITORY"
    try:
        copy = RepositoryCopy.from_settings(settings, check_stop)
    except ConfigError as error:
        yield from [Finding(subject, one) for one in error.errors]
        return
    problems = within(math.inf, copy.target.problems, check_stop)
    yield from [Finding(subject, one) for one in problems] or [Finding(subject)]


@dataclass(frozen=True)
class RepositoryCopy:
    """The repository and its copy."""

    settings: Settings
    source: Restic
    target: Restic
    check_stop: CheckStop

    @classmethod
    def from_settings(cls, settings: Settings, check_stop: CheckStop) -> RepositoryCopy:
        """Return the copy that COPY_REPOSITORY names. Raises ConfigError."""
        source, target = map(Restic.from_settings, (settings, settings_of_copy(settings)))
        copy = cls(settings, source, target, check_stop)
        if errors := copy.configuration_errors():
            raise ConfigError(errors)
        return copy

    def copy(self, names: Sequence[str], reporter: Reporter) -> CopyRecord:
        """Copy the whole restore points of these domains, without names of all, that the copy lacks.

        The newest come first. What the copy lacks afterwards, such as what a prune has removed meanwhile, is
        an error in the record. That is stored, unless domains are named: what is shown and watched is whether
        the copy lacks anything. Raises BackupError.
        """
        began, record = now(), None
        with _alone(Path(self._program.runtime_dir)):
            try:
                record = self._carried_out(names, began, reporter)
            except BackupError as error:
                record = CopyRecord(began, now(), error=error.message)
                raise
            finally:
                if record and not names:
                    write_record(self.settings.state_dir, record, reporter)
        return record

    def missing(self, names: Sequence[str]) -> Sequence[StoredPoint]:
        """List the whole restore points that the copy lacks, the newest first. Raises BackupError.

        Those that failed, and are still to be removed, look whole, and are left out.
        """
        failed = FailedPoints(self.settings.state_dir).all()
        saved = points_of_domains(self.source.ready(self.check_stop), names)
        whole = [point for point in reversed(saved) if point.manifest_id and point.id not in failed]
        return _lacking(whole, self._copied_points())

    def _carried_out(self, names: Sequence[str], began: str, reporter: Reporter) -> CopyRecord:
        end_orphans(self._program.runtime_dir)
        for program in (self._program, self.target.program):  # whose records are apart
            remove_dead_locks(program, self.check_stop)
        missing = self.missing(names)
        for start, batch in _batches(missing):
            if start:
                text = f"{start} of {len(missing)} restore points are copied"
                reporter.message(Level.INFO, "", text)
            self._copy(batch)
        left = _lacking(missing, self._copied_points()) if missing else ()
        error = f"{len(left)} restore points are not in the copy, such as {_named(left[0])}" if left else ""
        return CopyRecord(began, now(), len(missing) - len(left), len(left), error)

    def _copy(self, points: Sequence[StoredPoint]) -> None:
        """Copy the images, then the manifests of those restore points whose images are all in the copy."""
        images = dict.fromkeys(image.restore_id for point in points for image in _images_apart(point))
        if images:
            self._call(images)
            points = _with_images(points, self.target.restore_points(self.check_stop))
        if points:
            self._call([point.manifest_id for point in points])

    def _call(self, snapshots: Iterable[str]) -> None:
        program = self._program
        # the repository itself gets no lock: neither backups nor a prune wait for a copy that takes days
        arguments = ("copy", "--no-lock", *snapshots)
        with program.running(*arguments, limit=0, check_stop=self.check_stop) as child:
            _wait(child, program.stall_timeout, self.check_stop)

    @property
    def _program(self) -> Program:
        """The copy's program, which reads the repository too.

        Its records are apart, as its lock is in the copy.
        """
        program, source = self.target.program, self.source.program
        given = {"RESTIC_REPOSITORY": source.repository, "RESTIC_PASSWORD_FILE": source.password_file}
        given = {name: value for name, value in given.items() if value}
        given.update({**source.key_hint.variables, **source.environment})
        of_source = {
            name.replace("RESTIC_", "RESTIC_FROM_", 1): value
            for name, value in given.items()
            if name in OF_REPOSITORY
        }
        runtime_dir = str(Path(program.runtime_dir, "copy"))
        return replace(program, environment={**of_source, **program.environment}, runtime_dir=runtime_dir)

    def _copied_points(self) -> Sequence[StoredPoint]:
        try:
            return self.target.ready(self.check_stop)
        except ResticError as error:
            error.message = f"the copy: {error.message}"
            error.hint = f"COPY_REPOSITORY: `{COMMAND} check` names what is wrong"
            raise

    def configuration_errors(self) -> Sequence[BackupError]:
        """Return what is wrong in the settings of the two repositories together."""
        own, password_file = self.settings.copy_environment, self.settings.copy_password_file
        errors = [*self.source.configuration_errors()]
        if password_file:
            errors += password_file_errors(Path(password_file), "COPY_PASSWORD_FILE")
        if self.source.program.repository == self.target.program.repository:
            errors.append(BackupError("COPY_REPOSITORY is RESTIC_REPOSITORY", "name another repository"))
        for name, value in self.settings.restic_environment.items():
            if name not in OF_REPOSITORY and own.get(name, value) != value:
                message = f"{name} differs in RESTIC_ENVIRONMENT and COPY_ENVIRONMENT"
                hint = "restic has one environment while it copies: reach one of the two by sftp or rclone"
                errors.append(BackupError(message, hint))
        return errors


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lock of copies during the block. Raises AlreadyRunning: both would copy the same snapshots."""
    make_private(directory)
    with (directory / "copy.lock").open("w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning("another copy is active on this node", "wait for its end") from None
        yield


def _lacking(points: Sequence[StoredPoint], copied: Sequence[StoredPoint]) -> Sequence[StoredPoint]:
    """Return the restore points that are not among the copied ones, or of which an image is not."""
    whole = {one.id: {image.target for image in one.images} for one in copied if one.manifest_id}
    return [
        one for one in points if one.id not in whole or {image.target for image in one.images} - whole[one.id]
    ]


def _batches(points: Sequence[StoredPoint]) -> Iterator[tuple[int, Sequence[StoredPoint]]]:
    """Yield parts of them, each with its beginning.

    The first ones are small if manifests are apart: the newest restore points soon count in the copy.
    """
    start, size = 0, 1 if any(map(_images_apart, points)) else BATCH
    while start < len(points):
        yield start, points[start : start + size]
        start, size = start + size, min(2 * size, BATCH)


def _images_apart(point: StoredPoint) -> Sequence[StoredImage]:
    """Return its images that are not in one snapshot with the manifest."""
    return [image for image in point.images if image.restore_id != point.manifest_id]


def _with_images(points: Sequence[StoredPoint], copied: Sequence[StoredPoint]) -> Sequence[StoredPoint]:
    """Return the restore points whose images, but for those with the manifest, are among the copied ones."""
    there = {(one.id, image.target) for one in copied for image in one.images}
    return [one for one in points if {(one.id, image.target) for image in _images_apart(one)} <= there]


def _wait(child: Child, limit: float, check_stop: CheckStop) -> None:
    """Wait for the end of a restic that neither reads nor writes for at most `limit` seconds."""
    moved, since = -1, time.monotonic()
    while child.runs:
        child.wait(WAIT_POLL)
        check_stop()
        if (now_moved := _bytes_moved(child.group)) != moved:
            moved, since = now_moved, time.monotonic()
        elif time.monotonic() > since + limit:
            message = f"restic copy has neither read nor written anything for {limit:.0f} s"
            raise Stalled(message, "are both repositories reachable? see OUTPUT_STALL_TIMEOUT")


def _bytes_moved(group: Group) -> int:
    """Count what the group's processes have read and written, to the network too (man 5 proc_pid_io)."""
    moved = 0
    for one in group.members():
        with suppress(OSError):  # it has just ended
            counters = Path(f"/proc/{one.pid}/io").read_text().split()
            moved += int(counters[1]) + int(counters[3])
    return moved


def _named(point: StoredPoint) -> str:
    return f"{point.domain} of {point.taken:%Y-%m-%d %H:%M} UTC"
