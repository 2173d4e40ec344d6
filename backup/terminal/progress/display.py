"""What the engine reports, on its way to the faces that show it: lines, a live view, a unit's status.

A terminal that was stopped with Ctrl-S, or a pipe that nobody reads, holds up whoever writes to it. So one
thread does all the writing, and those who report only leave word.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Callable, Optional, Protocol

from ...job_result import Phase
from ...model import Level
from ..console import Console
from .activity import Activity, Look

LIMIT = 60.0  # seconds without a word written, at the end, after which nobody is taken to read any more
STOPPED_LIMIT = 3.0  # the same once there was a request to stop
POLL = 0.1


class Face(Protocol):
    """Shows what happens. Its calls all come from one thread, and may take their time."""

    @property
    def interval(self) -> float:
        """Seconds between two looks, which may be infinite."""

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def phase(self, domain: str, phase: Phase) -> None:
        """Show that a job has entered another phase."""

    def look(self, look: Look) -> None:
        """Show how it all stands."""

    def close(self, look: Look) -> None:
        """Show how it ended, and leave the terminal as it was."""


Word = Callable[[Face], None]


class Display:
    """Tells the faces during its block what happens. Satisfies protocols.RunReporter, in any thread.

    After the block all of it is written; or none has been for so long that it is `given_up`: a terminal that
    was stopped, or a pipe that nobody reads, must not keep the process from ending. `is_stopping` tells of a
    request to stop.
    """

    def __init__(
        self, console: Console, faces: Sequence[Face], is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.given_up = False
        self._console = console
        self._is_stopping = is_stopping
        self._written = 0  # words
        self._faces = faces
        self._activity = Activity(time.monotonic())
        self._lock = threading.Lock()  # of the activity; never held while something is written
        self._words: SimpleQueue[Optional[Word]] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._words.put(None)
        since, before = time.monotonic(), self._written
        while self._writer.is_alive() and not self.given_up:
            self._writer.join(POLL)
            if self._written != before:
                since, before = time.monotonic(), self._written
            limit = STOPPED_LIMIT if self._is_stopping() else LIMIT
            self.given_up = self._writer.is_alive() and time.monotonic() > since + limit

    def __reduce__(self) -> tuple[Callable[..., Console], tuple[object, ...]]:
        """In another process there are lines alone."""
        return self._console.__reduce__()

    def message(self, level: Level, domain: str, text: str) -> None:
        self._words.put(lambda face: face.message(level, domain, text))

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        with self._lock:
            changed = self._activity.phase(domain, phase)
        if changed:
            self._words.put(lambda face: face.phase(domain, phase))

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        with self._lock:
            self._activity.progress(domain, target, done, size, time.monotonic())

    def planned(self, uuid: str, domain: str, size: int) -> None:
        with self._lock:
            self._activity.planned(uuid, domain, size)

    def ended(self, uuid: str, failed: bool) -> None:
        with self._lock:
            self._activity.ended(uuid, failed)

    def _write(self) -> None:
        """Pass on what is said, and have each face look whenever it is its time."""
        due = [time.monotonic() + face.interval for face in self._faces]
        while (word := self._word(min(due))) is not None:
            for number, face in enumerate(self._faces):
                word(face)
                if time.monotonic() >= due[number]:
                    face.look(self._looked())
                    due[number] = time.monotonic() + face.interval
            self._written += 1
        for face in self._faces:
            face.close(self._looked())

    def _word(self, until: float) -> Optional[Word]:
        """Wait for the next word until that moment; None is the last one."""
        try:
            return self._words.get(timeout=None if until == math.inf else max(0, until - time.monotonic()))
        except Empty:
            return _nothing

    def _looked(self) -> Look:
        with self._lock:
            return self._activity.look(time.monotonic())


def _nothing(_face: Face) -> None: ...
