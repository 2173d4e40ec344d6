"""Faults as they happen, and the moments at which they do."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable
from uuid import uuid4

import pytest

from tests.integration.node import Node, wait_until
from tests.lab import Lab, LabError
from tests.lab.second_node import SecondNode
from tests.unit.hook_files import HookFiles

# Lines for the guest. The agent marks with a file that it is about to freeze; a write that does not come
# back tells that it has. In the seconds after that, `frozen` asks the agent.
ONCE_FROZEN = """
until [ -e /run/qga.state.isfrozen ]; do usleep 20000; done
blocked() { touch /mnt/vda/probe & usleep 300000; kill -0 $! 2>/dev/null; }
until blocked; do :; done
sleep 3
"""
AGENT = "$(pidof qemu-ga)"
# What libvirt says if the agent has given no first sign in time, in new releases and in old ones.
NO_FIRST_SIGN = ("didn't respond to synchronization", "Guest agent not available for now")
AGENT_PATIENCE = 60  # seconds
NOBODY = "nobody answers"
# The shell waits for its restic's lock.
ONCE_LOCKED = 'until ls "$RESTIC_REPOSITORY"/locks | grep -qv tmp; do :; done'
# The shell has a check of its own stand still while that has its lock; one that was too fast it repeats.
STOPPED_CHECK = """
locked() { ls "$RESTIC_REPOSITORY"/locks | grep -qv tmp; }
while :; do
    restic check >&2 & check=$!
    until locked || ! kill -0 $check; do :; done
    kill -STOP $check && locked && break
    kill -CONT $check
    wait $check
done
"""


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Have processes of the lab stand still during the block."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def in_frozen_cgroup(*pids: int) -> Iterator[None]:
    """Have processes do nothing during the block, as in an uninterruptible sleep, where SIGKILL ends none."""
    freezer = Path("/sys/fs/cgroup/freezer")
    if not freezer.exists():
        pytest.skip("a cgroup of version 2 does not keep a process from being killed")
    group = freezer / f"virt-rbd-backup-{os.getpid()}-{uuid4().hex}"
    group.mkdir()
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        for left in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):  # it has just ended
                (freezer / "cgroup.procs").write_text(left)
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 10, "the cgroup is empty")
        group.rmdir()


def kill(*pids: int) -> None:
    """Kill processes without a chance to clean up."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def in_guest(lab: Lab, name: str, lines: str) -> int:
    """Have the guest run lines of shell, in the background; give the number that it knows them by."""
    wait_until(lambda: lab.hypervisor.agent_answers(name), 60, "the agent answers")
    arguments = {"path": "/bin/sh", "arg": ["-c", lines]}
    return int(_asked(lab, name, "guest-exec", arguments)["pid"])


def _asked(lab: Lab | SecondNode, name: str, command: str, arguments: object) -> Any:
    """Ask the agent; again, if it gave no first sign within libvirt's 5 s, as nothing is done by then."""
    call = json.dumps({"execute": command, "arguments": arguments})
    deadline = time.monotonic() + AGENT_PATIENCE
    while True:
        try:
            answer = lab.virsh("qemu-agent-command", name, "--timeout", str(AGENT_PATIENCE), call)
            return json.loads(answer)["return"]
        except LabError as error:
            silent = any(words in str(error) for words in NO_FIRST_SIGN)
            if not silent or time.monotonic() > deadline:
                raise


def done_in_guest(lab: Lab, name: str, lines: str) -> None:
    """Have the guest run lines of shell to their end."""
    pid = in_guest(lab, name, lines)

    def ended() -> bool:
        with suppress(LabError):  # the agent is too slow
            return bool(_asked(lab, name, "guest-exec-status", {"pid": pid})["exited"])
        return False

    wait_until(ended, 300, lines)


def stop_agent(lab: Lab, name: str, seconds: int) -> None:
    """Have the guest agent stand still for a while; its channel stays open."""
    in_guest(lab, name, f"kill -STOP {AGENT}; sleep {seconds}; kill -CONT {AGENT}")


def kill_agent(lab: Lab, name: str, seconds: int, when: str = "") -> None:
    """Kill the guest agent, `when` these lines have ended, and start it again after a while."""
    command = f"command=$(tr '\\0' ' ' </proc/{AGENT}/cmdline)"
    in_guest(lab, name, f"{command}\n{when}\nkill -9 {AGENT}; sleep {seconds}; $command")


@contextmanager
def agent_without(lab: Lab, name: str, *commands: str) -> Iterator[None]:
    """Have the guest's agent refuse these commands during the block."""
    again = f"kill -9 {AGENT}; sleep 1; $(cat /run/agent)"
    in_guest(
        lab,
        name,
        f"tr '\\0' ' ' </proc/{AGENT}/cmdline >/run/agent; {again} --block-rpcs={','.join(commands)}",
    )
    wait_until(lambda: {*commands} <= _refused(lab, name), 90, "the agent refuses them")
    try:
        yield
    finally:
        in_guest(lab, name, again)
        wait_until(lambda: not {*commands, NOBODY} & _refused(lab, name), 90, "the agent refuses none")


def _refused(lab: Lab, name: str) -> set[str]:
    """Give the commands that the guest's agent refuses, NOBODY if none answers."""
    with suppress(LabError):
        known = _asked(lab, name, "guest-info", {})["supported_commands"]
        return {one["name"] for one in known if not one["enabled"]}
    return {NOBODY}


