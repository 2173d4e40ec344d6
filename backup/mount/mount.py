"""The command mount: shows a restore point's disks as files until it is stopped or unmounted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from typing import Callable

from ..command import COMMAND
from ..model import Level
from ..protocols import Output, Reporter
from ..settings import Settings
from ..system.stop_request import StopRequest
from .file_system import FileSystem, served
from .mountpoint import prepared
from .read_errors import ReadErrors
from .shown_point import ShownPoint, shown_point

STOP_POLL = 0.2  # seconds between two checks for a stop


@dataclass(frozen=True)
class Mount:
    """Mounts a restore point."""

    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest

    def mount(self, domain: str, at: str, directory: str, ready: Callable[[str], None]) -> None:
        """Show a domain's restore point in a directory until somebody unmounts it.

        `ready` gets a text for the admin when it is there. Raises BackupError, also on a stop.
        """
        path = prepared(directory, partial(self.output.holds, check_stop=self.stop.check))
        limit = self.settings.output_stall_timeout
        with shown_point(self.output, domain, at, limit, self.stop.check) as point:
            for text in point.saved.lacks:
                self.reporter.message(Level.WARNING, point.saved.name, text)
            failed = ReadErrors(self.reporter, self.stop).report
            files = [*point.disks.values(), *point.texts]
            with served(FileSystem(files, point.time_ns, failed), path) as serving:
                ready(_ready_text(point, path, self.output.prunes))
                while not serving.ended.wait(STOP_POLL):
                    self.stop.check()
                    point.check()
                serving.check()


def _ready_text(point: ShownPoint, path: str, pruned_by_us: bool) -> str:
    shown = shlex.quote(path)
    until_then = f"`{COMMAND} prune` leaves it" if pruned_by_us else "`restic prune` has to wait"
    return (
        f"{point.saved.name}, {point.saved.title}, is in {shown} until Ctrl-C or `fusermount3 -u {shown}`;"
        f" {until_then} until then"
    )
