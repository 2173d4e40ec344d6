#!/usr/bin/python3
"""The command line of virt-rbd-backup: parses, wires, maps results to exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import fields, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Callable, NoReturn

import outputs
from backup.command import GROUP, config_of, group_of
from backup.errors import AlreadyRunning, BackupError, ConfigError
from backup.exit_codes import ALREADY_RUNNING, FAILED, NOTHING_DONE, SUCCESS, USAGE, exit_code, interrupted
from backup.model import Finding, Level
from backup.protocols import Reporter
from backup.report.history import History
from backup.report.publish import publish, publish_metrics
from backup.report.run_report import RunResult
from backup.settings import Settings, invalid_python
from backup.system.process_end import any_left
from backup.system.process_title import set_title
from backup.system.started_program import commands_logged
from backup.system.stop_request import StopRequest
from backup.system.time_limit import CheckStop, any_abandoned
from backup.system.utf8_mode import require_utf8
from backup.terminal import command_line, completion, tables
from backup.terminal.console import Console, console_on_standard_error
from backup.terminal.files_text import result_parts
from backup.terminal.output_file import write_or_print
from backup.terminal.report_text import report_text
from backup.terminal.required_modules import optional_modules, require_modules
from backup.terminal.settings_files import SettingsFiles
from backup.terminal.standard_output import (
    is_flushed,
    open_closed_streams,
    print_after_display,
    print_stoppable,
    print_text,
    write_error,
)
from backup.terminal.stoppable import stoppable, stoppable_display


def main(argv: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # names come in all alphabets, whatever the locale
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if argv[:1] == [completion.COMMAND]:
        return complete(*argv[1:])
    arguments = _parsed(argv)
    set_title(arguments.command)
    console = console_on_standard_error(Level[arguments.log_level.upper()])
    began = False
    try:
        arguments.files = SettingsFiles.chosen(arguments, os.environ, _defaults())
        settings = _settings(arguments, console)
        require_modules(arguments, settings)
        began = True
        with commands_logged(partial(console.message, Level.DEBUG, "")):
            return COMMANDS[arguments.command](arguments, settings, console)
    except BackupError as error:
        write_error(console, error)
        code = exit_code(error)
        is_run = arguments.command == "backup" and not arguments.dry_run
        if is_run and (not began or code in (USAGE, ALREADY_RUNNING)):
            _notify_not_started(error, code, arguments, console)
        return code
    except KeyboardInterrupt:
        return interrupted(signal.SIGINT)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments. Wrong ones end the program with exit code 2."""
    try:
        return command_line.parsed(argv)
    except SystemExit as end:
        command = next((argument for argument in argv if argument in COMMANDS), "backup")
        if end.code == USAGE and command == "backup":
            error = BackupError("the command line is wrong: see the journal")
            arguments = argparse.Namespace(config=config_of(argv), group=GROUP)
            _notify_not_started(error, USAGE, arguments, console_on_standard_error(Level.INFO))
        raise


def _notify_not_started(
    error: BackupError, code: int, arguments: argparse.Namespace, console: Console
) -> None:
    """Send the notifications of a run that ended before it began, if a timer started it."""
    from backup.hooks.not_started import is_scheduled, notify_not_started

    if not is_scheduled():
        return
    try:
        settings = SettingsFiles.chosen(arguments, os.environ, _defaults()).load_valid()
    except ConfigError:
        console.message(Level.ERROR, "", "notification failed: NOTIFY_COMMAND and PING_URL cannot be read")
    else:
        with stoppable() as stop:
            notify_not_started(error, code, settings, console, stop.check)


def _defaults() -> Mapping[str, object]:
    """Return the constants of config.py. Raises ConfigError: an admin may have edited it."""
    try:
        import config
    except (Exception, SystemExit) as error:  # an error in the admin's Python, whatever it is
        raise invalid_python(Path(__file__).with_name("config.py"), error) from error
    return vars(config)


def _settings(arguments: argparse.Namespace, console: Console) -> Settings:
    """Return the settings of the command. Raises ConfigError."""
    files: SettingsFiles = arguments.files
    try:
        return files.load(arguments.command)
    except ConfigError as error:
        if not (arguments.command == "cleanup" and arguments.thaw and files.has_groups):
            raise
        write_error(console, error)  # no group's guest stays frozen for it
        return files.without_file()


