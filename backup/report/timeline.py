"""The timeline of a run: each worker is a lane, each job a bar. Positions are percent of the run's time."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Optional

from ..job_result import Phase
from ..text import duration_text
from .report_types import DomainEntry, Report, TimelineEntry

WIDTH = 960  # pixels, at least
LETTER = 7.0  # pixels of a character, about
MARGIN = 12  # pixels beside a label
CROWDED = 60  # jobs; with more, marks are thin

STEPS = (
    1,
    2,
    5,
    10,
    20,
    30,
    60,
    120,
    300,
    600,
    1200,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
)  # seconds


@dataclass(frozen=True)
class Span:
    """A part of a bar: its start and width in percent, and its kind, which is its CSS class."""

    x: float
    width: float
    kind: str = ""


@dataclass(frozen=True)
class Bar:
    """A job: its phases, when the guest was frozen or paused, the label that fits, and a description."""

    status: str
    place: Span
    phases: Sequence[Span]
    frozen: Optional[Span]
    label: str
    label_x: float
    text: str


@dataclass(frozen=True)
class Lane:
    """The jobs of one worker, and the percentage of the run's time that they took."""

    number: int
    bars: Sequence[Bar]
    busy: float


@dataclass(frozen=True)
class Tick:
    x: float
    label: str


@dataclass(frozen=True)
class RunTimeline:
    lanes: Sequence[Lane]
    ticks: Sequence[Tick]
    crowded: bool


@dataclass(frozen=True)
class _Scale:
    """The run's time."""

    begin: datetime
    seconds: float

    def span(self, begin: datetime, end: datetime, kind: str = "") -> Span:
        x = self._place(begin)
        return Span(round(x, 3), round(max(self._place(end) - x, 0.001), 3), kind)

    def _place(self, moment: datetime) -> float:
        return 100 * min(max((moment - self.begin).total_seconds() / self.seconds, 0), 1)

    def ticks(self) -> Sequence[Tick]:
        """Give up to ten round times of the day (UTC)."""
        step = next((step for step in STEPS if self.seconds / step <= 10), STEPS[-1])
        shown = "%H:%M" if step >= 60 else "%H:%M:%S"
        first = math.ceil(self.begin.timestamp() / step) * step
        moments = range(first, math.floor(self.begin.timestamp() + self.seconds) + 1, step)
        begin = self.begin.timestamp()
        return [
            Tick(
                round(100 * (moment - begin) / self.seconds, 3),
                datetime.fromtimestamp(moment, timezone.utc).strftime(shown),
            )
            for moment in moments
        ]


def run_timeline(report: Report) -> RunTimeline | None:
    """Give the timeline of a run; None if no job began."""
    jobs = [(domain, domain["timeline"]) for domain in report["domains"] if domain["timeline"]]
    if not jobs:
        return None
    begin = datetime.fromisoformat(report["started"])
    end = max(
        datetime.fromisoformat(moment)
        for moment in (report["finished"], *(timeline["finished"] for _, timeline in jobs))
    )
    scale = _Scale(begin, max((end - begin).total_seconds(), 0.001))
    numbers = sorted({timeline["lane"] for _, timeline in jobs})
    lanes = [_lane(number, jobs, scale) for number in numbers]
    return RunTimeline(lanes, scale.ticks(), len(jobs) > CROWDED)


def _lane(number: int, jobs: Sequence[tuple[DomainEntry, TimelineEntry]], scale: _Scale) -> Lane:
    bars = [_bar(domain, timeline, scale) for domain, timeline in jobs if timeline["lane"] == number]
    bars.sort(key=lambda bar: bar.place.x)
    return Lane(number, bars, sum(bar.place.width for bar in bars))


def _bar(domain: DomainEntry, timeline: TimelineEntry, scale: _Scale) -> Bar:
    begin, end = map(datetime.fromisoformat, (timeline["started"], timeline["finished"]))
    place = scale.span(begin, end)
    starts = [(datetime.fromisoformat(one["started"]), one["phase"]) for one in timeline["phases"]]
    ends = [start for start, _ in starts[1:]] + [end]
    phases = [
        scale.span(start, stop, Phase(phase).name.lower()) for (start, phase), stop in zip(starts, ends)
    ]
    room = next((phase for phase in phases if phase.width > place.width / 2), place)
    return Bar(
        domain["status"],
        place,
        [phase for phase in phases if phase.kind != Phase.PREPARE.name.lower()],  # the bar's own colour
        _frozen(domain, scale),
        fitting(domain["name"], room.width * WIDTH / 100 - MARGIN),
        room.x,
        _text(domain, begin, end),
    )


def _frozen(domain: DomainEntry, scale: _Scale) -> Span | None:
    if not domain["frozen_at"]:
        return None
    begin = datetime.fromisoformat(domain["frozen_at"])
    return scale.span(begin, begin + timedelta(seconds=domain["frozen_seconds"]))


def _text(domain: DomainEntry, begin: datetime, end: datetime) -> str:
    how = f"{domain['status']}, {domain['consistency']}" if domain["consistency"] else domain["status"]
    took = duration_text((end - begin).total_seconds())
    text = f"{domain['name']}: {how}; {begin:%H:%M:%S} to {end:%H:%M:%S} UTC, {took}"
    if domain["frozen_at"]:
        since = datetime.fromisoformat(domain["frozen_at"])
        text += f"; frozen or paused at {since:%H:%M:%S} for {duration_text(domain['frozen_seconds'])}"
    return text


def fitting(text: str, pixels: float) -> str:
    """Give as much of the text as fits into so many pixels; "" if that is too little to be of use."""
    letters = int(pixels / LETTER)
    if sum(map(_width, text)) <= letters:
        return text
    shown = ""
    for char in text:
        if sum(map(_width, shown + char)) > letters - 1:
            break
        shown += char
    return f"{shown}…" if len(shown) >= 3 else ""


def _width(char: str) -> int:
    """The columns of a character: emoji and East Asian ones are wide."""
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
