#!/usr/bin/python3
"""The command line of virt-rbd-backup: parses, wires, maps results to exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Callable, NoReturn

import config
import outputs
from backup import PROGRAM
from backup.errors import AlreadyRunning, BackupError, ConfigError, Interrupted, reason
from backup.exit_codes import FAILED, NOTHING_DONE, SIGNALS, SUCCESS, exit_code, interrupted
from backup.model import Level
from backup.protocols import Reporter
from backup.report.history import History
from backup.report.publish import publish, publish_metrics
from backup.report.run_report import RunResult
from backup.settings import Settings, load
from backup.system.atomic_file import write_atomically
from backup.system.process_title import set_title
from backup.system.stop_request import StopRequest
from backup.system.time_limit import within
from backup.terminal import command_line
from backup.terminal.console import Console
from backup.terminal.progress.choose_display import displayed
from backup.terminal.progress.display import Display
from backup.terminal.standard_output import (
    STUCK_LIMIT,
    TERMINAL_LIMIT,
    is_flushed,
    print_text,
    written_within,
)
from backup.terminal.tables import finding, listing, selection_json, summary

# Modules that only distributions package, and their package in Debian.
MODULES = {
    "libvirt": "python3-libvirt",
    "rados": "python3-rados",
    "rbd": "python3-rbd",
    "xxhash": "python3-xxhash",
}
OUTPUT_MODULES = {"restic_incremental": {"pyfuse3": "python3-pyfuse3"}}  # to save
PAGE_MODULES = {"jinja2": "python3-jinja2"}
METRICS_MODULES = {"prometheus_client": "python3-prometheus-client"}

# The settings of the command that an installation brings.
INSTALLED = {"virt-rbd-backup": "/etc/virt-rbd-backup/config.py"}


def main(words: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # names come in all alphabets, whatever the locale
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = command_line.parsed(words)
    set_title(arguments.command)
    console = Console(
        sys.stderr,
        level=Level[arguments.log_level.upper()],
        in_journal=os.environ.get("JOURNAL_STREAM") == _stream_id(sys.stderr.fileno()),
    )
    try:
        override = arguments.config or os.environ.get("VIRT_RBD_BACKUP_CONFIG") or INSTALLED.get(PROGRAM)
        settings = load(vars(config), Path(override) if override else None)
        _require_modules(_modules(arguments.command, settings))
        return COMMANDS[arguments.command](arguments, settings, console)
    except BackupError as error:
        _report(error, console)
        return exit_code(error)
    except KeyboardInterrupt:
        return interrupted(signal.SIGINT)


def _report(error: BackupError, console: Console) -> None:
    """Write an error, or all of a ConfigError. A terminal that was stopped (Ctrl-S) can lose it."""
    limit = STUCK_LIMIT if isinstance(error, Interrupted) else TERMINAL_LIMIT
    for one in error.errors if isinstance(error, ConfigError) else [error]:
        with suppress(TimeoutError):
            written_within(limit, partial(console.error, one))


def back_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Back up the selected domains, then tell how it went."""
    from backup.run.run import Run

    if arguments.dry_run:
        return _show(arguments.domains, False, settings, console)
    with _shown(arguments, settings, console) as (display, stop):
        run = Run(settings, outputs.chosen(settings), display, stop)
        try:
            result = run.back_up(arguments.domains, arguments.verify)
        except (AlreadyRunning, ConfigError):  # no run of its own, and nothing that a report would change
            raise
        except BackupError as error:
            _tell(run.nothing_done(arguments.domains, error), settings, display, stop)
            raise
        _tell(result, settings, display, stop)
    print_text(summary(result), _limit(display))
    return result.exit_code


def _tell(result: RunResult, settings: Settings, reporter: Reporter, stop: StopRequest) -> None:
    """Put the report everywhere, then tell who wants to know."""
    from backup.hooks.notify import send_notifications

    report = publish(result, settings, reporter)
    history = History(settings.state_dir, settings.report_days)
    send_notifications(result, report, history.newest_first(), settings, reporter, stop.check_signalled_twice)


@contextmanager
def _shown(
    arguments: argparse.Namespace, settings: Settings, console: Console
) -> Iterator[tuple[Display, StopRequest]]:
    """Show what happens during the block, which hears signals. After it they end the process at once."""
    stop = _heard()
    display = displayed(console, arguments.progress, settings.progress_interval, lambda: stop.requested)
    try:
        with display:
            yield display, stop
    finally:
        _unheard(stop)


def _limit(display: Display) -> float:
    """Give the seconds that a terminal has to take what comes after the display."""
    return STUCK_LIMIT if display.given_up else TERMINAL_LIMIT


def _heard() -> StopRequest:
    """Have signals request a stop, from now on."""
    stop = StopRequest()
    stop.on_signals(*SIGNALS)
    return stop


def _unheard(stop: StopRequest) -> None:
    """Have signals end the process at once: nothing is left that would have to be put right.

    One that follows another does not change the exit code, which that one has decided.
    """
    code = interrupted(stop.signal_number)
    handler = (lambda *_: os._exit(code)) if stop.signal_number else signal.SIG_DFL
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored on purpose: nohup
            signal.signal(number, handler)


def show_list(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show all domains and disks, and why what is left out is."""
    return _show((), arguments.json, settings, console)


def _show(names: Sequence[str], as_json: bool, settings: Settings, console: Console) -> int:
    """Show what a backup would do; as in a backup, a libvirt that can't be asked may hide domains."""
    from backup.hypervisor.connections import Hypervisors
    from backup.run.list_domains import list_domains

    stop = _heard()
    with Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, stop.check) as hypervisors:
        choices = list_domains(names, hypervisors, settings, console)
        _unheard(stop)
        print_text(json.dumps(selection_json(choices), indent=2) + "\n" if as_json else listing(choices))
        return FAILED if hypervisors.unreachable else SUCCESS


def show_points(arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Show what could be restored."""
    from backup.restore_point.find import of_domains
    from backup.terminal.tables import points_json, points_table

    output = outputs.readable(settings)
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    points = of_domains(output.restore_points(), arguments.domains)
    print_text(json.dumps(points_json(points), indent=2) + "\n" if arguments.json else points_table(points))
    return SUCCESS


def restore(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Bring a domain back, or some of it."""
    from backup.restore.restorer import RestoreOrder, Restorer
    from backup.terminal.tables import restored_table

    order = RestoreOrder(**{one.name: getattr(arguments, one.name) for one in fields(RestoreOrder)})
    with _shown(arguments, settings, console) as (display, stop):
        restored = Restorer(order, settings, outputs.readable(settings), display, stop).restore()
    print_text(restored_table(restored), _limit(display))
    return SUCCESS


def verify(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prove that restore points come back as they were saved."""
    from backup.terminal.tables import proven
    from backup.verify.verification import Verification

    output = outputs.readable(settings)
    with _shown(arguments, settings, console) as (display, stop):
        verification = Verification(settings, output, display, stop, arguments.sample)
        try:
            verified = verification.verify(arguments.domains, arguments.at)
        finally:  # what was found counts, though it were interrupted
            publish_metrics(settings, display)
    print_text(proven(verified), _limit(display))
    return FAILED if verified.failed else SUCCESS


def drill(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prove that a domain comes back, by having it back for a while."""
    from backup.verify.drill import Drill

    output = outputs.readable(settings)
    with _shown(arguments, settings, console) as (display, stop):
        trial = Drill(settings, output, display, stop, arguments.boot)
        try:
            name = trial.drill(arguments.domain)
        finally:  # that it failed is to be known, too
            publish_metrics(settings, display)
    print_text(f"{name} comes back as it was saved\n", _limit(display))
    return SUCCESS


def check(_arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Show whether a backup could work."""
    from backup.run.check import examine

    problems, stop = 0, _heard()
    for found in examine(settings, outputs.chosen(settings), stop.check):
        within(math.inf, partial(print_text, finding(found)), stop.check)
        problems += found.problem is not None
    print_text(f"{problems} problems\n" if problems != 1 else "1 problem\n")
    return NOTHING_DONE if problems else SUCCESS


def show_report(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show what a past run came to."""
    from backup.report.history import History
    from backup.report.past_runs import past_runs
    from backup.terminal.report_text import report_text

    made = datetime.now(timezone.utc)
    past = past_runs(History(settings.state_dir, settings.report_days), arguments.run, made.date())
    if past.left_out:
        console.message(Level.WARNING, "", f"left out {past.left_out} reports of another version")
    if arguments.html is not None:
        _require_modules(PAGE_MODULES)
        from backup.report.page import page

        _write(arguments.html, page(past, made))
    else:
        print_text(json.dumps(past.report, indent=2) + "\n" if arguments.json else report_text(past.report))
    return SUCCESS


def _write(path: str, content: bytes) -> None:
    """Write a file that everybody may read; "-" is standard output."""
    if path == "-":
        print_text(content.decode())
        return
    try:
        write_atomically(Path(path), content, 0o644)
    except OSError as error:
        hint = "is its directory there, and may you write into it? in a service, see ReadWritePaths="
        raise BackupError(f"cannot write {path}: {reason(error)}", hint) from error


def clean_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Thaw and remove what killed runs left."""
    from backup.run.cleanup import clean_node

    with _shown(arguments, settings, console) as (display, stop):
        return FAILED if clean_node(settings, display, stop, arguments.all) else SUCCESS


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Settings, Console], int]] = {
    "backup": back_up,
    "list": show_list,
    "restore-points": show_points,
    "restore": restore,
    "verify": verify,
    "drill": drill,
    "check": check,
    "report": show_report,
    "cleanup": clean_up,
}


def _stream_id(descriptor: int) -> str:
    """Give what JOURNAL_STREAM names the journal by (man 5 systemd.exec)."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


def _modules(command: str, settings: Settings) -> Mapping[str, str]:
    """Give the modules that the command needs, with their packages."""
    modules = dict(MODULES)
    if command in ("backup", "check"):
        modules.update(OUTPUT_MODULES.get(settings.output, {}))
    if settings.metrics_file and command in ("backup", "check", "verify", "drill"):
        modules.update(METRICS_MODULES)
    return modules


def _require_modules(modules: Mapping[str, str]) -> None:
    """Raise BackupError unless all of these are there; each is given with its package."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(modules[name] for name in missing)
        raise BackupError(
            f"this interpreter ({sys.executable}) has no module {', '.join(missing)}",
            f"run it with the distribution's own: /usr/bin/python3 main.py; apt-get install {packages}",
        )


def _end(code: int) -> NoReturn:
    """End the process; at once where a terminal that was stopped still keeps a thread that writes to it."""
    if not is_flushed():
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
