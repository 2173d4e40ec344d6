"""The directory of a repository on this node, on a file system that may hang, such as NFS."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, TypeVar

from backup.system.time_limit import CheckStop, never_stop, within

from .messages import ResticError
from .program import Program

Answer = TypeVar("Answer")

ANSWER_LIMIT = 60.0  # seconds for the file system to answer


@dataclass(frozen=True)
class OwnDirectory:
    """Asks for what is in the directory. Nothing is awaited for longer than until `check_stop` raises."""

    program: Program
    check_stop: CheckStop = never_stop

    @property
    def locks(self) -> Optional[Path]:
        """The directory with the locks, None unless the repository is certainly a directory of this node.

        Raises ResticError if the file system does not answer.
        """
        found = self._named
        return found if found and self.answer(found.is_dir) else None

    @property
    def has_one_key(self) -> bool:
        """Whether the repository certainly has one key only, without a call of restic."""
        try:
            return self.locks is not None and len(self._names("keys")) == 1
        except (OSError, ResticError):
            return False

    @property
    def may_have_locks(self) -> bool:
        """Whether there may be locks; an empty directory saves a call of restic."""
        try:
            return not self.locks or bool(self._names("locks"))
        except (OSError, ResticError):
            return True

    def answer(self, ask: Callable[[], Answer]) -> Answer:
        """Return what the call returns. Raises what it raises, and ResticError if it hangs."""
        try:
            return within(ANSWER_LIMIT, ask, self.check_stop)
        except TimeoutError as error:
            message = f"the repository's directory {self.program.repository} does not answer: {error}"
            raise ResticError(
                message, "is its file system mounted, and its server up?", transient=True
            ) from error

    def _names(self, name: str) -> list[str]:
        directory = Path("/", self.program.repository, name)
        return self.answer(lambda: os.listdir(directory))

    @property
    def _named(self) -> Optional[Path]:
        """The path of the locks if RESTIC_REPOSITORY is a path and nothing else can name a repository.

        See restic's design.rst, "Repository Layout".
        """
        program = self.program
        named_elsewhere = any(name.startswith("RESTIC_REPOSITORY") for name in program.environment)
        options = ("-r", "--repo", "-o", "--option")
        if named_elsewhere or any(option.startswith(options) for option in program.options):
            return None
        # "rest:https://user:password@host/": no path, and not to be shown in a message about one
        if not program.repository or re.match("[a-z0-9]+:", program.repository):
            return None
        return Path("/", program.repository, "locks")
