"""outputs/restic_repository/program.py: what restic saved is complete, or there is no snapshot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Optional, Protocol, cast

import pytest

from backup.errors import BackupError, Interrupted
from backup.system.stop_request import StopRequest
from outputs.restic import Restic
from outputs.restic_repository import child
from outputs.restic_repository.messages import ResticError
from outputs.restic_repository.program import Backup, Program
from tests.quick_repository import PASSWORD

from ..raising import raises
from ..repository import Repository
from ..samples import MIB
from ..waiting import children, runs, wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Path(__file__).parents[3]
ARGUMENTS = ("--host=web", "--stdin-filename=vda.img")


class Failure(BackupError):
    """An error in the block."""


class Stuck:
    """A process that not even SIGKILL ends, as in an uninterruptible sleep."""

    pid, stdin, returncode = 1, None, None

    def poll(self) -> None:
        """Runs."""

    def wait(self, timeout: Optional[float] = None) -> int:
        assert timeout is not None, "it waits for ever"
        raise subprocess.TimeoutExpired("restic", timeout)


class StuckGroup:
    """Its group."""

    sent: ClassVar[list[int]] = []

    def members(self) -> list[int]:
        return [1]

    def send(self, number: int) -> None:
        self.sent.append(number)

    def interrupt(self, program: str) -> None:
        assert program == "restic"
        self.send(signal.SIGINT)

    def ended(self, _limit: float) -> bool:
        return False


def test_a_restic_that_does_not_end_although_it_was_killed_is_left(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("wb") as errors:
        stuck = child.Child(cast(Any, Stuck()), cast(Any, StuckGroup()), "shared", 0.0, errors)
        stuck.end(None)
    assert StuckGroup.sent == [signal.SIGINT, signal.SIGKILL]
    assert not stuck.left_nothing, "its record stays"


def go_on() -> None:
    """Never stops."""


class Script(Protocol):
    def __call__(self, *lines: str, repository: str = "", environment: Mapping[str, str] = {}) -> Program: ...


@pytest.fixture
def script(repository: Repository, tmp_path: Path) -> Script:
    """Return a function that makes a program of a shell script which replaces restic.

    The script has nothing to unlock.
    """
    path = tmp_path / "fake-restic"

    def make(*lines: str, **changes: Any) -> Program:
        unlock = 'case "$*" in *unlock*) exit 0 ;; esac'
        path.write_text("\n".join(("#!/bin/sh", unlock, *lines, "")))
        path.chmod(0o700)
        return repository.program(str(path), **changes)

    return make


def summary_line(processed: int) -> str:
    item = {"message_type": "summary", "snapshot_id": "0123abcd", "data_added": 5}
    return f"echo '{json.dumps({**item, 'total_bytes_processed': processed})}'"


def write(backup: Backup, length: int) -> None:
    """Write what restic can't deduplicate; with more than a pipe holds, restic has read most of it."""
    backup.sink.write(os.urandom(length))


@contextmanager
def failing_backup(program: Program) -> Iterator[Backup]:
    """Run a backup whose block raises at its end."""
    with raises("the cluster is gone", Failure), program.backup(ARGUMENTS, go_on) as backup:
        yield backup
        raise Failure("the cluster is gone")


def assert_nothing_saved(repository: Repository) -> None:
    assert repository.snapshot_count() == 0
    assert repository.locks() == []


def test_what_was_written_can_be_read_and_no_secret_was_in_restic_s_arguments(repository: Repository) -> None:
    program = repository.program(
        environment={"RESTIC_PASSWORD": PASSWORD, "AWS_SECRET_ACCESS_KEY": "hunter2"}
    )
    before = set(children())
    data = os.urandom(3 * MIB + 17)
    with program.backup(ARGUMENTS, go_on) as backup:
        (pid,) = set(children()) - before
        backup.sink.write(data)
        words = Path(f"/proc/{pid}/cmdline").read_text()
        backup.sink.write_zeros(2 * MIB)
    assert "backup\0--stdin" in words
    for secret in (PASSWORD, "hunter2", str(repository.path)):  # a repository's URL may hold a password
        assert secret not in words
    assert backup.summary
    assert backup.summary.processed == 5 * MIB + 17
    assert 3 * MIB < backup.summary.added < 5 * MIB
    assert repository.dump(backup.summary.snapshot_id, "vda.img") == data + bytes(2 * MIB)
    assert repository.locks() == []


