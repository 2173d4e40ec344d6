"""backup/settings.py: all errors are reported at once, with the constants' names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import config
from backup.errors import BackupError, ConfigError
from backup.settings import constants, load

CONSTANTS = {name: value for name, value in vars(config).items() if name.isupper()}


@pytest.fixture
def override(tmp_path: Path) -> Path:
    path = tmp_path / "settings.py"
    path.touch(mode=0o600)
    return path


def errors_of(path: Path) -> list[BackupError]:
    with pytest.raises(ConfigError) as caught:
        load(vars(config), path)
    return list(caught.value.errors)


def error_of(path: Path) -> BackupError:
    (error,) = errors_of(path)
    return error


def test_config_py_is_valid() -> None:
    settings = load(vars(config), None)
    assert {name: getattr(settings, name.lower()) for name in CONSTANTS} == CONSTANTS


def test_config_py_and_settings_have_the_same_constants() -> None:
    assert set(constants()) == set(CONSTANTS)


def test_an_override_file_needs_only_the_differences_and_may_contain_other_names(override: Path) -> None:
    override.write_text(
        "import os\nbase = '/srv'\nREPORT_FILE = os.path.join(base, 'report.json')\nWORKERS = 5"
    )
    settings = load(vars(config), override)
    assert (settings.report_file, settings.workers) == ("/srv/report.json", 5)
    assert settings.ceph_timeout == config.CEPH_TIMEOUT


WRONG = {
    **dict.fromkeys(
        [
            "LIBVIRT_URI = ''",
            "LIBVIRT_URI = 'qemu\\0'",
            "LIBVIRT_URI = None",
            "LIBVIRT_URI = 7",
            "LIBVIRT_URI = []",
            "LIBVIRT_URI = ['qemu:///system', '']",
            "LIBVIRT_URI = ['qemu:///system', 7]",
            "LIBVIRT_URI = {'qemu:///system'}",
        ],
        "has to be a non-empty string, or a list of such strings",
    ),
    "CEPH_CONF = 'ceph.conf'": "has to be an absolute path",
    "CEPH_CONF = ''": "has to be an absolute path",
    "CEPH_TIMEOUT = 0": "has to be a whole number from 1 to 3600",
    "CEPH_TIMEOUT = 60.0": "has to be a whole number from 1 to 3600",
    "INCLUDE_DOMAINS = 'web'": "has to be a list of strings",
    "EXCLUDE_DOMAINS = ['web', 1]": "has to be a list of strings",
    "EXCLUDE_IMAGES = None": "has to be a list of strings",
    "UNCOVERED_DISKS = 'ignore'": "has to be one of 'report', 'fail'",
    "UNCOVERED_DISKS = True": "has to be one of 'report', 'fail'",
    "MIN_AGE = -1": "has to be a whole number of at least 0",
    "MIN_AGE = 3600.0": "has to be a whole number of at least 0",
    "WORKERS = '3'": "has to be a whole number from 1 to 64",
    "WORKERS = True": "has to be a whole number from 1 to 64",
    "WORKERS = 65": "has to be a whole number from 1 to 64",
    "FREEZE = 'always'": "has to be one of 'auto', 'required', 'never'",
    "WITHOUT_FREEZE = ['pause']": "has to be one of 'pause', 'crash'",
    "FREEZE_TIMEOUT = 1": "has to be a whole number from 2 to 600",
    "MAX_READ_RATE = -1": "has to be a whole number of at least 0",
    "OUTPUT = 'borg'": "has to be one of 'restic', 'restic_incremental', 'rbd', 'directory'",
    "RESTIC_BINARY = None": "has to be a non-empty string",
    "RESTIC_BINARY = 'res\\0tic'": "has to be a non-empty string",
    "RESTIC_REPOSITORY = 7": "has to be a string",
    "RESTIC_PASSWORD_FILE = 'password'": "has to be an absolute path",
    "RESTIC_OPTIONS = '--no-cache'": "has to be a list of strings",
    "RUNTIME_DIR = ''": "has to be an absolute path",
    "RUNTIME_DIR = '/run/\\0'": "has to be an absolute path",
    "REPORT_DAYS = 999999": "has to be a whole number from 1 to 365000",
    "KEEP_WITHIN_DAYS = 999999": "has to be a whole number from 0 to 365000",
    "CLEANUP_DAYS = 999999": "has to be a whole number from 0 to 365000",
    "FULL_READ_DAYS = 999999": "has to be a whole number from 0 to 365000",
    "LOCK_DURATION = 2": "has to be a whole number from 3 to 3600",
    "REPORT_FILE = None": "has to be an absolute path",
    "METRICS_FILE = 'x.prom'": "has to be an absolute path",
    "METRICS_FILE = '/srv/metrics.txt'": "has to end in .prom: node_exporter reads only such files",
    "NOTIFY_COMMAND = '/usr/bin/mail root'": "has to be a list of strings",
    "NOTIFY_ON = 'never'": "has to be one of 'always', 'failure', 'change'",
    "NOTIFY_TIMEOUT = 0": "has to be a whole number from 1 to 3600",
    "HOOKS = 'hooks'": "has to be an absolute path",
    "HOOK_TIMEOUT = 0": "has to be a whole number from 1 to 86400",
    **dict.fromkeys(
        [
            "PING_URL = None",
            "PING_URL = 'hc-ping.com/uuid'",
            "PING_URL = 'file:///etc/passwd'",
            "PING_URL = 'https://'",
            "PING_URL = 'https://host/a b'",
            "PING_URL = 'https://[host/'",
        ],
        "has to be a URL, http://... or https://...",
    ),
}


@pytest.mark.parametrize("line", WRONG)
def test_an_invalid_value_is_refused_with_the_expected_one(override: Path, line: str) -> None:
    override.write_text(line)
    error = error_of(override)
    assert error.message.startswith(f"{line.split()[0]} = ")
    assert error.message.endswith(f": {WRONG[line]}")
    assert error.hint == "config.py explains each constant"


def test_an_invalid_value_is_shown_in_python_notation(override: Path) -> None:
    override.write_text("WORKERS = '3'")
    assert error_of(override).message == "WORKERS = '3': has to be a whole number from 1 to 64"


@pytest.mark.parametrize(
    "line",
    [
        "WORKERS = 64",
        "MAX_READ_RATE = 0",
        "MIN_AGE = 10_000_000",
        "UNCOVERED_DISKS = 'fail'",
        "LIBVIRT_URI = ['qemu:///system']",
        "INCLUDE_DOMAINS = ('web', 'db-*')",
        "RESTIC_PASSWORD_FILE = ''",
        "PING_URL = ''",
        "PING_URL = 'http://localhost:8000/ping/x?create=1'",
        "NOTIFY_COMMAND = ['/usr/bin/mail', 'root']",
        "RESTIC_ENVIRONMENT = {'AWS_ACCESS_KEY_ID': 'x'}",
    ],
)
def test_a_value_at_the_limit_is_accepted(override: Path, line: str) -> None:
    override.write_text(line)
    load(vars(config), override)


@pytest.mark.parametrize(
    ("given", "uris"),
    [
        ("'qemu:///system'", ("qemu:///system",)),
        ("['qemu:///system']", ("qemu:///system",)),
        ("('b:///', 'a:///', 'b:///', 'c:///')", ("b:///", "a:///", "c:///")),
    ],
)
def test_one_or_several_libvirts_can_be_set_without_duplicates(
    override: Path, given: str, uris: tuple[str, ...]
) -> None:
    override.write_text(f"LIBVIRT_URI = {given}")
    assert load(vars(config), override).libvirt_uris == uris


def test_an_unknown_constant_is_refused_with_the_most_similar_one(override: Path) -> None:
    override.write_text("RESTIC_REPOSITRY = '/srv/restic'")
    error = error_of(override)
    assert error.message == "RESTIC_REPOSITRY is not a known constant"
    assert error.hint == "did you mean RESTIC_REPOSITORY?"


def test_an_unknown_constant_without_a_similar_one_refers_to_config_py(override: Path) -> None:
    override.write_text("XYZZY = 1")
    assert error_of(override).hint == "config.py lists all constants"


def test_all_errors_are_reported_at_once(override: Path) -> None:
    override.write_text("WORKERS = 0\nFREEZ = 'auto'\nCEPH_CONF = 'x'\nOUTPUT = 1\n")
    assert {error.message.split()[0] for error in errors_of(override)} == {
        "WORKERS",
        "FREEZ",
        "CEPH_CONF",
        "OUTPUT",
    }


def test_constants_missing_in_an_older_config_py_are_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: value for name, value in CONSTANTS.items() if name != "WORKERS"}, None)
    assert [error.message for error in caught.value.errors] == ["WORKERS is missing"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_not_executed(override: Path, mode: int) -> None:
    override.write_text(f"open({str(override.parent / 'executed')!r}, 'w')")
    override.chmod(mode)
    error = error_of(override)
    assert error.message == f"{override} can be written by others (mode {mode:04o}, owner {os.geteuid()})"
    assert f"chmod go-w {override}" in error.hint
    assert not (override.parent / "executed").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_executed(override: Path) -> None:
    os.chown(override, 12345, -1)
    assert "owner 12345" in error_of(override).message


def test_a_missing_file_is_reported_in_one_line(override: Path) -> None:
    override.unlink()
    assert error_of(override).message == f"cannot read {override}: no such file or directory"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path).message == f"{tmp_path} is not a file"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("WORKERS = 3\nFREEZE = 'auto\n", 2),
        ("WORKERS = 3\n\nFREEZE = auto\n", 3),
        ("def half(number):\n    return number / 0\nWORKERS = half(6)\n", 2),
        ("import sys\nsys.exit(0)\n", 2),
    ],
    ids=["syntax", "missing quotes", "in a function", "exit"],
)
def test_an_error_in_the_file_names_its_line(override: Path, text: str, line: int) -> None:
    override.write_text(text)
    assert error_of(override).message.startswith(f"{override}, line {line}: ")


@pytest.mark.parametrize(
    "line",
    [
        "RESTIC_ENVIRONMENT = {'RESTIC_PASSWORD': ['hunter2']}",
        "RESTIC_ENVIRONMENT = {'RESTIC_PASSWORD': hunter2}",
        "RESTIC_REPOSITORY = ['rest:https://backup:hunter2@host/']",
        "PING_URL = 'hc-ping.com/hunter2'",
        "NOTIFY_COMMAND = 'post https://hooks/hunter2'",
    ],
    ids=["environment", "forgotten quotes", "repository", "ping", "webhook"],
)
def test_an_error_does_not_show_values_that_may_contain_passwords(override: Path, line: str) -> None:
    override.write_text(line)
    (error,) = errors_of(override)
    assert line.split()[0] in error.message or str(override) in error.message
    assert "hunter2" not in str(error)


def test_settings_do_not_show_the_environment_of_restic(override: Path) -> None:
    override.write_text("RESTIC_ENVIRONMENT = {'RESTIC_PASSWORD': 'hunter2'}")
    settings = load(vars(config), override)
    assert settings.restic_environment == {"RESTIC_PASSWORD": "hunter2"}
    assert "hunter2" not in repr(settings)


def test_an_invalid_environment_variable_name_is_refused(override: Path) -> None:
    override.write_text("RESTIC_ENVIRONMENT = {'AWS_REGION=': 'x'}")
    assert error_of(override).message.startswith("RESTIC_ENVIRONMENT")
