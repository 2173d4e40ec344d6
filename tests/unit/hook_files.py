"""Hooks as an admin puts them there: small shell programs."""

from __future__ import annotations

from pathlib import Path


class HookFiles:
    """A HOOKS directory, and a file that hooks write into in the order in which they run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "hooks"
        self.directory.mkdir(mode=0o700)
        self.log = directory / "hooks.log"

    def add(self, name: str, lines: str = "", mode: int = 0o700) -> Path:
        """Make the hook phase.d/name, which notes that name and then does these lines of shell."""
        path = self.directory / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {name} >>{self.log}\n{lines}\n")
        path.chmod(mode)
        return path

    @property
    def ran(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []
