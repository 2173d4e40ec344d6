"""Chooses how progress is displayed: live view, plain lines, unit status."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Callable

from ...model import Level
from ...system.module_import import failed_imports
from ..console import Console
from .display import Display, View
from .plain_lines import PlainLines
from .unit_status import unit_status

DUMB = ("", "dumb", "unknown")  # terminals that can't move the cursor
DRAWING = ("rich.console", "rich.live", "rich.progress_bar", "rich.table", "rich.text")


def displayed(
    console: Console, progress: str, interval: int, is_stopping: Callable[[], bool] = lambda: False
) -> Display:
    """Give the display that fits the terminal. `progress`: "auto", "always" or "never".

    Plain lines show progress every `interval` seconds, unless it is 0. `is_stopping`: a stop was requested.
    """
    status = unit_status() if progress != "never" else None
    views = [_messages(console, progress, interval), *([status] if status else [])]
    return Display(console, views, is_stopping)


def _messages(console: Console, progress: str, interval: int) -> View:
    on_terminal = console.stream.isatty()
    if progress != "never" and on_terminal and _can_draw(console):
        from .live_view import MIN_WIDTH, LiveView

        if os.get_terminal_size(console.stream.fileno()).columns >= MIN_WIDTH:
            return LiveView(console)
    wanted = progress == "always" or (progress == "auto" and (on_terminal or console.in_journal))
    return PlainLines(console, interval if wanted and interval else math.inf)


def _can_draw(console: Console) -> bool:
    if os.environ.get("TERM", "") in DUMB or importlib.util.find_spec("rich") is None:
        return False
    failed = failed_imports(DRAWING)
    if failed and failed[0].reason:
        console.message(Level.WARNING, "", f"progress is shown in plain lines: {failed[0]}")
    return not failed
