"""Whether systemd runs this process."""

from __future__ import annotations

import os


def in_a_service() -> bool:
    """Return whether it is part of a unit of systemd, which sets this variable (man 5 systemd.exec)."""
    return "INVOCATION_ID" in os.environ
