"""Readable text: sizes, durations, and names from outside made safe to print."""

from __future__ import annotations

from datetime import timedelta


def size_text(size: float) -> str:
    """Return a number of bytes with a binary unit: 4.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def duration_text(seconds: float) -> str:
    """Return a number of seconds as text: 0.32 s, 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def age_text(age: timedelta) -> str:
    """Return an age in its largest unit, of which there are two at least: 90 s, 59 min, 26 h, 3 d."""
    seconds = int(age.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def clock_text(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours if there are any: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def one_line(text: str) -> str:
    """Escape unprintable characters, so that a name cannot forge lines or move the cursor."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