def test_a_block_that_raises_half_way_leaves_no_snapshot_and_no_lock(repository: Repository) -> None:
    with failing_backup(repository.program()) as backup:
        write(backup, 4 * MIB)
    assert_nothing_saved(repository)


def test_a_block_that_raises_while_restic_starts_leaves_nothing_either(
    repository: Repository, signals_as_in_a_worker: None
) -> None:
    with failing_backup(repository.program()) as backup:
        write(backup, 1000)
    assert_nothing_saved(repository)


def test_a_block_that_raises_while_restic_takes_its_lock_leaves_nothing_either(
    repository: Repository, signals_as_in_a_worker: None
) -> None:
    with failing_backup(repository.program()):
        wait_until(repository.locks, 5, "restic locks the repository")
    # restic 0.14 may leave the lock that it was just creating; `discard` removes it
    Restic(repository.program()).discard((), wait_if_busy=False)
    assert_nothing_saved(repository)


def test_a_writer_that_is_killed_leaves_no_snapshot_and_no_lock(
    repository: Repository, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.unit.hanging_writer", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        pid = int(writer.stdout.readline())
        writer.kill()
    wait_until(lambda: not runs(pid), 5, "restic ends")
    assert_nothing_saved(repository)


def test_an_exit_code_for_a_part_saved_is_a_failure(script: Script) -> None:
    program = script("cat >/dev/null", summary_line(3), "exit 3")
    with raises("restic backup failed with exit code 3"), program.backup(ARGUMENTS, go_on) as backup:
        backup.sink.write(b"abc")


def test_fewer_bytes_saved_than_sent_is_a_failure(script: Script) -> None:
    program = script("cat >/dev/null", summary_line(2))
    with raises("restic saved 2 of the 3 bytes that were sent"), program.backup(ARGUMENTS, go_on) as backup:
        backup.sink.write(b"abc")


@pytest.mark.parametrize(
    "printed", ["", "saved it all, promise", '{"message_type": "status"}', "[1]\nnull\n7"]
)
def test_success_without_a_summary_is_a_failure(script: Script, printed: str) -> None:
    program = script("cat >/dev/null", f"printf '%s' '{printed}'")
    message = "restic succeeded but printed no summary"
    with raises(message), program.backup(ARGUMENTS, go_on) as backup:
        backup.sink.write(b"abc")


def test_the_last_lines_of_a_restic_that_fails_early_are_in_the_error(script: Script) -> None:
    lines = (f"echo '{words}' >&2" for words in ("one", "two", "three", "four", "Fatal: the disk is full"))
    message = "restic backup failed with exit code 1: two; three; four; Fatal: the disk is full"
    with raises(message), script(*lines, "exit 1").backup(ARGUMENTS, go_on) as backup:
        write(backup, 4 * MIB)


def test_the_signal_that_killed_restic_is_in_the_error(script: Script) -> None:
    program = script("kill -9 $$")
    with raises("restic backup was killed by SIGKILL"), program.backup(ARGUMENTS, go_on) as backup:
        write(backup, 4 * MIB)


def test_a_restic_that_succeeds_before_it_has_all_data_is_a_failure(script: Script) -> None:
    before = set(children())

    def back_up() -> None:
        with script("exec <&-", summary_line(0)).backup(ARGUMENTS, go_on) as backup:
            (pid,) = set(children()) - before
            wait_until(lambda: not runs(pid), 5, "restic ends")
            backup.sink.write(b"abc")

    with pytest.raises(BackupError):
        back_up()


@pytest.fixture
def small_interrupt_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "INTERRUPT_LIMIT", 0.05)


def test_a_restic_that_hangs_and_ignores_the_interrupt_is_killed(
    script: Script, small_interrupt_limit: None, tmp_path: Path
) -> None:
    with failing_backup(script("trap '' INT", f"touch {tmp_path}/up", "exec sleep 100")):
        wait_until((tmp_path / "up").exists, 5, "the script runs")


