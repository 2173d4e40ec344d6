"""The destinations of backups: one module each, all satisfying backup.protocols.Output."""

from __future__ import annotations

from backup.protocols import Output
from backup.settings import Settings


def chosen(settings: Settings) -> Output:
    """Give the output that OUTPUT names."""
    # only now: main tells of modules that are missing
    if settings.output == "restic_incremental":
        from .restic_incremental import ResticIncremental

        return ResticIncremental.from_settings(settings)
    return readable(settings)


def readable(settings: Settings) -> Output:
    """Give an output that reads back what the one that OUTPUT names has saved, and needs less for it."""
    from .restic import Restic

    return Restic.from_settings(settings)
