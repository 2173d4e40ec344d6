"""What `ps` and `systemctl status` call our processes, where python3-setproctitle is installed."""

from __future__ import annotations

import os
from functools import cache
from typing import Callable

from ..text import one_line

PROGRAM = "virt-rbd-backup"


def set_title(text: str) -> None:
    """Call this process "virt-rbd-backup: " and what it does; the first time before it has threads."""
    _setter()(f"{PROGRAM}: {one_line(text)}")


@cache
def _setter() -> Callable[[str], None]:
    """Give what sets the title, which takes the place of the arguments and is cut to their length.

    The environment, which lies behind them, stays readable (github.com/dvarrazzo/py-setproctitle, SPT_NOENV).
    """
    os.environ["SPT_NOENV"] = "1"
    try:
        from setproctitle import setproctitle
    except ImportError:
        return lambda title: None
    else:
        setproctitle(PROGRAM)  # which looks at the variable once and for all
        return setproctitle
    finally:
        del os.environ["SPT_NOENV"]