def complete(kind: str = "", prefix: str = "", *line: str) -> int:
    """Print what a shell completes an argument with: nothing, not even an error, if that is unknown."""
    with suppress(Exception, SystemExit, KeyboardInterrupt):
        arguments = argparse.Namespace(config=None, group=group_of(line, {}))
        files = SettingsFiles.chosen(arguments, os.environ, _defaults())
        for value in completion.completions(kind, prefix, line, files):
            print_text(f"{value}\n")
    return SUCCESS


def back_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Back up the selected domains; publish the report and send the notifications."""
    from backup.run.run import Run

    if arguments.dry_run:
        return _show_selection(arguments.domains, False, settings, console)
    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        run = Run(settings, outputs.chosen(settings), display, stop, other_groups=arguments.files.others)
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
    from backup.hooks.not_started import forget_not_started, last_not_started
    from backup.hooks.notify import send_notifications

    report = publish(result, settings, reporter)
    try:
        publish_metrics(settings, reporter, report)
    finally:  # whatever the metrics' error is, the admin is notified of the run
        history = History(settings.state_dir, settings.report_days)
        previous = chain(last_not_started(settings.state_dir), history.newest_first())
        send_notifications(result, report, previous, settings, reporter, stop.check_signalled_twice)
        forget_not_started(settings.state_dir)


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
    from backup.status.all_groups import AllGroups
    from backup.status.max_age import judge
    from backup.status.status import StatusSearch
    from backup.terminal import status_text

    with stoppable() as stop:
        groups, unread = _shown(arguments, settings, console)
        searches = [StatusSearch(one, outputs.readable(one), console, stop.check) for one in groups]
        alone = len(searches) == 1 and not unread
        search = searches[0] if alone else AllGroups(searches, console, unread)
        if arguments.max_age:
            verdict = judge(search, arguments.domains, arguments.max_age)
            text, value, code = (
                status_text.verdict_text(verdict),
                status_text.verdict_json(verdict),
                verdict.exit_code,
            )
        else:
            status = search.status(arguments.domains)
            code = FAILED if status.missing else SUCCESS
            text, value = status_text.status_table(status), status_text.status_json(status)
    print_text(tables.json_text(value) if arguments.json else text)
    return code


def _shown(
    arguments: argparse.Namespace, settings: Settings, console: Console
) -> tuple[Sequence[Settings], Sequence[str]]:
    """Return the settings of all groups that a command is about, and the groups whose cannot be read."""
    files: SettingsFiles = arguments.files
    errors = files.errors() if files.has_groups else {}
    for group, found in errors.items():
        for error in found:
            console.message(Level.ERROR, "", f"group {group}: {error}")
    return files.shown(settings), list(errors)


def list_restore_points(arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """List the restore points."""
    from backup.restore_point.find import points_of_domains
    from backup.restore_point.known_points import remember

    output = outputs.readable(_read(arguments, settings))
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    listed = output.restore_points()
    if not arguments.source:
        remember(listed, settings.state_dir)
    points = points_of_domains(listed, arguments.domains)
    as_json = arguments.json
    print_text(tables.json_text(tables.points_json(points)) if as_json else tables.points_table(points))
    return SUCCESS


def _read(arguments: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings of the repository that a command reads: itself, or with --from its copy."""
    from outputs.restic_copy import settings_of_copy

    return settings_of_copy(settings) if arguments.source else settings


