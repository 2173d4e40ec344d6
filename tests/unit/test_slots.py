"""backup/slots.py: no more than so many at the same time, over all processes of the node."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backup.slots import Slots

from .waiting import wait_until

HOLDER = """
import sys
from backup.slots import Slots
with Slots(sys.argv[1], "deletion", 1).one():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_no_more_than_so_many_hold_one_at_the_same_time(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path), "deletion", 2)
    most = now = 0
    lock = threading.Lock()
    pair = threading.Barrier(2, timeout=10)

    def hold() -> None:
        nonlocal most, now
        with slots.one():
            with lock:
                now += 1
                most = max(most, now)
            pair.wait()  # two of them have to be there at once
            with lock:
                now -= 1
            pair.wait()

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(hold) for _ in range(6)]:
            done.result()
    assert most == 2


def test_what_another_process_holds_is_waited_for_and_free_once_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        got = threading.Event()

        def get() -> None:
            with Slots(str(tmp_path), "deletion", 1).one():
                got.set()

        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(get)
            assert not got.wait(0.3)
            holder.kill()
            wait_until(got.is_set, 10, "it is free")
            waiting.result()


def test_without_a_place_to_note_it_there_is_no_limit() -> None:
    with Slots("/nowhere", "deletion", 1).one(), Slots("/nowhere", "deletion", 1).one():
        pass
