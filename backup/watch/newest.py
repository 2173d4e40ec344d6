"""Which of a node's watchdogs is the newest: the others leave guests that cannot be thawed to it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from ..system.atomic_file import write_atomically
from ..system.process_group import ProcessId, is_running, process_id


class Newest:
    """The newest watchdog of this node, by a file in RUNTIME_DIR."""

    def __init__(self, runtime_dir: str) -> None:
        self._path = Path(runtime_dir, "watchdog")

    def register(self) -> None:
        with suppress(OSError):  # the directory is full: then two may be active
            write_atomically(self._path, json.dumps(process_id(os.getpid())).encode(), durable=False)

    def unregister(self) -> None:
        """Remove the file, unless it is a newer one's."""
        if self._path.exists() and self.is_this():
            with suppress(OSError):
                self._path.unlink()

    def is_this(self) -> bool:
        """Return whether no newer one is alive."""
        try:
            newest = ProcessId(*json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return True
        return newest.pid == os.getpid() or not is_running(newest)
