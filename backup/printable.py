"""Text from outside as people may see it."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Names come from outside: let none forge a line, move the cursor, or turn what follows around."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
