"""Faults of restic and its repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.provoke import (
    ONCE_LOCKED,
    STOPPED_CHECK,
    kill,
    lines_until,
    received_bytes,
    repository_taken,
    restic_script,
)
from tests.integration.node import SLOW, Node, parent, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MEDIA, MIB, WEB, make_image
from tests.quick_repository import make_repository

SFTP_SERVER = "/usr/lib/openssh/sftp-server"

# What restic does about the images of one domain each, and what is told of it.
FAULTS = {
    WEB: ("kill -9 $$", "restic backup was killed by SIGKILL"),
    MEDIA: ("head --bytes=10000000 >/dev/null; kill -9 $$", "restic backup was killed by SIGKILL"),
    DATABASE: ('restic "$@" >/dev/null; kill -9 $$', "restic backup was killed by SIGKILL"),
    ARCHIVE: ('restic "$@"; exit 3', "restic backup failed with exit code 3"),
    "tiny": ('cat >/dev/null; echo "{[ garbage"; exit 0', "restic succeeded but printed no summary"),
    "large": (f'({ONCE_LOCKED}; kill -STOP $$) & exec restic "$@"', "the output took no byte for 15 s"),
}


@pytest.fixture
def tiny(lab: Lab) -> Iterator[None]:
    make_image(lab, "vms/tiny", 4 * MIB, {0: MIB})
    lab.define_domain("tiny", [RbdDisk("vda", "vms/tiny")])
    yield
    lab.undefine_domain("tiny")
    lab.delete_image("vms/tiny")


@pytest.mark.usefixtures("large", "tiny")
def test_restic_may_fail_in_any_way_and_costs_that_domain_alone(node: Node, plain: str) -> None:
    cases = " ".join(f"*--host={name}*img*) {lines};;" for name, (lines, _) in FAULTS.items())
    restic = restic_script(node, f'case "$*" in {cases} esac')
    done = node.run("backup", RESTIC_BINARY=restic, OUTPUT_STALL_TIMEOUT=15, WORKERS=4)
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert {name for name, domain in domains.items() if domain["status"] == "saved"} == {plain}
    assert {name: domains[name]["reason"] for name in FAULTS} == {
        name: told for name, (_, told) in FAULTS.items()
    }
    # what was saved in vain is removed, and with it the lock of the one that had to be killed
    assert {one["hostname"] for one in node.snapshots()} == {plain}
    locks = [path for path in node.repository.glob("locks/*") if "tmp" not in path.name]
    assert locks == [], "what it was killed in the middle of writing is none"


def test_a_connection_that_breaks_once_costs_no_domain(node: Node, large: str) -> None:
    over_sftp = {
        "RESTIC_REPOSITORY": f"sftp:another-host:{node.repository}",
        "RESTIC_OPTIONS": [f"--option=sftp.command={SFTP_SERVER}"],  # in the place of ssh
        "MAX_READ_RATE": SLOW,
    }
    with node.started("backup", large, ARCHIVE, **over_sftp) as process:
        wait_until(lambda: received_bytes(node) > 4 * MIB, 60, "restic has got a part of the image")
        (restic,) = node.processes("--stdin-filename=vdb.img")
        (server,) = [pid for pid in node.processes(SFTP_SERVER) if _is_child(pid, restic)]
        kill(server)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "retrying 1 failed domains: " in output
    points = [one for one in node.snapshots("definition") if one["hostname"] == large]
    assert len(points) == 1
    assert len(node.snapshots()) == 5, "what the first attempt saved is removed"


def test_a_repository_that_does_not_answer_once_at_the_beginning_costs_no_domain(node: Node) -> None:
    once = node.directory / "once"
    fails = f'mkdir {once} 2>/dev/null && echo "connection reset" >&2 && exit 1'
    restic = restic_script(node, f'case "$*" in *snapshots*) {fails};; esac')
    done = node.run("backup", ARCHIVE, RESTIC_BINARY=restic)
    assert done.returncode == 0, done.stderr
    assert "connection reset" in done.stderr
    assert "retried in 0 s (RETRY_FOR)" in done.stderr


def test_restic_that_saves_less_than_it_was_sent_is_found_out(node: Node, large: str) -> None:
    short = restic_script(node, 'case "$*" in *vdb.img*) head --bytes=10000000 | restic "$@"; exit;; esac')
    done = node.run("backup", large, RESTIC_BINARY=short)
    assert done.returncode == 3
    assert node.report()["domains"][large]["status"] == "failed"
    assert node.snapshots() == []


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"RESTIC_BINARY": "/nowhere/restic"}, "cannot start /nowhere/restic"),
        ({"RESTIC_REPOSITORY": "/nowhere"}, "unable to open config file"),
        ({"RESTIC_PASSWORD_FILE": "{directory}/wrong"}, "wrong password or no key found"),
    ],
)
def test_without_a_working_repository_no_guest_is_touched(
    node: Node, constants: dict[str, str], words: str
) -> None:
    wrong = node.directory / "wrong"
    wrong.write_text("battery horse")
    wrong.chmod(0o600)
    done = node.run("backup", **{k: v.format(directory=node.directory) for k, v in constants.items()})
    assert done.returncode == 1
    assert words in done.stderr
    assert "hint: " in done.stderr
    report = node.report()
    assert (report["exit_code"], report["domains"]) == (1, {})


def test_a_repository_that_another_host_has_to_itself_is_waited_for(node: Node) -> None:
    waiting = "waiting up to 60 s (LOCK_WAIT)"
    with repository_taken(node) as let_go, node.started("backup", ARCHIVE, LOCK_WAIT=60) as process:
        lines = lines_until(process, waiting)
        assert list(node.repository.glob("locks/*")), f"it is a live one: {lines}"
        let_go()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, [*lines, output]
    assert waiting in lines[-1], lines


@contextmanager
def locked_from_elsewhere(node: Node, line: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a restic in another PID namespace, with this host's name, lock the repository.

    A line of shell starts it. Any other restic takes its lock for a dead one's, as it knows no process of
    that number. It goes on at the end of its standard input.
    """
    environment = {
        **os.environ,
        "RESTIC_REPOSITORY": str(node.repository),
        "RESTIC_PASSWORD_FILE": str(node.password_file),
        "RESTIC_CACHE_DIR": str(node.directory / "cache of another container"),
    }
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", line]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            wait_until(lambda: locks(node) or other.poll() is not None, 20, "it has its lock")
            yield other
        finally:
            if other.poll() is None:
                other.kill()


