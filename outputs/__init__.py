"""The destinations of backups: one module each, all satisfying backup.protocols.Output."""

from __future__ import annotations

from backup.protocols import Output
from backup.settings import Settings


def chosen(settings: Settings) -> Output:
    """Return the output that OUTPUT names, for backups."""
    # imported only now: main reports missing modules first
    if settings.output == "restic_incremental":
        from .restic_incremental import ResticIncremental

        return ResticIncremental.from_settings(settings, strict=True)
    if settings.output == "restic":
        from .restic import Restic

        return Restic.from_settings(settings, strict=True)
    return readable(settings)


def readable(settings: Settings) -> Output:
    """Return an output that can read what the output of OUTPUT saved, and needs fewer modules."""
    if settings.output == "rbd":
        from .rbd import Rbd

        return Rbd.from_settings(settings)
    if settings.output == "directory":
        from .directory import Directory

        return Directory.from_settings(settings)
    from .restic import Restic

    return Restic.from_settings(settings)
