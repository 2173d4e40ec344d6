"""The line that `systemctl status` shows of a run.

The protocol is a datagram to the socket that NOTIFY_SOCKET names, and stable (man 3 sd_notify).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass

from ...job_result import Phase
from ...model import Level
from ...text import one_line
from .activity import Look
from .activity_text import outcomes_text, run_text, short_job_text


@dataclass(frozen=True)
class UnitStatus:
    """Tells systemd how it stands. Satisfies display.Face."""

    address: str  # of NOTIFY_SOCKET
    interval: float = 5.0

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def phase(self, domain: str, phase: Phase) -> None: ...

    def look(self, look: Look) -> None:
        self._tell("; ".join((run_text(look), *map(short_job_text, look.jobs))))

    def close(self, look: Look) -> None:
        """Leave no percents behind: systemd shows the last status after the end, too."""
        self._tell(f"ended: {outcomes_text(look)}" if outcomes_text(look) else "ended")

    def _tell(self, text: str) -> None:
        path = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)  # what systemd has no time for is not worth waiting for
            channel.sendto(f"STATUS={one_line(text)}".encode(errors="replace"), path)


def unit_status() -> UnitStatus | None:
    """Give it where a service manager listens (NotifyAccess=main)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return UnitStatus(address) if address.startswith(("/", "@")) else None