def restore(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Restore a domain, or some of its disks."""
    from backup.restore.order import RestoreOrder

    given = RestoreOrder(**{one.name: getattr(arguments, one.name) for one in fields(RestoreOrder)})
    order, output = given.complete(), outputs.readable(_read(arguments, settings))
    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        if order.abort:
            from backup.instant_restore.aborting import InstantAbort

            InstantAbort(order, settings, output, display, stop).abort()
            return SUCCESS
        if order.instant:
            from backup.instant_restore.command import InstantRestorer

            restored = InstantRestorer(order, settings, output, display, stop).restore()
        else:
            from backup.restore.restorer import Restorer

            restored = Restorer(order, settings, output, display, stop).restore()
    print_after_display(tables.restored_table(restored), display)
    return FAILED if any(one.damaged for one in restored) else SUCCESS


def mount(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show a restore point's disks as files until it is unmounted."""
    from backup.mount.mount import Mount

    with stoppable() as stop:
        mounts = Mount(settings, outputs.readable(_read(arguments, settings)), console, stop)
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
        output = outputs.readable(_read(arguments, settings))
        result = Files(order, settings, output, console, stop).carry_out()
    for part in result_parts(result, order.to, arguments.json):
        print_text(part)
    return FAILED if result.failed else SUCCESS


def verify(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Read restore points back and compare them with their checksums."""
    from backup.verify.verification import Verification

    output = outputs.readable(_read(arguments, settings))
    if arguments.source:  # its records are apart: they tell nothing about the repository
        settings = replace(settings, state_dir=f"{settings.state_dir}/copy", metrics_file="")
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


def check(arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Check whether backups can run, and without a group whether the groups fit together."""
    problems = 0
    with stoppable() as stop, closing(_findings(arguments.files, settings, stop.check)) as findings:
        for found in findings:
            print_stoppable(tables.finding(found), stop.check)
            problems += found.problem is not None
    print_text(tables.problem_count(problems))
    return NOTHING_DONE if problems else SUCCESS


def _findings(
    files: SettingsFiles, settings: Settings, check_stop: CheckStop
) -> Generator[Finding, None, None]:
    from backup.run.check import examine
    from backup.run.check_groups import examine_groups
    from outputs.restic_copy import examine_copy

    groups = files.shown(settings)
    yield from optional_modules()
    if settings in groups:
        yield from examine(settings, outputs.chosen(settings), check_stop)
        yield from examine_copy(settings, check_stop)
    if files.has_groups:
        yield from examine_groups(groups, files.errors(), check_stop)


def show_report(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show the result of a past run."""
    from backup.report.past_runs import newest, past_runs_of

    made = datetime.now(timezone.utc)
    groups, unread = _shown(arguments, settings, console)
    histories = [History(one.state_dir, one.report_days) for one in groups]
    pasts = past_runs_of(histories, arguments.run, made.date())
    if left_out := sum(past.left_out for past in pasts):
        console.message(Level.WARNING, "", f"ignored {left_out} reports of other versions of this program")
    if arguments.html is not None:
        from backup.report.page import page

        write_or_print(arguments.html, page(pasts, made))
    elif arguments.json:
        print_text(tables.json_text(newest(pasts).report))
    else:
        print_text("\n".join(report_text(past) for past in pasts))
    return FAILED if unread else SUCCESS


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


def copy_points(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Copy whole restore points to the second repository."""
    from outputs.restic_copy import RepositoryCopy

    with stoppable() as stop:
        copy = RepositoryCopy.from_settings(settings, stop.check)
        if arguments.dry_run:
            print_text(tables.points_table(copy.missing(arguments.domains)))
            return SUCCESS
        try:
            record = copy.copy(arguments.domains, console)
        finally:  # a failure has to reach the metrics too
            publish_metrics(settings, console)
    print_text(f"{record}\n")
    return FAILED if record.error else SUCCESS


def clean_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Thaw guests and remove leftovers of interrupted runs."""
    from backup.run.cleanup import clean_node, thaw_node

    with stoppable_display(arguments.progress, settings, console) as (display, stop):
        if arguments.thaw:
            return FAILED if thaw_node(settings, display, stop, arguments.files.others) else SUCCESS
        output, others = outputs.readable(settings), arguments.files.others
        return FAILED if clean_node(settings, display, stop, arguments.all, output, others) else SUCCESS


def prune(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Remove the restore points that KEEP_LAST and KEEP_WITHIN_DAYS do not keep."""
    from backup.run.prune import prune

    with stoppable() as stop:
        pruned = prune(
            settings, outputs.readable(settings), console, stop.check, arguments.domains, arguments.dry_run
        )
    print_text(tables.pruned_table(pruned, settings, arguments.dry_run))
    return FAILED if any(one.failed for one in pruned) else SUCCESS


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
    "copy": copy_points,
    "prune": prune,
    "cleanup": clean_up,
}


def _end(code: int) -> NoReturn:
    """End the process; at once if a thread still waits for a stopped terminal (Ctrl-S), or for a cluster.

    Or if a process that was killed does not end, for which Python would wait.
    """
    if not is_flushed() or any_left() or any_abandoned():
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    require_utf8(sys.argv)
    _end(main(sys.argv[1:]))
