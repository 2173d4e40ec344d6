"""Stores the reports of past runs in STATE_DIR."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Optional

from ..stored import CLOCK_ERROR
from ..system.atomic_file import write_atomically
from ..system.private_directory import make_private
from .report_types import SCHEMA, Report

SUFFIX = ".json.gz"
REPORT_NAMES = r"\d{8}T\d{6}Z-[a-z]{4}\.json\.gz"  # by the ids of runs


class History:
    """One file per run, named after it: run ids sort by time."""

    def __init__(self, state_dir: str, days: int) -> None:
        self.directory = Path(state_dir, "reports")
        self._days = days

    def store(self, report: Report) -> None:
        """Store a report, and remove those older than REPORT_DAYS. Raises OSError."""
        make_private(self.directory)
        outdated = self._outdated()
        content = gzip.compress(json.dumps(report).encode(), mtime=0)
        write_atomically(self.directory / f"{report['run']}{SUFFIX}", content)
        for path in outdated:
            path.unlink(missing_ok=True)

    def runs(self) -> Sequence[str]:
        """Return the ids of the runs with a report, the newest last."""
        return [path.name[: -len(SUFFIX)] for path in self._paths()]

    def _outdated(self) -> Sequence[Path]:
        """Return the reports older than REPORT_DAYS; none if all are, as the clock may be wrong."""
        oldest = _name_at(datetime.now(timezone.utc) - timedelta(days=self._days))
        outdated = [path for path in self._paths() if path.name < oldest]
        return outdated if len(outdated) < len(self._paths()) else ()

    def newest_first(self) -> Iterator[Report]:
        """Yield the reports that can be read; those of the future, which a wrong clock made, come last."""
        return filter(None, self.newest_first_or_foreign())

    def newest_first_or_foreign(self) -> Iterator[Optional[Report]]:
        """As `newest_first`, with None for each that is of another schema, or no report at all."""
        for path in reversed(self._paths()):
            try:
                report: Report = json.loads(gzip.decompress(path.read_bytes()))
            except (OSError, EOFError, zlib.error, ValueError):
                continue  # damaged, or removed meanwhile
            of_schema = isinstance(report, dict) and report.get("schema") == SCHEMA
            yield report if of_schema else None

    def _paths(self) -> Sequence[Path]:
        """Return the reports, the oldest first; before them those of the future, which a wrong clock made."""
        latest = _name_at(datetime.now(timezone.utc) + CLOCK_ERROR)
        return sorted(self.directory.glob(f"*{SUFFIX}"), key=lambda path: (path.name < latest, path.name))


def _name_at(moment: datetime) -> str:
    """Return what the names of later runs' reports are greater than."""
    return f"{moment:%Y%m%dT%H%M%SZ}"
