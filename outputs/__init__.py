"""The destinations of backups: one module each, all satisfying backup.protocols.Output."""

from __future__ import annotations

from backup.protocols import Output
from backup.settings import Settings


def chosen(settings: Settings) -> Output:
    """Give the output that OUTPUT names."""
    from .restic import Restic  # only now: main tells of modules that are missing

    return {"restic": Restic.from_settings}[settings.output](settings)
