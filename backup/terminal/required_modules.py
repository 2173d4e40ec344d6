"""Checks that the modules a command needs are installed, and names the packages of those that are not."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping

from ..errors import BackupError
from ..settings import Settings

# Modules that only distributions package, and their package in Debian.
MODULES = {
    "libvirt": "python3-libvirt",
    "rados": "python3-rados",
    "rbd": "python3-rbd",
    "xxhash": "python3-xxhash",
}
OUTPUT_MODULES = {"restic_incremental": {"pyfuse3": "python3-pyfuse3"}}  # for backups
PAGE_MODULES = {"jinja2": "python3-jinja2"}
METRICS_MODULES = {"prometheus_client": "python3-prometheus-client"}


def require_modules(arguments: argparse.Namespace, settings: Settings) -> None:
    """Raise BackupError unless all modules that the command needs are installed."""
    modules = _modules(arguments, settings)
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(modules[name] for name in missing)
        raise BackupError(
            f"this interpreter ({sys.executable}) has no module {', '.join(missing)}",
            f"run it with the distribution's own: /usr/bin/python3 main.py; apt-get install {packages}",
        )


def _modules(arguments: argparse.Namespace, settings: Settings) -> Mapping[str, str]:
    """Give the modules that the command needs, with their packages."""
    command = arguments.command
    modules = dict(MODULES)
    if command in ("backup", "check"):
        modules.update(OUTPUT_MODULES.get(settings.output, {}))
    if settings.metrics_file and command in ("backup", "check", "verify", "drill"):
        modules.update(METRICS_MODULES)
    if command == "report" and arguments.html is not None:
        modules.update(PAGE_MODULES)
    return modules
