"""The title of a process in `ps` and `systemctl status`, if python3-setproctitle is installed."""

from __future__ import annotations

import os
from functools import cache
from typing import Callable

from ..text import one_line

PROCESS_NAME = "virt-rbd-backup"


def set_title(text: str) -> None:
    """Set this process's title to "virt-rbd-backup: TEXT"; the first call has to come before any thread."""
    _setter()(f"{PROCESS_NAME}: {one_line(text)}")


@cache
def _setter() -> Callable[[str], None]:
    """Return the function that sets the title: it overwrites the arguments and is cut to their length.

    SPT_NOENV keeps the environment behind them readable (github.com/dvarrazzo/py-setproctitle).
    """
    os.environ["SPT_NOENV"] = "1"
    try:
        from setproctitle import setproctitle
    except Exception:  # missing, or broken in whatever way: `check` reports it
        return lambda title: None
    else:
        setproctitle(PROCESS_NAME)  # reads the variable once
        return setproctitle
    finally:
        del os.environ["SPT_NOENV"]