def test_a_restic_that_handles_the_interrupt_only_at_the_end_of_stdin_is_not_killed(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(child, "INTERRUPT_LIMIT", 3)
    lines = (f"trap 'touch {tmp_path}/ended; exit 130' INT", f"touch {tmp_path}/up", "cat >/dev/null")
    with failing_backup(script(*lines)):
        wait_until((tmp_path / "up").exists, 5, "the script runs")
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("stdin", ["cat >/dev/null", "exec <&-"], ids=["all data", "no data"])
def test_a_request_to_stop_is_heard_while_a_restic_that_read_does_not_end(
    script: Script, small_interrupt_limit: None, tmp_path: Path, stdin: str
) -> None:
    stop = StopRequest()

    def stop_after_the_first_look() -> None:
        stop.check()
        stop.request(Interrupted("interrupted", signal.SIGTERM))

    backup = script(stdin, f"touch {tmp_path}/read", "exec sleep 3").backup(
        ARGUMENTS, stop_after_the_first_look
    )
    with raises("interrupted", Interrupted), backup as running:
        if "<&-" in stdin:
            wait_until((tmp_path / "read").exists, 5, "the script closes its standard input")
        running.sink.write(b"abc")


def test_a_wrong_password_is_reported_with_restic_s_message_and_a_hint(repository: Repository) -> None:
    repository.password_file.write_text("battery horse")
    program = repository.program()
    with pytest.raises(ResticError) as caught, program.backup(ARGUMENTS, go_on) as backup:
        write(backup, 4 * MIB)
    assert caught.value.message.endswith("Fatal: wrong password or no key found")
    assert "RESTIC_PASSWORD_FILE" in caught.value.hint


def test_a_missing_repository_is_reported_with_a_hint(repository: Repository, tmp_path: Path) -> None:
    program = repository.program(repository=str(tmp_path / "nowhere"))
    with pytest.raises(ResticError, match="unable to open config file") as caught:
        program.call("snapshots", limit=10)
    assert "RESTIC_REPOSITORY" in caught.value.hint


def test_a_missing_binary_is_reported_with_a_hint(repository: Repository) -> None:
    backup = repository.program("/nowhere/restic").backup(ARGUMENTS, go_on)
    with raises("cannot start /nowhere/restic: no such file or directory") as caught, backup:
        raise AssertionError("the block must not begin")
    assert caught.value.hint == "see RESTIC_BINARY"


@pytest.mark.parametrize(
    ("code", "word"), [(10, "restic init"), (11, "LOCK_WAIT"), (12, "RESTIC_PASSWORD_FILE")]
)
def test_an_exit_code_with_a_hint_of_its_own(script: Script, code: int, word: str) -> None:
    with pytest.raises(ResticError) as caught:
        script(f"exit {code}").call("snapshots", limit=10)
    assert word in caught.value.hint
    assert caught.value.locked == (code == 11)


def test_a_lock_is_recognized_by_its_message_if_the_exit_code_is_1(script: Script) -> None:
    words = "unable to create lock in backend: repository is already locked exclusively by PID 7 on nas"
    with pytest.raises(ResticError) as caught:
        script(f"echo '{words}' >&2; exit 1").call("snapshots", limit=10)
    assert caught.value.locked
    assert caught.value.transient
    assert "LOCK_WAIT" in caught.value.hint


def test_messages_in_json_are_reported_as_text(script: Script) -> None:
    exit_error = {"message_type": "exit_error", "code": 1, "message": "Fatal: no space"}
    item_error = {"message_type": "error", "error": {"message": "read failed"}, "during": "archival"}
    lines = [f"echo '{json.dumps(item)}' >&2" for item in (item_error, exit_error)]
    with raises("restic snapshots failed with exit code 1: read failed; Fatal: no space"):
        script(*lines, "exit 1").call("snapshots", limit=10)


def test_a_call_that_takes_too_long_is_ended(script: Script, small_interrupt_limit: None) -> None:
    with raises("restic snapshots took more than 0 s"):
        script("exec sleep 100").call("snapshots", limit=0.05)


def test_no_secret_is_in_an_error_nor_in_what_python_shows(script: Script) -> None:
    lines = ('echo "tried $RESTIC_PASSWORD at $RESTIC_REPOSITORY" >&2',)
    url = "rest:https://backup:pass/word@host/web"
    program = script(*lines, "exit 1", repository=url, environment={"RESTIC_PASSWORD": PASSWORD})
    with pytest.raises(ResticError) as caught:
        program.call("snapshots", limit=10)
    assert caught.value.message.endswith("tried *** at rest:https://backup:***@host/web")
    assert PASSWORD not in repr(program)


def test_of_our_own_environment_restic_gets_only_what_it_needs(
    repository: Repository, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEPH_ARGS", "--key=hunter2")
    monkeypatch.setenv("RESTIC_REPOSITORY", "/somewhere/else")
    program = script("exec env", environment={"AWS_REGION": "x"})
    printed = dict(line.split("=", 1) for line in program.call("env", limit=10).splitlines())
    assert "CEPH_ARGS" not in printed
    assert printed["RESTIC_REPOSITORY"] == str(repository.path)
    assert (printed["AWS_REGION"], printed["TZ"], printed["HOME"]) == ("x", "UTC", os.environ["HOME"])


@pytest.mark.parametrize(
    ("name", "value", "gets"),
    [
        ("RESTIC_REPOSITORY", "srv/backup", "/srv/backup"),
        ("RESTIC_REPOSITORY", "/srv/backup", "/srv/backup"),
        ("RESTIC_REPOSITORY", "sftp:host:srv/backup", "sftp:host:srv/backup"),
        ("RESTIC_REPOSITORY_FILE", "etc/repository", "/etc/repository"),
        ("RESTIC_PASSWORD_FILE", "etc/password", "/etc/password"),
        ("RESTIC_CACHE_DIR", "var/cache/restic", "/var/cache/restic"),
        ("RESTIC_CACHE_DIR", "", ""),
        ("AWS_REGION", "x", "x"),
    ],
)
def test_relative_paths_are_below_the_root_wherever_restic_starts(
    script: Script, name: str, value: str, gets: str
) -> None:
    printed = script("exec env", environment={name: value}).call("x", limit=5)
    assert f"{name}={gets}" in printed.splitlines()


def test_more_output_than_a_pipe_holds_does_not_block_restic(script: Script) -> None:
    lines = "cat >/dev/null", "head -c 300000 /dev/zero | tr '\\0' x >&2", "echo >&2", summary_line(3)
    with script(*lines).backup(ARGUMENTS, go_on) as backup:
        backup.sink.write(b"abc")
    assert backup.summary


@pytest.mark.parametrize("command", ["call", "dump"])
def test_a_signal_that_restic_got_too_is_reported_as_our_own(script: Script, command: str) -> None:
    stop, before = StopRequest(), set(children())
    program = script("kill -INT $$; sleep 100")

    def check_stop() -> None:
        if set(children()) <= before:  # restic has ended
            stop.request(Interrupted("interrupted", signal.SIGINT))
        stop.check()

    with raises("interrupted", Interrupted):
        if command == "call":
            program.call("snapshots", limit=10, check_stop=check_stop)
        else:
            with program.dump("latest", "vda.img", check_stop) as source:
                source.read()


def test_a_request_to_stop_is_heard_while_a_call_takes_its_time(
    script: Script, small_interrupt_limit: None
) -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", signal.SIGTERM))
    with raises("interrupted", Interrupted):
        script("exec sleep 10").call("snapshots", limit=10, check_stop=stop.check)


def test_a_terminal_s_ctrl_c_does_not_reach_a_restic_that_streams(script: Script, tmp_path: Path) -> None:
    group = tmp_path / "group"
    with script(f"cut -d' ' -f5 /proc/$$/stat >{group}").dump("latest", "vda.img", go_on) as source:
        source.read()
    assert int(group.read_text()) != os.getpgid(0)
