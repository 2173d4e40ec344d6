#!/usr/bin/python3
"""The command line of virt-rbd-backup: parses, wires, maps results to exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Callable, NoReturn

import outputs
from backup import PROGRAM
from backup.errors import AlreadyRunning, BackupError, ConfigError
from backup.exit_codes import FAILED, NOTHING_DONE, SUCCESS, exit_code, interrupted
from backup.model import Level
from backup.protocols import Reporter
from backup.report.history import History
from backup.report.publish import publish, publish_metrics
from backup.report.run_report import RunResult
from backup.settings import Settings, invalid_python, load
from backup.system.process_title import set_title
from backup.system.started_program import commands_logged
from backup.system.stop_request import StopRequest
from backup.system.utf8_mode import require_utf8
from backup.terminal import command_line, tables
from backup.terminal.console import Console, console_on_standard_error
from backup.terminal.files_text import result_parts
from backup.terminal.output_file import write_or_print
from backup.terminal.report_text import report_text
from backup.terminal.required_modules import optional_modules, require_modules
from backup.terminal.standard_output import (
    is_flushed,
    open_closed_streams,
    print_after_display,
    print_stoppable,
    print_text,
    write_error,
)
from backup.terminal.stoppable import stoppable, stoppable_display

# The settings of the command that an installation brings.
INSTALLED = {"virt-rbd-backup": "/etc/virt-rbd-backup/config.py"}


def main(argv: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # names come in all alphabets, whatever the locale
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = command_line.parsed(argv)
    set_title(arguments.command)
    console = console_on_standard_error(Level[arguments.log_level.upper()])
    try:
        settings = load(_defaults(), _settings_file(arguments))
        require_modules(arguments, settings)
        with commands_logged(partial(console.message, Level.DEBUG, "")):
            return COMMANDS[arguments.command](arguments, settings, console)
    except BackupError as error:
        write_error(console, error)
        return exit_code(error)
    except KeyboardInterrupt:
        return interrupted(signal.SIGINT)


def _defaults() -> Mapping[str, object]:
    """Return the constants of config.py. Raises ConfigError: an admin may have edited it."""
    try:
        import config
    except (Exception, SystemExit) as error:  # an error in the admin's Python, whatever it is
        raise invalid_python(Path(__file__).with_name("config.py"), error) from error
    return vars(config)


def _settings_file(arguments: argparse.Namespace) -> Path | None:
    path = arguments.config or os.environ.get("VIRT_RBD_BACKUP_CONFIG") or INSTALLED.get(PROGRAM)
    return Path(path) if path else None


def back_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Back up the selected domains; publish the report and send the notifications."""
    from backup.run.run import Run

    if arguments.dry_run:
        return _show_selection(arguments.domains, False, settings, console)
    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        run = Run(settings, outputs.chosen(settings), display, stop)
        try:
            result = run.back_up(arguments.domains, arguments.verify)
        except (AlreadyRunning, ConfigError):  # there was no run: nothing to report
            raise
        except BackupError as error:
            _publish(run.nothing_done(arguments.domains, error), settings, display, stop)
            raise
        _publish(result, settings, display, stop)
    print_after_display(tables.summary(result), display)
    return result.exit_code


def _publish(result: RunResult, settings: Settings, reporter: Reporter, stop: StopRequest) -> None:
    """Publish the report and send the notifications."""
    from backup.hooks.notify import send_notifications

    report = publish(result, settings, reporter)
    history = History(settings.state_dir, settings.report_days)
    send_notifications(result, report, history.newest_first(), settings, reporter, stop.check_signalled_twice)


def show_list(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """List all domains and disks, and why some are not backed up."""
    return _show_selection((), arguments.json, settings, console)


def _show_selection(names: Sequence[str], as_json: bool, settings: Settings, console: Console) -> int:
    """Show what a backup would do. FAILED if a libvirt is unreachable, as in a backup."""
    from backup.hypervisor.connections import Hypervisors
    from backup.run.list_domains import list_domains, with_unsaved_files

    with (
        stoppable() as stop,
        Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, stop.check) as hypervisors,
    ):
        choices = list_domains(names, hypervisors, settings, console)
        choices = with_unsaved_files(choices, hypervisors, settings, stop.check)
    print_text(tables.json_text(tables.selection_json(choices)) if as_json else tables.listing(choices))
    return FAILED if hypervisors.unreachable else SUCCESS


