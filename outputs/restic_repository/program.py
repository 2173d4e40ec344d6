"""The restic program with its repository, and the commands of it that are run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Callable, Optional

from backup.system.child_records import ChildRecord, Recording, Records, records_in
from backup.system.pipe_reader import PipeReader, WriterEnded
from backup.system.pipe_writer import PipeWriter, ReaderClosed, Stalled
from backup.system.process_group import sees_own_pids
from backup.system.started_program import NOTHING, PIPE, Command, inherited, without_secrets

from .child import WAIT_POLL, Child, outlet, printed, started
from .messages import ResticError, Summary, failure, is_locked, last_lines, summary_in

# What restic gets of our own environment; everything else is left out.
INHERITED = ("PATH", "HOME", "XDG_CACHE_HOME", "RESTIC_CACHE_DIR", "TMPDIR", "SSH_AUTH_SOCK")

# Of RESTIC_ENVIRONMENT, those whose values are no secret; passwords in URLs are left out anyway.
NO_SECRETS = {"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE", "RESTIC_CACHE_DIR"}

CALL_LIMIT = 120  # seconds for listing and removing snapshots, at the least


@dataclass
class Backup:
    """A running `restic backup --stdin`. The summary is there when it has ended well."""

    sink: PipeWriter
    summary: Summary | None = None


@dataclass(frozen=True)
class Program:
    """The restic binary with its repository. Nothing secret gets into argv or into messages.

    What is started is recorded in `runtime_dir` while it runs, "" for nowhere; see system/child_records.py.
    """

    binary: str
    repository: str
    password_file: str
    environment: Mapping[str, str] = field(repr=False)
    options: Sequence[str]
    stall_timeout: float  # seconds without progress of a backup
    runtime_dir: str = ""

    @property
    def call_limit(self) -> float:
        """Seconds for what lists or removes: as long as a backup may stall, and never too short."""
        return max(CALL_LIMIT, self.stall_timeout)

    @property
    def records(self) -> Optional[Records]:
        return records_in(self.runtime_dir) if self.runtime_dir else None

    @property
    def locks_directory(self) -> Optional[Path]:
        """Where the locks lie, if that is a directory of this node's for sure.

        It is where a path names the repository, and nothing else could (restic's design.rst, "Repository
        Layout").
        """
        named_elsewhere = any(name.startswith("RESTIC_REPOSITORY") for name in self.environment)
        options = ("-r", "--repo", "-o", "--option")
        if named_elsewhere or any(option.startswith(options) for option in self.options):
            return None
        directory = Path("/", self.repository, "locks")
        return directory if self.repository and directory.is_dir() else None

    def may_have_locks(self) -> bool:
        """Tell whether there may be locks: where a look into a directory says no, that saves a call."""
        try:
            return not self.locks_directory or bool(os.listdir(self.locks_directory))
        except OSError:
            return True

    def call(self, *arguments: str, limit: float, check_stop: Callable[[], None] = lambda: None) -> str:
        """Run a command for `limit` seconds at most, return what it prints. Raises ResticError."""
        with self._child(arguments, NOTHING) as child:
            if not child.ended(limit, check_stop):
                message = f"restic {arguments[0]} took more than {limit:.0f} s"
                hint = "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT"
                raise ResticError(message, hint, transient=True)
        self._require_success(arguments[0], child, check_stop)
        return child.stdout

    @contextmanager
    def backup(self, arguments: Sequence[str], check_stop: Callable[[], None]) -> Iterator[Backup]:
        """Run `restic backup --stdin`; the block writes into the sink.

        Raises ResticError unless restic has saved every byte that was sent. If the block raises, nothing
        is saved.
        """
        command = ("backup", "--stdin", "--json", "--quiet", *arguments)
        with self._child(command, PIPE) as child:
            with PipeWriter(child.stdin.fileno(), check_stop, self.stall_timeout) as sink:
                backup = Backup(sink)
                closed = None
                try:
                    yield backup
                except ReaderClosed as error:
                    closed = error  # restic's own words say more, if it has any
            if child.runs:  # or a wrapper has left a restic behind, which is to be interrupted first
                child.stdin.close()
            self._wait(child, check_stop)
        self._require_success("backup", child, check_stop)
        if closed:
            raise closed
        backup.summary = _summary_of(sink.sent, child)

    def backup_whole(
        self, arguments: Sequence[str], content: bytes, check_stop: Callable[[], None]
    ) -> Summary:
        """Run `restic backup --stdin` on content that is there as a whole before it starts.

        From a file, as the end of a pipe would come too early when this process is killed, and look like its
        content's. Raises ResticError unless restic has saved every byte.
        """
        command = ("backup", "--stdin", "--json", "--quiet", *arguments)
        with os.fdopen(os.memfd_create("content"), "w+b") as file:
            file.write(content)
            file.seek(0)  # which writes out the buffer too
            with self._child(command, file.fileno()) as child:
                self._wait(child, check_stop)
        self._require_success("backup", child, check_stop)
        return _summary_of(len(content), child)

    def backup_files(
        self,
        arguments: Sequence[str],
        directory: str,
        look: Callable[[], None],
        give_up: Callable[[], None],
    ) -> Summary:
        """Run `restic backup` of a directory's content; `look` raises what has to end it.

        Raises ResticError unless restic could read every file. After an interrupt `give_up` is called, which
        has to end reads that get no answer: not before, as restic leaves out what it can't read.
        """
        # changes its directory as a program of its own: until then it has our open files, the file system's
        # connection among them, and must not wait for an answer of that file system
        before = ("env", f"--chdir={directory}")
        command = ("backup", "--json", "--quiet", *arguments, ".")
        with self._child(command, NOTHING, before=before, give_up=give_up) as child:
            look()
            while child.runs:
                child.wait(WAIT_POLL)
                look()
        self._require_success("backup", child, look)
        return summary_in(child.stdout)

    @contextmanager
    def dump(self, snapshot: str, file_name: str, check_stop: Callable[[], None]) -> Iterator[PipeReader]:
        """Run `restic dump`; the block reads a file's bytes, all of them unless it raises.

        Raises ResticError unless restic could read every byte.
        """
        # without a lock: it can be read back while another program has the repository to itself
        arguments = ("dump", "--no-lock", "--quiet", snapshot, file_name)
        out, into = os.pipe()
        with (
            os.fdopen(out, "rb", buffering=0) as pipe,
            os.fdopen(into, "wb", buffering=0) as stdout,
            self._child(arguments, NOTHING, stdout) as child,
        ):
            stdout.close()
            ended = None
            with pipe:  # or an interrupted restic would go on waiting for its reader
                try:
                    yield PipeReader(out, check_stop, self.stall_timeout)
                except WriterEnded as error:
                    ended = error  # restic's own words say more, if it has any
            self._wait(child, check_stop)
        self._require_success("dump", child, check_stop)
        if ended:
            raise ended

    @contextmanager
    def _child(
        self,
        arguments: Sequence[str],
        stdin: int,
        pipe: IO[bytes] | None = None,
        before: Sequence[str] = (),
        give_up: Callable[[], None] | None = None,
    ) -> Iterator[Child]:
        """Start restic; whatever happens in the block, it has ended after it.

        What it prints goes into `pipe`, or is there afterwards. `before` is what comes before its name.
        """
        command = Command(
            [*before, self.binary, *self.options, *arguments],
            self._environment(),
            secret_variables=set(self.environment) - NO_SECRETS,
            secret_arguments=[one for one in self.options if any(map(one.__contains__, self._secrets()))],
        )
        with outlet("stdout") as stdout, outlet("stderr") as stderr:
            child = started(command, arguments[0], stdin, (pipe or stdout, stderr))
            recording = None
            try:
                recording = self._recorded(child)
                yield child
            except Stalled as stalled:
                child.end(give_up)
                # restic 0.18 tries for minutes what a repository refuses, and says so
                words = self._without_secrets(last_lines(printed(stderr)))
                message = f"{stalled.message}: {words}" if words else stalled.message
                raise Stalled(message, stalled.hint) from None
            finally:
                child.end(give_up)
                child.stdout, child.stderr = printed(stdout), printed(stderr)
                if recording:
                    code = child.process.returncode
                    recording.end(clean=code == 0 or is_locked(code, child.stderr))

    def _recorded(self, child: Child) -> Optional[Recording]:
        """Record what was started, if that can be done: or a lock that it leaves can't be proven ours."""
        if not self.records or not sees_own_pids():
            return None
        try:
            return Recording(self.records, ChildRecord.for_child(child.process.pid, child.lock, child.began))
        except OSError:  # RUNTIME_DIR is full: a backup is worth more
            return None

    def _environment(self) -> dict[str, str]:
        built = {**inherited(INHERITED), "LANG": "C.UTF-8", "TZ": "UTC"}
        if self.repository:
            built["RESTIC_REPOSITORY"] = self.repository
        if self.password_file:
            built["RESTIC_PASSWORD_FILE"] = self.password_file
        return {**built, **self.environment}

    def _wait(self, child: Child, check_stop: Callable[[], None]) -> None:
        """Wait for its end after the last byte."""
        if not child.ended(self.stall_timeout, check_stop):
            message = f"restic did not end within {self.stall_timeout:.0f} s after the last byte"
            raise Stalled(message, "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT")

    def _require_success(self, command: str, child: Child, check_stop: Callable[[], None]) -> None:
        code = child.process.returncode
        if code == 0:
            return
        check_stop()  # the signal that we got may have been sent to restic too: by a terminal, by systemd
        raise failure(command, code, child.stderr, self._without_secrets(last_lines(child.stderr)))

    def _without_secrets(self, words: str) -> str:
        return without_secrets(words, self._secrets())

    def _secrets(self) -> Sequence[str]:
        """Give the values of RESTIC_ENVIRONMENT that may be secret: a short one may be a part of any text."""
        return [
            value
            for name, value in self.environment.items()
            if value and (len(value) >= 8 or re.search("KEY|PASSWORD|SECRET|TOKEN", name))
        ]


def _summary_of(sent: int, child: Child) -> Summary:
    """Give what restic says it has saved. Raises ResticError unless that is all that was sent."""
    summary = summary_in(child.stdout)
    if summary.processed != sent:
        message = f"restic saved {summary.processed} bytes of {sent} that were sent"
        raise ResticError(message, "the restore point does not count")
    return summary
