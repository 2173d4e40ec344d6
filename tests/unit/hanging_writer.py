"""A worker process that hangs in the middle of an image: python3 -m tests.unit.hanging_writer DIRECTORY"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from .repository import Repository
from .samples import MIB
from .waiting import children


def main(directory: Path) -> None:
    """Write more than a pipe holds, so that restic has read most of it; print its pid; hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program = Repository(directory).program()
    with program.backup(("--host=web", "--stdin-filename=vda.img"), lambda: None) as backup:
        backup.sink.write(os.urandom(4 * MIB))
        (pid,) = children()
        print(pid, flush=True)
        signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
