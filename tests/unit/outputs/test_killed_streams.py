"""outputs/restic.py with a real restic for each of two images, whose worker is killed while it reads both."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable

from backup.system.process import SPAWN
from outputs.restic import Restic

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..repository import Repository
from ..samples import MIB, domain, rbd_disk, restore_point
from ..waiting import wait_until
from .test_killed_incremental import restics

SIZE = 9 * MIB
DATA = {0: b"first" * 1000, 5 * MIB: b"second" * 1000}


class StoppingSnapshot(MemorySnapshot):
    """A snapshot whose second read never arrives; a file named after it shows that it is waited for."""

    reached = Path()

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        number, arrived = len(self.reads), super().start_read(offset, length)

        def wait() -> bytes:
            if number:
                self.reached.touch()
                time.sleep(600)
            return arrived()

        return wait


def save_and_stop(directory: Path) -> None:
    """Begin to save two images, of which neither is ever complete."""
    os.setpgid(0, 0)
    found = []
    for target in ("vda", "vdb"):
        snapshot = StoppingSnapshot(SIZE, DATA)
        snapshot.reached = directory / f"{target} is read"
        found.append(MemorySource(snapshot, rbd_disk(target, f"vms/{target}")))
    output = Restic(Repository(directory).program(), streams=2)
    output.save(restore_point(domain()), found, JobOnPaper())


def test_a_killed_worker_leaves_no_restic_and_no_part_of_an_image(
    repository: Repository, tmp_path: Path
) -> None:
    worker = SPAWN.Process(target=save_and_stop, args=(tmp_path,))
    worker.start()
    wait_until(lambda: len([*tmp_path.glob("* is read")]) == 2, 60, "both images are streamed")
    assert len([*restics(tmp_path)]) == 2
    worker.kill()
    worker.join()
    wait_until(lambda: not [*restics(tmp_path)], 30, "both have ended")
    assert repository.snapshots() == {}
