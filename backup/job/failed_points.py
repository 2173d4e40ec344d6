"""Restore points that failed after the output may have stored them: noted until they are removed.

What looks complete in the repository must not be built on, or count as a backup, in later runs either.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..stored import PointId
from ..system.private_directory import make_private

DIRECTORY = "failed-points"  # in STATE_DIR
_NAME = re.compile(r"(?P<run>[^.]+)\.(?P<uuid>[0-9a-f-]{36})\.(?P<attempt>[0-9]+)")


@dataclass(frozen=True)
class FailedPoints:
    """One empty file for each: RUN.UUID.ATTEMPT. Without a STATE_DIR that can be written, none is noted."""

    state_dir: str

    @property
    def _directory(self) -> Path:
        return Path(self.state_dir, DIRECTORY)

    def add(self, point: PointId) -> None:
        with suppress(OSError):  # the run that is under way knows it nevertheless
            make_private(self._directory)
            self._file(point).touch(mode=0o600)

    def remove(self, points: Collection[PointId]) -> None:
        for point in points:
            with suppress(OSError):  # then it is looked for once more
                self._file(point).unlink(missing_ok=True)

    def all(self) -> set[PointId]:
        """Return those of all runs of this node."""
        with suppress(OSError):
            found = map(_NAME.fullmatch, (path.name for path in self._directory.iterdir()))
            return {PointId(one["run"], one["uuid"], int(one["attempt"])) for one in found if one}
        return set()

    def _file(self, point: PointId) -> Path:
        return self._directory / f"{point.run}.{point.uuid}.{point.attempt}"