def locks(node: Node) -> list[str]:
    return [path.name for path in node.repository.glob("locks/*") if "tmp" not in path.name]


def _is_child(pid: int, of: int) -> bool:
    try:
        return parent(pid) == of
    except OSError:  # it has just ended
        return False


def logging_restic(node: Node, lines: str = "") -> tuple[str, Path]:
    """Make a restic that logs its calls; return its path and the log's."""
    log = node.directory / "restic.log"
    return restic_script(node, f'echo "$*" >>{log}\n{lines}'), log


def test_a_lock_of_a_living_restic_in_another_pid_namespace_survives_a_run(node: Node, plain: str) -> None:
    twice = 'until [ $(ls "$RESTIC_REPOSITORY"/locks | grep -vc tmp) -ge 2 ]; do :; done'
    lines = f'exec 3<&0; restic "$@" <&3 & {twice}; sleep 1; kill -9 $!; exit 1'
    restic, log = logging_restic(node, f'case "$*" in *--host={ARCHIVE}*img*) {lines};; esac')
    with locked_from_elsewhere(node, "exec restic backup --stdin") as other:
        (lock,) = locks(node)
        done = node.run("backup", plain, ARCHIVE, RESTIC_BINARY=restic, WORKERS=1)
        domains = node.report()["domains"]
        assert (domains[plain]["status"], domains[ARCHIVE]["status"]) == ("saved", "failed"), done.stderr
        assert locks(node) == [lock], "and that of the run's own restic that was killed is gone"
        other.communicate(b"data", timeout=60)
        assert other.returncode == 0
    assert "unlock" not in log.read_text()


def test_a_lock_of_a_living_check_in_another_pid_namespace_survives_a_run_that_waits(node: Node) -> None:
    restic, log = logging_restic(node)
    line = f"{STOPPED_CHECK}\necho; read end; kill -CONT $check; wait $check"
    with locked_from_elsewhere(node, line) as other:
        assert other.stdout
        other.stdout.readline()
        (lock,) = locks(node)
        done = node.run("backup", ARCHIVE, RESTIC_BINARY=restic, LOCK_WAIT=8)
        assert locks(node) == [lock]
        other.communicate(timeout=240)
        assert other.returncode == 0
    assert done.returncode == 3
    reason = node.report()["domains"][ARCHIVE]["reason"]
    assert "repository is already locked exclusively by PID " in reason
    assert "lock was created at " in reason
    assert "unlock" not in log.read_text()


def test_what_a_wrapper_has_started_ends_with_an_interrupted_run(node: Node, large: str) -> None:
    wrapper = restic_script(node, 'restic "$@"\nexit')
    with node.started("backup", large, RESTIC_BINARY=wrapper, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: len(node.processes("--stdin-filename=vdb.img")) == 2, 60, "restic is fed")
        process.terminate()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 143, output
    assert node.processes("--stdin-filename") == []
    assert node.snapshots() == []


@pytest.fixture
def small_disk(node: Node) -> Iterator[Node]:
    """A node whose repository is on a file system of 16 MB."""
    mounted = node.directory / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mounted], check=True)
    empty, node.repository = node.repository, mounted / "repository"
    make_repository(node.repository)
    node.constants["RESTIC_REPOSITORY"] = str(node.repository)
    try:
        yield node
        _remount(node, "rw,size=64m")
        node.restic("unlock")
        node.restic("check")
    finally:
        subprocess.run(["umount", mounted], check=True)
        node.repository = empty


def test_a_repository_that_is_full_fails_what_does_not_fit(small_disk: Node, large: str) -> None:
    node = small_disk
    done = node.run("backup", large)
    assert done.returncode == 3
    assert "no space left on device" in node.report()["domains"][large]["reason"]
    assert large in done.stderr
    _remount(node, "size=64m")
    assert node.run("backup", ARCHIVE).returncode == 0, "with room it goes on"


def test_a_repository_that_can_not_be_written_to_fails_its_domains(small_disk: Node) -> None:
    node = small_disk
    _remount(node, "ro")
    # restic 0.14 fails at once, 0.18 tries for minutes
    done = node.run("backup", ARCHIVE, OUTPUT_STALL_TIMEOUT=10)
    assert done.returncode == 3
    assert "read-only file system" in node.report()["domains"][ARCHIVE]["reason"]


def _remount(node: Node, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", node.repository.parent], check=True)
