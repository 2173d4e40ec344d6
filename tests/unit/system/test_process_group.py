"""backup/system/process_group.py: what belongs to a group, wherever a wrapper has moved it."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, TypeVar

from backup.system.mounts import unshare_mounts
from backup.system.process_group import Group, own_mount_namespace

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
