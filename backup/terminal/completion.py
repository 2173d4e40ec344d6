"""What shells complete arguments with: `main.py __complete KIND PREFIX WORD ...`, which their scripts call.

At each press of a key: from a few files of this node, without libvirt and the repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Callable

from ..hypervisor.definition_names import definition_names
from ..report.history import History
from ..restore_point.known_points import known_runs
from .settings_files import SettingsFiles

COMMAND = "__complete"
REPORTS = 5  # that are read, if none of them is of all domains


def completions(kind: str, prefix: str, line: Sequence[str], files: SettingsFiles) -> Sequence[str]:
    """Return what an argument of this kind may be, in a command line with these words, sorted."""
    found = KINDS[kind](files, line)
    return sorted({value for value in found if value.startswith(prefix) and _is_safe(value)})


def _is_safe(value: str) -> bool:
    """Return whether it is one line, and all shells can quote it; it must not be taken for an option."""
    return value.isprintable() and "\\" not in value and not value.startswith("-")


def _defined(files: SettingsFiles, _line: Sequence[str]) -> Iterator[str]:
    """Yield the domains that this node has, or had in its last run of all."""
    settings = files.load("status")
    yield from definition_names(settings.libvirt_uris)
    for report in islice(History(settings.state_dir, settings.report_days).newest_first(), REPORTS):
        yield from (domain["name"] for domain in report["domains"])
        if not report["named"]:
            return


def _saved(files: SettingsFiles, _line: Sequence[str]) -> Iterator[str]:
    """Yield the domains that have a restore point."""
    yield from _known_runs(files)


def _domains(files: SettingsFiles, line: Sequence[str]) -> Iterator[str]:
    yield from _defined(files, line)
    yield from _saved(files, line)


def _points(files: SettingsFiles, line: Sequence[str]) -> Iterator[str]:
    """Yield what --at takes: runs that saved one of the domains in the line, without any of all domains."""
    yield "latest"
    known = _known_runs(files)
    for name in [one for one in line if one in known] or known:
        yield from known[name]


def _runs(files: SettingsFiles, _line: Sequence[str]) -> Iterator[str]:
    """Yield the runs of which there is a report."""
    settings = files.load("status")
    yield from History(settings.state_dir, settings.report_days).runs()


def _groups(files: SettingsFiles, _line: Sequence[str]) -> Sequence[str]:
    return files.group_names()


def _known_runs(files: SettingsFiles) -> Mapping[str, Sequence[str]]:
    with suppress(OSError, ValueError):
        return known_runs(files.load("status").state_dir)
    return {}


# Each has its function in res/completions/values.bash.
KINDS: Mapping[str, Callable[[SettingsFiles, Sequence[str]], Iterable[str]]] = {
    "defined": _defined,
    "saved": _saved,
    "domains": _domains,
    "points": _points,
    "runs": _runs,
    "groups": _groups,
}
