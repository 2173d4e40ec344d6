"""Drafts of files that killed writers left, and the directories where they may be."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .. import groups
from ..hooks import not_started
from ..report import copy_record, domain_record
from ..report.history import REPORT_NAMES
from ..restore_point import known_points
from ..settings import Settings
from ..system.atomic_file import remove_drafts

RECORD_NAMES = r"[^/]+\.json"
WRITTEN_BY_RUNS = ("held", "hooked")  # directories of RUNTIME_DIR that only runs write to


def remove_all_drafts(settings: Settings) -> None:
    """Remove the drafts of killed writers. Only for the holder of the node's lock."""
    for name in WRITTEN_BY_RUNS:  # whose processes have all ended
        remove_drafts(Path(settings.runtime_dir, name), RECORD_NAMES, age=0)
    for directory, names in _places(settings):
        remove_drafts(directory, names)


def _places(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Yield directories with a pattern of the names of files written there."""
    yield Path(settings.runtime_dir), "watchdog"
    for directory in _directories_in(Path(settings.runtime_dir)):
        yield directory, RECORD_NAMES
    state = Path(settings.state_dir)
    for name in (domain_record.FILE, known_points.FILE, not_started.FILE, copy_record.FILE):
        yield state, re.escape(name)
    yield state, "restic-key-[0-9a-f]+"  # hints of the output
    yield state / "reports", REPORT_NAMES
    for directory in _directories_in(state):
        if directory.name not in ("reports", groups.DIRECTORY):
            yield directory, ".+"  # the output's own, such as cached manifests
    for path in (settings.report_file, settings.metrics_file):
        if path:  # its directory may have files of other programs
            yield Path(path).parent, re.escape(Path(path).name)


def _directories_in(directory: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
