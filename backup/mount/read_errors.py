"""Reports what cannot be read of files that are served."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import BackupError
from ..model import Level
from ..protocols import Reporter
from ..system.stop_request import StopRequest
from .block_image import BLOCK
from .shown_file import File


@dataclass(frozen=True)
class ReadErrors:
    """Counts reads that failed, by the file's name, and reports each block once, but not after a stop."""

    reporter: Reporter
    stop: StopRequest
    counted: Counter[str] = field(default_factory=Counter)
    _reported: set[tuple[str, int]] = field(default_factory=set)

    def count(self, file: File) -> int:
        return self.counted[file.name]

    def report(self, file: File, offset: int, error: BackupError) -> None:
        if self.stop.requested:
            return
        self.counted[file.name] += 1
        block = (file.name, offset // BLOCK)
        if block not in self._reported:  # the kernel and programs retry some of them
            self._reported.add(block)
            self.reporter.message(Level.ERROR, "", f"{file.name}: cannot read at offset {offset}: {error}")
