"""Sizes as people read them."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Give a number of bytes with a binary unit: 4.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
