"""The runs of the restore points that were listed last, in a file of STATE_DIR: shells complete with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..stored import StoredPoint
from ..system.atomic_file import write_atomically

FILE = "known-points.json"

# The file is read at each press of a key. These limit it to some MB.
MAX_DOMAINS = 2000
MAX_RUNS = 60  # of each domain, the newest
LONGEST = 255  # characters of a name


def remember(points: Sequence[StoredPoint], state_dir: str) -> None:
    """Write the file. A failure is of no consequence: shells complete with what was listed before."""
    runs: dict[str, dict[str, None]] = {}
    for point in reversed(points):  # the newest first
        if point.manifest_id and len(point.domain) <= LONGEST and len(point.id.run) <= LONGEST:
            runs.setdefault(point.domain, {})[point.id.run] = None  # once for all of its attempts
    newest = {name: [*runs[name]][:MAX_RUNS] for name in [*runs][:MAX_DOMAINS]}
    with suppress(OSError):  # the directory may not exist: reading a repository does not make it
        write_atomically(Path(state_dir, FILE), json.dumps(newest).encode(), durable=False)


def known_runs(state_dir: str) -> Mapping[str, Sequence[str]]:
    """Return the runs, the newest first, by domains' names. Raises OSError, ValueError."""
    runs: Mapping[str, Sequence[str]] = json.loads(Path(state_dir, FILE).read_bytes())
    return runs