@contextmanager
def agent_hook(lab: Lab, name: str, moment: str, lines: str) -> Iterator[None]:
    """Have the guest agent run lines of shell at the moment "freeze" or "thaw", during the block."""
    done_in_guest(lab, name, f"cat >/run/on-{moment} <<'EOF'\n{lines}\nEOF")
    try:
        yield
    finally:
        wait_until(lambda: lab.hypervisor.agent_answers(name), 60, "the agent answers again")
        done_in_guest(lab, name, f"rm -f /run/on-{moment}*")


def freeze_status(lab: Lab | SecondNode, name: str) -> str:
    """Ask the guest agent whether file systems are frozen; it tells so in either case."""
    return str(_asked(lab, name, "guest-fsfreeze-status", {}))


@contextmanager
def frozen(node: Node, lab: Lab, name: str, **constants: object) -> Iterator[tuple[int, int]]:
    """Have a run whose worker stands still just after it has frozen the guest.

    Gives the pids of the run and the worker. In small steps, as between the freeze and the thaw lies only
    the making of snapshots.
    """
    with node.started("backup", name, **constants) as process:
        wait_until(lambda: held(node), 60, "the guest is being frozen")
        (worker,) = node.workers()
        for _ in range(200):
            os.kill(worker, signal.SIGSTOP)
            status = freeze_status(lab, name)
            if status == "frozen":
                break
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.05)  # or it is stopped again before it gets a processor
        assert status == "frozen"  # not asked again: the agent may be stopped by now
        yield process.pid, worker
        process.communicate(timeout=300)


@contextmanager
def held_before_freeze(
    node: Node, name: str, **constants: object
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """Have a run that waits in a hook, with the guest locked, until the second of these is called."""
    files = HookFiles(node.directory)
    waits, may_go = node.directory / "hook-waits", node.directory / "hook-may-go"
    files.add("before-freeze.d/10-wait", f"touch {waits}; until [ -e {may_go} ]; do sleep 0.1; done")
    settings = {"HOOKS": str(files.directory), "HOOK_TIMEOUT": 600, **constants}
    with node.started("backup", name, **settings) as run:
        wait_until(waits.exists, 60, "its hook runs")
        yield run, may_go.touch


def held(node: Node) -> bool:
    """Tell whether a guest is noted as held still."""
    return bool(list(node.runtime_dir.glob("held/*.json")))


def held_for(node: Node) -> float:
    """Tell for how many seconds a guest has been noted as held still."""
    since = [time.time()]
    for note in node.runtime_dir.glob("held/*.json"):
        with suppress(FileNotFoundError):
            since.append(note.stat().st_mtime)
    return time.time() - min(since)


def streaming(node: Node) -> bool:
    """Tell whether restic is being fed the image that takes a while."""
    return bool(node.processes("--stdin-filename=vdb.img"))


def received_bytes(node: Node) -> int:
    """Tell how many bytes restic has read, while it is fed the image that takes a while."""
    for pid in node.processes("--stdin-filename=vdb.img"):
        with suppress(OSError):  # it has just ended
            found = re.findall(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())
            return int(found[0]) if found else 0
    return 0


def restic_script(node: Node, lines: str) -> str:
    """Make a restic that does something else in some cases; return its path."""
    path = node.directory / "restic"
    path.write_text(f'#!/bin/sh\n{lines}\nexec restic "$@"\n')
    path.chmod(0o755)
    return str(path)


class HeldBackRestic:
    """A restic that waits, before it begins a command with this word, until it is let go.

    `afterwards`: once it has saved it; then it does not end.
    """

    def __init__(self, node: Node, word: str, afterwards: bool = False) -> None:
        self._waits, self._may_go = node.directory / "waits", node.directory / "may-go"
        self._waits.unlink(missing_ok=True)
        wait = f"touch {self._waits}; until [ -e {self._may_go} ]; do sleep 0.05; done"
        if afterwards:
            wait = f'restic "$@"; code=$?; {wait}; exit $code'
        self.path = restic_script(node, f'case "$*" in *{word}*) {wait};; esac')

    def reached(self) -> None:
        """Wait until it waits."""
        wait_until(self._waits.exists, 180, "restic is about to begin")

    def let_go(self) -> None:
        """Let it begin, now and from now on."""
        self._may_go.touch()


@contextmanager
def repository_taken(node: Node) -> Iterator[Callable[[], None]]:
    """Have another host's `restic check` hold the repository, until what is yielded is called.

    That waits for its end.
    """
    environment = {
        **os.environ,
        "RESTIC_REPOSITORY": str(node.repository),
        "RESTIC_PASSWORD_FILE": str(node.password_file),
        "RESTIC_CACHE_DIR": str(node.directory / "cache of another host"),
    }
    lines = f"hostname another-host\n{STOPPED_CHECK}\necho $check; wait $check"
    command = ["unshare", "--uts", "sh", "-c", lines]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout
        check = int(other.stdout.readline())

        def let_go() -> None:
            os.kill(check, signal.SIGCONT)
            assert other.wait(300) == 0

        try:
            yield let_go
        finally:
            if other.poll() is None:
                let_go()


def lines_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """Read what a run prints up to the line with these words."""
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            break
    return lines


@contextmanager
def deletions_held_back(node: Node) -> Iterator[Callable[[], None]]:
    """Keep the node from deleting snapshots, one at a time, until what is yielded is called."""
    node.runtime_dir.mkdir(mode=0o700, exist_ok=True)
    with (node.runtime_dir / "deletion.0.lock").open("w") as slot:
        fcntl.flock(slot, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(slot, fcntl.LOCK_UN)
