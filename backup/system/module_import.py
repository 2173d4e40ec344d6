"""Tries to import modules of other packages, and gives the reason why one cannot be imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..text import one_line


@dataclass(frozen=True)
class FailedImport:
    """A module that cannot be imported. `reason` is "" if it is not installed."""

    module: str
    reason: str = ""

    def __str__(self) -> str:
        return (
            f"cannot import module {self.module}: {self.reason}"
            if self.reason
            else f"no module {self.module}"
        )


def failed_imports(modules: Iterable[str]) -> Sequence[FailedImport]:
    """Import each module; return those that are missing or broken."""
    return [failed for failed in map(_failure, modules) if failed]


def _failure(name: str) -> FailedImport | None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in (name, name.partition(".")[0]):
            return FailedImport(name)
        return _broken(name, error)
    except Exception as error:  # the module's own code runs, and a half upgraded one can raise anything
        return _broken(name, error)
    if getattr(module, "__path__", None) is not None and getattr(module, "__file__", None) is None:
        # what a removed package leaves behind: Python imports any directory as an empty module
        return FailedImport(name, f"{next(iter(module.__path__))} is a directory without its files")
    return None


def _broken(name: str, error: Exception) -> FailedImport:
    reason = one_line(str(error).strip()) or type(error).__name__
    file = _file(name)
    return FailedImport(name, f"{reason} ({file})" if file and file not in reason else reason)


def _file(name: str) -> str:
    """Return where the module is, "" if that is unknown."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # of a package around it; half imported
        return ""
    return (spec.origin or "") if spec else ""
