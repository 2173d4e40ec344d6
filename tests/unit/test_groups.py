"""backup/groups.py, command.py and settings.py: the names, files and directories of groups."""

from __future__ import annotations

from pathlib import Path

import pytest

import config
from backup.command import group_of
from backup.errors import BackupError, ConfigError
from backup.groups import GroupFiles, directories, is_name
from backup.settings import Settings, constants, load


@pytest.fixture
def files(tmp_path: Path) -> GroupFiles:
    return GroupFiles(tmp_path / "config.py", constants().keys())


def write(path: Path, text: str = "WORKERS = 1\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def loaded(path: Path, text: str) -> Settings:
    return load(vars(config), write(path, text), path.stem)


@pytest.mark.parametrize("name", ["db", "db_2", "0-hourly", "x" * 64])
def test_a_name_has_letters_digits_and_two_signs(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", "config", "-db", "../db", "a/b", "a b", "größe", "db\n", "x" * 65, "a.b"]
)
def test_no_other_name_becomes_a_part_of_a_path(name: str, files: GroupFiles) -> None:
    assert not is_name(name)
    with pytest.raises(ConfigError) as caught:
        files.require(name)
    assert caught.value.errors[0].message == f"invalid group name {name!r}"


def test_groups_are_the_settings_files_beside_the_default_one(files: GroupFiles, tmp_path: Path) -> None:
    for name in ("config", "db", "hourly"):
        write(tmp_path / f"{name}.py")
    write(tmp_path / "broken.py", "WORKERS = = 1\n# a file that cannot be read must not be overlooked")
    assert files.names() == ["broken", "db", "hourly"]


def test_a_program_beside_the_settings_is_no_group_and_is_never_executed(
    files: GroupFiles, tmp_path: Path
) -> None:
    write(tmp_path / "notify.py", "WORKERS = 3\nraise SystemExit\n", 0o700)
    write(tmp_path / "sitecustomize.py", "import sys; sys.modules['x'] = None\nPATH = 'x'\n")
    write(tmp_path / "bad name.py")
    (tmp_path / "folder.py").mkdir()
    assert files.names() == []


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("WORKERS = 1\n", 0o755, "is executable"),
        ("from common import *\n", 0o600, "sets no constant"),
        ("if True:\n    WORKERS = 1\n", 0o600, "sets no constant"),
    ],
)
def test_what_no_list_of_groups_would_show_is_refused_as_one(
    files: GroupFiles, tmp_path: Path, text: str, mode: int, why: str
) -> None:
    path = write(tmp_path / "db.py", text, mode)
    assert files.names() == []
    with pytest.raises(ConfigError) as caught:
        files.require("db")
    (error,) = caught.value.errors
    assert error.message == f"there is no group db: {path} {why}"
    write(path, "WORKERS: int = 1\n")
    assert (files.names(), files.require("db")) == (["db"], path)


def test_a_file_that_cannot_be_read_is_a_group_whose_loading_reports_that(
    files: GroupFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "db.py")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert (files.names(), files.require("db")) == (["db"], path)


def test_a_missing_group_is_an_error_that_names_its_file_and_those_that_exist(
    files: GroupFiles, tmp_path: Path
) -> None:
    write(tmp_path / "db.py")
    with pytest.raises(ConfigError) as caught:
        files.require("bd")
    (error,) = caught.value.errors
    assert error.message == f"there is no group bd: {tmp_path}/bd.py is missing"
    assert error.hint == "groups: db"


def test_a_group_has_directories_of_its_own(tmp_path: Path) -> None:
    settings = loaded(tmp_path / "db.py", "")
    assert settings.group == "db"
    assert settings.runtime_dir == f"{config.RUNTIME_DIR}/groups/db"
    assert settings.node_dir == config.RUNTIME_DIR
    assert settings.state_dir == f"{config.STATE_DIR}/groups/db"
    assert (settings.report_file, settings.metrics_file) == ("", "")


def test_paths_in_the_group_s_file_are_as_they_are_but_runtime_dir_is_the_node_s(tmp_path: Path) -> None:
    text = "RUNTIME_DIR = '/run/x'\nSTATE_DIR = '/srv/db'\nMETRICS_FILE = '/srv/db.prom'\n"
    settings = loaded(tmp_path / "db.py", text)
    assert (settings.state_dir, settings.metrics_file) == ("/srv/db", "/srv/db.prom")
    assert (settings.runtime_dir, settings.node_dir) == ("/run/x/groups/db", "/run/x")


def test_files_that_config_py_names_get_the_group_s_name(tmp_path: Path) -> None:
    defaults = {**vars(config), "METRICS_FILE": "/m/backup.prom", "REPORT_FILE": "/m/report.json"}
    settings = load(defaults, write(tmp_path / "db.py"), "db")
    assert (settings.metrics_file, settings.report_file) == ("/m/backup-db.prom", "/m/report-db.json")


def test_without_a_group_nothing_changes(tmp_path: Path) -> None:
    settings = load(vars(config), write(tmp_path / "config.py", ""))
    assert (settings.group, settings.runtime_dir, settings.node_dir) == ("", *[config.RUNTIME_DIR] * 2)
    assert settings.state_dir == config.STATE_DIR


def test_a_wrong_runtime_dir_of_a_group_is_an_error_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path / "db.py", "RUNTIME_DIR = None")
    assert [type(error) for error in caught.value.errors] == [BackupError]


def test_directories_are_those_of_groups_that_exist(tmp_path: Path) -> None:
    assert directories(str(tmp_path)) == {"": str(tmp_path)}
    for name in ("b", "a", "no group"):
        (tmp_path / "groups" / name).mkdir(parents=True)
    assert directories(str(tmp_path)) == {
        "": str(tmp_path),
        "a": f"{tmp_path}/groups/a",
        "b": f"{tmp_path}/groups/b",
    }


@pytest.mark.parametrize(
    ("line", "variable", "group"),
    [
        ("backup", "", ""),
        ("--group db backup", "", "db"),
        ("backup web --group=db", "", "db"),
        ("--group a --group b", "", "b"),
        ("backup", "db", "db"),
        ("--group a", "db", "a"),
        ("--config x.py", "db", ""),
        ("--config=x.py", "db", ""),
        ("--gro a backup", "db", "a"),
        ("backup --g=a", "", "a"),
        ("--conf x.py", "db", ""),
        ("files web -- --x", "db", "db"),
        ("--group a;b", "", ""),
    ],
)
def test_hints_name_the_group_of_the_command_line_or_the_environment(
    line: str, variable: str, group: str
) -> None:
    assert group_of(line.split(" "), {"VIRT_RBD_BACKUP_GROUP": variable}) == group
