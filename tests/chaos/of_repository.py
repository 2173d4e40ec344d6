"""Faults of the place where the repositories are."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.plan import CONNECTION_CUT, Fault
from tests.chaos.processes import Process, of_roles, send
from tests.chaos.world import Happening, World, wait_for
from tests.lab import LabError
from tests.lab.programs import run_program

LEFT = 300 << 10  # bytes of room in a repository that is full
CONNECTED_LIMIT = 5  # seconds until a restic is connected
CUT_PAUSE = 0.1  # seconds between two cuts
BUSY_LIMIT = 3  # seconds until the kernel makes it read-only: not as long as a file is being written


@contextmanager
def _full(world: World, _fault: Fault) -> Iterator[tuple[str, ...]]:
    filler = world.store / "filler"
    room = os.statvfs(world.store)
    run_program("fallocate", "--length", str(max(4096, room.f_bavail * room.f_frsize - LEFT)), filler)
    try:
        yield ()
    finally:
        filler.unlink()


@contextmanager
def _read_only(world: World, _fault: Fault) -> Iterator[tuple[str, ...]]:
    deadline = time.monotonic() + BUSY_LIMIT
    while not _remounted(world.store, "ro"):
        if time.monotonic() > deadline:
            raise LabError("the repository is being written all the time")
    try:
        yield ()
    finally:
        _remounted(world.store, "rw")


def _remounted(place: Path, how: str) -> bool:
    command = ["mount", "-o", f"remount,{how}", str(place)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


@contextmanager
def _gone(world: World, _fault: Fault) -> Iterator[tuple[str, ...]]:
    away = [
        (place, place.with_name(f"{place.name}.gone")) for place in (*world.places, world.saved_directory)
    ]
    for place, gone in away:
        place.rename(gone)
        place.touch()  # or a restic would make its directories anew, and lose what it saves there
    try:
        yield ()
    finally:
        for place, gone in away:
            place.unlink()
            gone.rename(place)


@contextmanager
def _cut(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    """Cut all connections, and for as long as the fault lasts those that come anew."""
    if not wait_for(lambda: _connections(world), CONNECTED_LIMIT):
        raise LabError("nothing is connected")
    over = threading.Event()
    cutting = threading.Thread(target=_cut_until, args=(world, over), name="cutting")
    cutting.start()
    try:
        yield ()
    finally:
        over.set()
        cutting.join()


def _cut_until(world: World, over: threading.Event) -> None:
    while True:
        for one in _connections(world):
            send(one.pid, signal.SIGKILL)
        if over.wait(CUT_PAUSE):
            return


def _connections(world: World) -> Sequence[Process]:
    nodes = world.nodes.values()
    return [one for node in nodes for one in of_roles(node.directory).get("sftp-server", ())]


HAPPENINGS: Mapping[str, Happening] = {
    "repository full": _full,
    "repository read-only": _read_only,
    "repository gone": _gone,
    CONNECTION_CUT: _cut,
}