def show_status(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show each domain with its newest restore point; with --max-age judge them, as a check for Nagios."""
    from backup.status.max_age import judge
    from backup.status.status import StatusSearch
    from backup.terminal import status_text

    with stoppable() as stop:
        search = StatusSearch(settings, outputs.readable(settings), console, stop.check)
        if arguments.max_age:
            verdict = judge(search, arguments.domains, arguments.max_age)
            text, value, code = (
                status_text.verdict_text(verdict),
                status_text.verdict_json(verdict),
                verdict.exit_code,
            )
        else:
            status = search.status(arguments.domains)
            text, value, code = status_text.status_table(status), status_text.status_json(status), SUCCESS
    print_text(tables.json_text(value) if arguments.json else text)
    return code


def list_restore_points(arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """List the restore points."""
    from backup.restore_point.find import points_of_domains

    output = outputs.readable(settings)
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    points = points_of_domains(output.restore_points(), arguments.domains)
    as_json = arguments.json
    print_text(tables.json_text(tables.points_json(points)) if as_json else tables.points_table(points))
    return SUCCESS


def restore(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Restore a domain, or some of its disks."""
    from backup.restore.restorer import RestoreOrder, Restorer

    order = RestoreOrder(**{one.name: getattr(arguments, one.name) for one in fields(RestoreOrder)})
    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        restored = Restorer(order, settings, outputs.readable(settings), display, stop).restore()
    print_after_display(tables.restored_table(restored), display)
    return SUCCESS


def mount(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show a restore point's disks as files until it is unmounted."""
    from backup.mount.mount import Mount

    with stoppable() as stop:
        mounts = Mount(settings, outputs.readable(settings), console, stop)
        mounts.mount(
            arguments.domain, arguments.at, arguments.directory, lambda text: print_text(f"{text}\n")
        )
    return SUCCESS


def files(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """List files of a guest in a restore point, or copy them."""
    from backup.files.files import Files
    from backup.files.order import FilesOrder

    order = FilesOrder(**{one.name: getattr(arguments, one.name) for one in fields(FilesOrder)})
    with stoppable() as stop:
        result = Files(order, settings, outputs.readable(settings), console, stop).carry_out()
    for part in result_parts(result, order.to, arguments.json):
        print_text(part)
    return FAILED if result.failed else SUCCESS


def verify(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Read restore points back and compare them with their checksums."""
    from backup.verify.verification import Verification

    output = outputs.readable(settings)
    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        verification = Verification(settings, output, display, stop, arguments.sample)
        try:
            verified = verification.verify(arguments.domains, arguments.at)
        finally:  # results count even if it was interrupted
            publish_metrics(settings, display)
    print_after_display(tables.verified_text(verified), display)
    return FAILED if verified.failed else SUCCESS


def drill(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Restore a domain into DRILL_POOL, verify it and remove it again; or boot it out of the repository."""
    from backup.verify.instant_drill import chosen_drill

    output = outputs.readable(settings)
    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        try:
            chosen = chosen_drill(settings, output, display, stop, arguments.boot, arguments.instant)
            name = chosen.drill(arguments.domain)
        finally:  # a failure has to reach the metrics too
            publish_metrics(settings, display)
    print_after_display(tables.drilled_text(name, chosen.kind), display)
    return SUCCESS


def check(_arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Check whether backups can run."""
    from backup.run.check import examine

    problems = 0
    with stoppable() as stop, closing(examine(settings, outputs.chosen(settings), stop.check)) as findings:
        for found in chain(optional_modules(), findings):
            print_stoppable(tables.finding(found), stop.check)
            problems += found.problem is not None
    print_text(tables.problem_count(problems))
    return NOTHING_DONE if problems else SUCCESS


def show_report(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show the result of a past run."""
    from backup.report.past_runs import past_runs

    made = datetime.now(timezone.utc)
    past = past_runs(History(settings.state_dir, settings.report_days), arguments.run, made.date())
    if past.left_out:
        console.message(
            Level.WARNING, "", f"ignored {past.left_out} reports of other versions of this program"
        )
    if arguments.html is not None:
        from backup.report.page import page

        write_or_print(arguments.html, page(past, made))
    else:
        print_text(tables.json_text(past.report) if arguments.json else report_text(past.report))
    return SUCCESS


def keys(arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Show what the repository's keys cost; add a fast one, or remove it."""
    from outputs.restic import Restic
    from outputs.restic_repository.fast_key import add_fast_key, remove_fast_keys
    from outputs.restic_repository.keys import list_keys, tried_first

    output = Restic.from_settings(settings)
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    with stoppable() as stop:
        if arguments.fast:
            added = add_fast_key(output.program, stop.check)
            text = tables.fast_key_text(added, tried_first(output.program, added))
        elif arguments.remove_fast:
            text = tables.removed_keys_text(remove_fast_keys(output.program, stop.check))
        else:
            found = list_keys(output.program, stop.check)
            text = tables.json_text(tables.keys_json(found)) if arguments.json else tables.keys_table(found)
    print_text(text)
    return SUCCESS


def clean_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Thaw guests and remove leftovers of interrupted runs."""
    from backup.run.cleanup import clean_node, thaw_node

    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        if arguments.thaw:
            return FAILED if thaw_node(settings, display, stop) else SUCCESS
        output = outputs.readable(settings)
        return FAILED if clean_node(settings, display, stop, arguments.all, output) else SUCCESS


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Settings, Console], int]] = {
    "backup": back_up,
    "list": show_list,
    "status": show_status,
    "restore-points": list_restore_points,
    "restore": restore,
    "mount": mount,
    "files": files,
    "verify": verify,
    "drill": drill,
    "check": check,
    "report": show_report,
    "key": keys,
    "cleanup": clean_up,
}


def _end(code: int) -> NoReturn:
    """End the process; at once if a thread still waits for a terminal that was stopped (Ctrl-S)."""
    if not is_flushed():
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    require_utf8(sys.argv)
    _end(main(sys.argv[1:]))
