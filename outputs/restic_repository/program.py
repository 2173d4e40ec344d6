"""Runs restic's commands on a repository."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import IO, Callable, Optional

from backup.system.child_records import ChildRecord, Recording, Records, records_in
from backup.system.pipe_reader import PipeReader, WriterEnded
from backup.system.pipe_writer import PipeWriter, ReaderClosed, Stalled
from backup.system.process_group import sees_own_pids
from backup.system.spool import Spool
from backup.system.started_program import NOTHING, PIPE, Command, inherited, outlet, printed, without_secrets

from .child import WAIT_POLL, Child, started
from .dying_worker import ServedFiles
from .key_hint import KeyHint
from .messages import MountEnded, ResticError, Summary, failure, last_lines, summary_in, unread_snapshots

# What restic gets of our own environment.
INHERITED = ("PATH", "HOME", "XDG_CACHE_HOME", "RESTIC_CACHE_DIR", "TMPDIR", "SSH_AUTH_SOCK")

# Variables in RESTIC_ENVIRONMENT whose values may be logged; passwords in URLs are replaced anyway.
NO_SECRETS = {"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE", "RESTIC_CACHE_DIR"}

PATHS = {"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE", "RESTIC_CACHE_DIR"}

SNAPSHOTS = "ids"  # the directory in a mount of `restic mount`
CALL_LIMIT = 120  # minimum time limit in seconds for listing and removing snapshots


@dataclass
class Backup:
    """A running `restic backup --stdin`. The summary is set when it has succeeded."""

    sink: PipeWriter
    summary: Summary | None = None


@dataclass(frozen=True)
class Program:
    """The restic binary with its repository. No secret gets into argv, messages or logs.

    Running processes are recorded in `runtime_dir` ("" for no records), see system/child_records.py.
    """

    binary: str
    repository: str
    password_file: str
    environment: Mapping[str, str] = field(repr=False)
    options: Sequence[str]
    stall_timeout: float  # seconds without progress of a backup
    runtime_dir: str = ""
    state_dir: str = ""  # has the hint which key to try first, "" for none

    @property
    def call_limit(self) -> float:
        """Time limit in seconds for listing and removing: `stall_timeout`, but not less than CALL_LIMIT."""
        return max(CALL_LIMIT, self.stall_timeout)

    @property
    def records(self) -> Optional[Records]:
        return records_in(self.runtime_dir) if self.runtime_dir else None

    @property
    def key_hint(self) -> KeyHint:
        return KeyHint.of(self.state_dir, self.repository, self.environment)

    @property
    def place(self) -> str:
        """The repository's name in the records, of which there may be others' too; without secrets."""
        return self.key_hint.path.name

    def call(
        self,
        *arguments: str,
        limit: float,
        check_stop: Callable[[], None] = lambda: None,
        complete: bool = False,
    ) -> str:
        """Run a command for `limit` seconds at most, and return its output. Raises ResticError.

        `complete`: also if it has left out snapshots that it could not read.
        """
        with self.running(*arguments, limit=limit, check_stop=check_stop) as child:
            pass
        self._require_snapshots(arguments[0], child, complete)
        return child.stdout

    @contextmanager
    def running(self, *arguments: str, limit: float, check_stop: Callable[[], None]) -> Iterator[Child]:
        """Run a command that may take `limit` seconds after the block. Raises ResticError."""
        with self._child(arguments, NOTHING) as child:
            yield child
            if not child.ended(limit, check_stop):
                message = f"restic {arguments[0]} took more than {limit:.0f} s"
                hint = "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT"
                raise ResticError(message, hint, transient=True)
        self._require_success(arguments[0], child, check_stop)
        self._require_snapshots(arguments[0], child)

    @contextmanager
    def backup(self, arguments: Sequence[str], check_stop: Callable[[], None]) -> Iterator[Backup]:
        """Run `restic backup --stdin`; the block writes into the sink.

        Raises ResticError unless restic saved every byte that was sent. If the block raises, nothing is
        saved.
        """
        command = ("backup", "--stdin", "--json", "--quiet", *arguments)
        with self._child(command, PIPE) as child:
            with PipeWriter(child.stdin.fileno(), check_stop, self.stall_timeout) as sink:
                backup = Backup(sink)
                closed = None
                try:
                    yield backup
                except ReaderClosed as error:
                    closed = error  # restic's own message, if any, is better
            if child.runs:  # otherwise a wrapper may have left a restic that must be interrupted first
                child.stdin.close()
            self._wait(child, check_stop)
        self._require_success("backup", child, check_stop)
        if closed:
            raise closed
        backup.summary = _summary_of(sink.sent, child)

    def backup_whole(
        self, arguments: Sequence[str], content: Spool, check_stop: Callable[[], None]
    ) -> Summary:
        """Run `restic backup --stdin` on content that is complete before restic starts.

        restic reads it from a file: if this process is killed, a pipe would end early and look complete.
        Raises ResticError unless restic saved every byte.
        """
        command = ("backup", "--stdin", "--json", "--quiet", *arguments)
        with content.as_file() as file, self._child(command, file) as child:
            self._wait(child, check_stop)
        self._require_success("backup", child, check_stop)
        return _summary_of(len(content), child)

    def backup_files(
        self,
        arguments: Sequence[str],
        directory: str,
        check: Callable[[], None],
        files: ServedFiles,
    ) -> Summary:
        """Run `restic backup` of a directory's content; `check` raises what has to end it.

        Raises ResticError unless restic read every file. If this process dies, restic is ended while it waits
        for its next read; without the process that does it, at its next message, see segments/last_files.py.
        """
        # env changes the directory, after exec: before, the child has our open files, the connection of the
        # FUSE file system among them, and would wait for itself
        before = ("env", f"--chdir={directory}")
        command = ("backup", "--json", "--quiet", *arguments, ".")
        with self._child(command, NOTHING, before=before, files=files) as child:
            check()
            while child.runs:
                child.wait(WAIT_POLL)
                check()
        self._require_success("backup", child, check)
        return summary_in(child.stdout)

    @contextmanager
    def dump(self, snapshot: str, file_name: str, check_stop: Callable[[], None]) -> Iterator[PipeReader]:
        """Run `restic dump`; the block reads all bytes of a file.

        Raises ResticError unless restic could read every byte.
        """
        # without a lock: reading works while another program has locked the repository
        arguments = ("dump", "--no-lock", "--quiet", snapshot, file_name)
        out, into = os.pipe()
        with (
            os.fdopen(out, "rb", buffering=0) as pipe,
            os.fdopen(into, "wb", buffering=0) as stdout,
            self._child(arguments, NOTHING, stdout) as child,
        ):
            stdout.close()
            ended = None
            with pipe:  # closed first: an interrupted restic would otherwise wait for its reader
                try:
                    yield PipeReader(out, check_stop, self.stall_timeout)
                except WriterEnded as error:
                    ended = error  # restic's own message, if any, is better
            self._wait(child, check_stop)
        self._require_success("dump", child, check_stop)
        if ended:
            raise ended

    @contextmanager
    def mount(self, directory: str, tags: str, check_stop: Callable[[], None]) -> Iterator[Child]:
        """Run `restic mount` during the block: snapshots with these tags are in DIRECTORY/SNAPSHOTS/ID.

        It has a lock, so that nobody removes them. The block raises MountEnded when restic has ended: then
        the reason is raised, as ResticError.
        """
        # the tags spare it a new look at its index when others save something
        command = ("mount", f"--path-template={SNAPSHOTS}/%I", f"--tag={tags}", directory)
        ended = None
        with self._child(command, NOTHING) as child:
            try:
                yield child
            except MountEnded as error:
                ended = error  # restic's own message, if any, is better
        if ended:
            self._require_success("mount", child, check_stop)
            raise ended

    def last_errors(self, child: Child) -> str:
        """Return the last lines that restic, which may run, has printed as errors; no secrets."""
        return self._without_secrets(last_lines(printed(child.errors).decode(errors="replace")))

    @contextmanager
    def _child(
        self,
        arguments: Sequence[str],
        stdin: int,
        pipe: IO[bytes] | None = None,
        before: Sequence[str] = (),
        files: ServedFiles | None = None,
    ) -> Iterator[Child]:
        """Run restic during the block: after it, restic has ended, whatever happened.

        Its output goes into `pipe`, or is in the child afterwards. `before` precedes the command.
        """
        command = Command(
            [*before, self.binary, *self.options, *arguments],
            self._environment(),
            secret_variables=set(self.environment) - NO_SECRETS,
            secret_arguments=[one for one in self.options if any(map(one.__contains__, self._secrets()))],
        )
        with outlet("stdout") as stdout, outlet("stderr") as stderr:
            try:
                with self._started(command, arguments, stdin, (pipe or stdout, stderr), files) as child:
                    yield child
                child.stdout = printed(stdout).decode(errors="replace")
            except Stalled as stalled:
                # restic 0.18 retries for minutes what a repository refuses, and prints the reason
                lines = self._without_secrets(last_lines(printed(stderr).decode(errors="replace")))
                message = f"{stalled.message}: {lines}" if lines else stalled.message
                raise Stalled(message, stalled.hint) from None

    @contextmanager
    def _started(
        self,
        command: Command,
        arguments: Sequence[str],
        stdin: int,
        outlets: tuple[IO[bytes], IO[bytes]],
        files: ServedFiles | None,
    ) -> Iterator[Child]:
        """Start restic, and end it after the block; then its messages are in the child."""
        stdout, stderr = outlets
        child = recording = None
        try:
            with files.outlet(stderr) if files else _own(stderr) as (messages, give_up):
                namespace = files.namespace if files else ""
                child = started(command, arguments, stdin, (stdout, messages), namespace)
                try:
                    recording = self._recorded(child)
                    with files.reads_waiting(child.process.pid) if files else nullcontext():
                        yield child
                finally:
                    child.end(give_up)
        finally:
            if child:
                child.stderr = printed(stderr).decode(errors="replace")
            if child and recording:
                recording.end(clean=child.left_nothing)

    def _recorded(self, child: Child) -> Optional[Recording]:
        """Record the child, if possible: without a record its lock cannot be proven ours."""
        if not self.records or not sees_own_pids():
            return None
        try:
            one = ChildRecord.for_child(child.process.pid, child.lock, child.began, self.place)
            return Recording(self.records, one)
        except OSError:  # RUNTIME_DIR is full: the backup matters more
            return None

    def _environment(self) -> dict[str, str]:
        built = {**inherited(INHERITED), "LANG": "C.UTF-8", "TZ": "UTC"}
        if self.repository:
            built["RESTIC_REPOSITORY"] = self.repository
        if self.password_file:
            built["RESTIC_PASSWORD_FILE"] = self.password_file
        hint = self.key_hint.variables if self.state_dir else {}
        given = {**built, **hint, **self.environment}
        return {name: _from_root(name, value) for name, value in given.items()}

    def _wait(self, child: Child, check_stop: Callable[[], None]) -> None:
        """Wait for restic's end after the last byte."""
        if not child.ended(self.stall_timeout, check_stop):
            message = f"restic did not end within {self.stall_timeout:.0f} s after the last byte"
            raise Stalled(message, "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT")

    def _require_success(self, command: str, child: Child, check_stop: Callable[[], None]) -> None:
        code = child.process.returncode
        if code == 0:
            return
        check_stop()  # a signal that we got may have been sent to restic too: by a terminal, by systemd
        raise failure(command, code, child.stderr, self._without_secrets(last_lines(child.stderr)))

    def _require_snapshots(self, command: str, child: Child, complete: bool = False) -> None:
        lines = self._without_secrets(last_lines(child.stderr))
        if error := unread_snapshots(command, child.stderr, lines, complete):
            raise error

    def _without_secrets(self, text: str) -> str:
        return without_secrets(text, self._secrets())

    def _secrets(self) -> Sequence[str]:
        """Return the values in RESTIC_ENVIRONMENT that may be secret; short ones occur in any text."""
        return [
            value
            for name, value in self.environment.items()
            if value and (len(value) >= 8 or re.search("KEY|PASSWORD|SECRET|TOKEN", name))
        ]


def _from_root(name: str, value: str) -> str:
    """Make a path in a variable absolute: all calls start in /, but for an incremental backup."""
    named = name == "RESTIC_REPOSITORY" and re.match("[a-z0-9]+:", value)
    return os.path.join("/", value) if name in PATHS and value and not named else value


def _own(stderr: IO[bytes]) -> nullcontext[tuple[IO[bytes], None]]:
    """Return the outlet of a restic that gets none of our files."""
    return nullcontext((stderr, None))


def _summary_of(sent: int, child: Child) -> Summary:
    """Return restic's summary. Raises ResticError unless it saved all bytes that were sent."""
    summary = summary_in(child.stdout)
    if summary.processed != sent:
        message = f"restic saved {summary.processed} of the {sent} bytes that were sent"
        raise ResticError(message, "the restore point does not count")
    return summary
