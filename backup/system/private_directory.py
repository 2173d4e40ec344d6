"""Directories for their owner alone."""

from __future__ import annotations

from pathlib import Path


def make_private(directory: Path) -> None:
    """Create a directory, and those above it that are missing, each with mode 0700. Raises OSError.

    With mkdir's `parents`, those above would get the mode of the umask, and RUNTIME_DIR one that runs refuse.
    """
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in (*reversed(missing), directory):
        one.mkdir(mode=0o700, exist_ok=True)
