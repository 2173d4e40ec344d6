"""Which faces show what happens: that depends on where the words go, and on what is wanted."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Callable

from ..console import Console
from .display import Display, Face
from .plain_lines import Lines
from .unit_status import unit_status

DUMB = ("", "dumb", "unknown")  # terminals that can't move the cursor


def displayed(
    console: Console, progress: str, interval: int, is_stopping: Callable[[], bool] = lambda: False
) -> Display:
    """Show what happens during the block. `progress`: "auto", "always" or "never".

    Lines tell of progress every `interval` seconds, if it is not 0. `is_stopping` tells of a request to stop.
    """
    status = unit_status() if progress != "never" else None
    faces = [_words(console, progress, interval), *([status] if status else [])]
    return Display(console, faces, is_stopping)


def _words(console: Console, progress: str, interval: int) -> Face:
    on_terminal = console.stream.isatty()
    if progress != "never" and on_terminal and _can_draw():
        from .live_view import MIN_WIDTH, LiveView

        if os.get_terminal_size(console.stream.fileno()).columns >= MIN_WIDTH:
            return LiveView(console)
    wanted = progress == "always" or (progress == "auto" and (on_terminal or console.in_journal))
    return Lines(console, interval if wanted and interval else math.inf)


def _can_draw() -> bool:
    return os.environ.get("TERM", "") not in DUMB and importlib.util.find_spec("rich") is not None
