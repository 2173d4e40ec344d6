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
from .activity import RunProgress
from .activity_text import outcomes_text, run_text, short_job_text


@dataclass(frozen=True)
class UnitStatus:
    """Sends the progress to systemd. Satisfies display.View."""

    address: str  # of NOTIFY_SOCKET
    interval: float = 5.0

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def phase(self, domain: str, phase: Phase) -> None: ...

    def show(self, run: RunProgress) -> None:
        self._send("; ".join((run_text(run), *map(short_job_text, run.jobs))))

    def close(self, run: RunProgress) -> None:
        """Replace the percentages: systemd shows the last status after the end, too."""
        self._send(f"ended: {outcomes_text(run)}" if outcomes_text(run) else "ended")

    def _send(self, text: str) -> None:
        path = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)  # a status that systemd does not read now is outdated later
            channel.sendto(f"STATUS={one_line(text)}".encode(errors="replace"), path)


def unit_status() -> UnitStatus | None:
    """Give the status if a service manager listens (NotifyAccess=main)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return UnitStatus(address) if address.startswith(("/", "@")) else None
