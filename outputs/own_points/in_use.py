"""The error of a restore point that is in use."""

from __future__ import annotations

from backup.errors import TransientError


class PointInUse(TransientError):
    """The restore point is being read: it is not removed."""
