"""Lets signals stop a command in good order, which may display its progress meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..exit_codes import SIGNALS, interrupted
from ..model import Level
from ..settings import Settings
from ..system.started_program import commands_logged
from ..system.stop_request import StopRequest
from .console import Console
from .progress.choose_display import displayed
from .progress.display import Display


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Let signals request a stop during the block; after it they end the process at once.

    A signal after the block does not change the exit code that an earlier one has decided.
    """
    stop = StopRequest()
    stop.on_signals(*SIGNALS)
    try:
        yield stop
    finally:
        code = interrupted(stop.signal_number)
        handler = (lambda *_: os._exit(code)) if stop.signal_number else signal.SIG_DFL
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored on purpose: nohup
                signal.signal(number, handler)


@contextmanager
def stoppable_display(
    progress: str, settings: Settings, console: Console
) -> Iterator[tuple[Display, StopRequest]]:
    """Display progress during the block, in which signals request a stop."""
    with (
        stoppable() as stop,
        displayed(console, progress, settings.progress_interval, lambda: stop.requested) as display,
        commands_logged(partial(display.message, Level.DEBUG, "")),
    ):
        yield display, stop
