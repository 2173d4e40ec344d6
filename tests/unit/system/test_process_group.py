"""backup/system/process_group.py: what belongs to a group, wherever a wrapper has moved it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, TypeVar

from backup.system.mounts import unshare_mounts
from backup.system.process_group import Group, ProcessId, own_mount_namespace, process_id

from ..waiting import wait_until

Result = TypeVar("Result")


def in_thread(call: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def test_a_thread_without_a_namespace_of_its_own_has_none_whose_processes_could_be_ended() -> None:
    assert own_mount_namespace() == ""
    assert in_thread(own_mount_namespace) == ""


def test_what_moved_to_another_group_and_session_is_found_by_the_namespace_made_for_it() -> None:
    def started() -> Group:
        unshare_mounts()
        script = "setsid sleep 60 & sleep 60"
        child = subprocess.Popen(["sh", "-c", script], preexec_fn=os.setpgrp)
        return Group.led_by(child.pid, own_mount_namespace())

    group = in_thread(started)
    outside = subprocess.Popen(["sleep", "60"])
    try:
        wait_until(lambda: len({os.getsid(one.pid) for one in group.members()}) == 2, 10, "it has moved")
        assert outside.pid not in {one.pid for one in group.members()}
        group.send(signal.SIGKILL)
        assert group.ended(10)
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()


def test_what_a_program_has_started_is_not_interrupted_with_it(tmp_path: Path) -> None:
    """Such as restic's ssh, which is in its group: without it restic could not remove its lock."""
    shutil.copy("/bin/sh", tmp_path / "restic_0.18")
    script = f'{tmp_path}/restic_0.18 -c "sleep 61 & trap exit INT; while :; do sleep 0.05; done"; exit 3'
    wrapper = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    group = Group(process_id(wrapper.pid), wrapper.pid)
    try:
        wait_until(lambda: len(of_ssh(group)) == 1, 10, "all have started")
        (ssh,) = of_ssh(group)
        group.interrupt("restic")
        wait_until(lambda: list(group.members()) == [ssh], 10, "the others have ended")
    finally:
        group.send(signal.SIGKILL)
        wrapper.wait()


def of_ssh(group: Group) -> list[ProcessId]:
    lines = {one: Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in group.members()}
    return [one for one, line in lines.items() if line == b"sleep\0" + b"61\0"]
