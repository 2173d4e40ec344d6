"""The watchdog: a process that outlives all others of the run, to let guests go should they all be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from .cleanup import let_go_noted
from .errors import AlreadyRunning, BackupError, reason
from .journal import Journal
from .node import only_run
from .process import SPAWN, signals_blocked
from .protocols import Reporter
from .settings import Settings
from .title import set_title


@contextmanager
def watched(settings: Settings, reporter: Reporter) -> Iterator[Connection]:
    """Have a watchdog during the block; only for the holder of the node's lock.

    It sleeps until the last process that holds what is yielded has ended: so every process that may
    hold a guest still has to keep it open. The reporter is pickled on its way there.
    """
    theirs, lifeline = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_watch, args=(theirs, settings, reporter), name="watchdog")
    try:
        with signals_blocked():
            process.start()
    except OSError as error:
        message = f"cannot start the watchdog process: {reason(error)}"
        raise BackupError(
            message, "without it a guest could stay frozen; is this node out of memory?"
        ) from error
    theirs.close()
    try:
        yield lifeline
    finally:
        lifeline.close()
        process.join()


def _watch(lifeline: Connection, settings: Settings, reporter: Reporter) -> None:
    """Wait for the end of all others; if guests are noted as held still then, let them go."""
    os.setsid()  # neither a terminal's Ctrl-C nor its end are meant for this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_title("watchdog")
    with suppress(EOFError):
        lifeline.recv_bytes()  # nothing is ever sent
    if Journal(settings.runtime_dir).notes():
        # a run that has begun meanwhile has let them go itself, before anything else
        with suppress(AlreadyRunning), only_run(settings.runtime_dir):
            let_go_noted(settings, reporter)
