"""res/install puts the program below a root, keeps what is the admin's, and removes itself again."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from backup import __version__

ROOT = Path(__file__).parents[2]
UNITS = (
    "virt-rbd-backup.service",
    "virt-rbd-backup.timer",
    "virt-rbd-backup-thaw.service",
    "virt-rbd-backup-drill.service",
    "virt-rbd-backup-drill.timer",
    "virt-rbd-backup-copy.service",
    "virt-rbd-backup@.service",
    "virt-rbd-backup@.timer",
    "virt-rbd-backup-drill@.service",
    "virt-rbd-backup-drill@.timer",
    "virt-rbd-backup-copy@.service",
)


def install(
    root: Path,
    *arguments: str,
    script: Path = ROOT / "res/install",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/python3", str(script), "--destdir", str(root), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def files(root: Path) -> dict[Path, tuple[int, bytes]]:
    """Give mode and content of all there is, but for what Python compiles: it is not the same each time."""
    return {
        path: (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in root.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fresh")
    done = install(root)
    assert (done.returncode, done.stderr) == (0, "")
    return root


@pytest.fixture
def root(tmp_path: Path, fresh: Path) -> Path:
    """Give a root that it is installed below."""
    shutil.copytree(fresh, tmp_path / "root", symlinks=True)
    return tmp_path / "root"


def test_the_program_runs_from_where_it_was_put(root: Path) -> None:
    program = root / "opt/virt-rbd-backup/main.py"
    done = subprocess.run(["/usr/bin/python3", program, "--version"], capture_output=True, text=True)
    assert done.stdout == f"virt-rbd-backup {__version__}\n"
    assert (root / "usr/local/sbin/virt-rbd-backup").readlink() == Path("/opt/virt-rbd-backup/main.py")
    for unit in UNITS:
        assert (root / "etc/systemd/system" / unit).read_bytes() == (ROOT / "res" / unit).read_bytes()


def test_the_manual_is_installed_where_its_links_lead_to(root: Path) -> None:
    program = root / "opt/virt-rbd-backup"
    pages = {path.name for path in (ROOT / "res/docs").iterdir()}
    assert {path.name for path in (program / "res/docs").iterdir()} == pages
    for unit in UNITS:
        named = re.findall("Documentation=file:/(.*)", (root / "etc/systemd/system" / unit).read_text())
        assert named
        assert [path for path in named if not (root / path).exists()] == []


def test_the_settings_are_for_their_owner_alone(root: Path) -> None:
    settings = root / "etc/virt-rbd-backup/config.py"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.parent.stat().st_mode) == 0o700


def test_broken_modules_are_listed_with_their_reason_and_a_hint(tmp_path: Path) -> None:
    for name in ("rados", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('librados.so.2: cannot open it')")
    done = install(tmp_path / "root", environment={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for name in ("rados", "jinja2"):
        place = lines.index(
            f"cannot import module {name}: librados.so.2: cannot open it ({tmp_path}/{name}.py)"
        )
        assert lines[place + 1].startswith(f"hint: apt-get install --reinstall python3-{name}")
    assert not (tmp_path / "__pycache__").exists()


def test_a_second_time_changes_nothing(root: Path) -> None:
    before = files(root)
    assert install(root).returncode == 0
    assert files(root) == before


def test_a_dry_run_prints_each_step_and_takes_none(tmp_path: Path, root: Path) -> None:
    done = install(tmp_path / "fresh", "--dry-run")
    assert (
        f"would copy the program, version {__version__}, to {tmp_path}/fresh/opt/virt-rbd-backup"
        in done.stdout
    )
    assert not (tmp_path / "fresh").exists()
    before = files(root)
    assert "would remove" in install(root, "--uninstall", "--purge", "--dry-run").stdout
    assert files(root) == before


def test_an_upgrade_keeps_the_settings_and_lists_what_is_new(tmp_path: Path, root: Path) -> None:
    settings = root / "etc/virt-rbd-backup/config.py"
    settings.write_text("WORKERS = 1\n")
    newer = tmp_path / "newer"
    shutil.copytree(root / "opt/virt-rbd-backup", newer)
    config = (newer / "config.py").read_text()
    config = config.replace("WORKERS = 3", "WORKERS = 4").replace("LOCK_WAIT = 3600", "NEW = 1")
    (newer / "config.py").write_text(config)
    version = newer / "backup/__init__.py"
    version.write_text(version.read_text().replace(f'"{__version__}"', '"9.0"'))
    printed = install(root, script=newer / "res/install").stdout
    assert f"version {__version__} becomes 9.0" in printed
    assert "new setting: NEW = 1" in printed
    assert "new default: WORKERS = 4, was 3" in printed
    assert "no longer a setting: LOCK_WAIT" in printed
    assert settings.read_text() == "WORKERS = 1\n"


@pytest.mark.parametrize(
    "edited", ["opt/virt-rbd-backup/config.py", "etc/systemd/system/virt-rbd-backup.service"]
)
def test_what_an_admin_has_edited_is_not_replaced(root: Path, edited: str) -> None:
    with (root / edited).open("a") as file:
        file.write("# mine\n")
    before = files(root)
    done = install(root)
    assert (done.returncode, f"{edited} was edited" in done.stderr) == (1, True)
    assert files(root) == before


def test_an_edited_unit_is_not_replaced_from_the_installed_copy_either(root: Path) -> None:
    own, unit = root / "opt/virt-rbd-backup/res/install", root / "etc/systemd/system/virt-rbd-backup.timer"
    assert install(root, script=own).returncode == 0
    with unit.open("a") as file:
        file.write("# mine\n")
    before = files(root)
    done = install(root, script=own)
    assert (done.returncode, f"{unit} was edited" in done.stderr) == (1, True)
    assert files(root) == before
    (root / "opt/virt-rbd-backup/res/config.py.installed").unlink()  # put there by other means
    assert install(root, script=own).returncode == 0


def test_uninstalling_leaves_a_unit_that_was_edited_and_installing_keeps_it(root: Path) -> None:
    unit = root / "etc/systemd/system/virt-rbd-backup.timer"
    unit.write_text("mine\n")
    done = install(root, "--uninstall")
    assert (done.returncode, f"{unit} stays: it was edited" in done.stdout) == (0, True)
    assert [path.name for path in unit.parent.iterdir()] == [unit.name]
    done = install(root)
    assert (done.returncode, f"{unit} was edited, or is your own" in done.stderr) == (1, True)
    assert unit.read_text() == "mine\n"


def test_a_file_that_has_the_command_s_name_is_neither_replaced_nor_removed(root: Path) -> None:
    command = root / "usr/local/sbin/virt-rbd-backup"
    command.unlink()
    command.write_text("#!/bin/sh\n")
    done = install(root)
    assert (done.returncode, f"{command} is a file of your own" in done.stderr) == (1, True)
    assert f"{command} stays: " in install(root, "--uninstall").stdout
    assert command.read_text() == "#!/bin/sh\n"


def test_a_unit_of_the_admin_s_that_has_the_name_of_a_new_one_is_not_replaced(root: Path) -> None:
    (root / "opt/virt-rbd-backup/res/virt-rbd-backup@.timer").unlink()  # as in a version without it
    assert install(root).returncode == 0
    (root / "opt/virt-rbd-backup/res/virt-rbd-backup@.service").unlink()
    own = root / "etc/systemd/system/virt-rbd-backup@.service"
    own.write_text("[Service]\nExecStart=virt-rbd-backup --config /etc/%i.py\n")
    before = files(root)
    done = install(root)
    assert (done.returncode, f"{own} was edited, or is your own" in done.stderr) == (1, True)
    assert files(root) == before


def test_settings_files_that_are_groups_are_named_and_not_executed(root: Path) -> None:
    etc = root / "etc/virt-rbd-backup"
    assert "is the group" not in install(root).stdout
    for name in ("second", "config-old"):
        (etc / f"{name}.py").write_text("WORKERS = 1\nraise SystemExit('executed')\n")
        (etc / f"{name}.py").chmod(0o600)
    (etc / "notify.py").write_text("import smtplib\n")
    done = install(root)
    assert (done.returncode, done.stderr) == (0, "")
    named = [line.split(":")[0] for line in done.stdout.splitlines() if "is the group" in line]
    assert named == [f"{etc}/{name}.py is the group {name}" for name in ("config-old", "second")]


def test_beside_the_package_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "usr/share/virt-rbd-backup").mkdir(parents=True)
    assert "Debian's package is installed" in install(tmp_path).stderr
    assert not (tmp_path / "opt").exists()


def test_a_clone_in_its_place_is_not_replaced(root: Path) -> None:
    (root / "opt/virt-rbd-backup/.git").mkdir()
    assert "is a git clone" in install(root).stderr
    assert "is a git clone" in install(root, "--uninstall").stderr


def test_uninstalled_from_its_own_copy_it_leaves_what_is_the_admins(root: Path) -> None:
    password = root / "etc/virt-rbd-backup/restic-password"
    password.write_text("secret")
    own = root / "opt/virt-rbd-backup/res/install"
    assert install(root, "--uninstall", script=own).returncode == 0
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"config.py", "restic-password"}
    assert install(root, "--uninstall", "--purge").returncode == 0
    assert [path for path in root.rglob("*") if path.is_file()] == [password]


def test_purging_spares_the_configuration_of_rclone_and_nothing_else_of_the_state(root: Path) -> None:
    state = root / "var/lib/virt-rbd-backup"
    (state / "reports").mkdir(parents=True)
    for name in ("reports/one.json", "proofs.json", "rclone.conf"):
        (state / name).write_text("content")
    done = install(root, "--uninstall", "--purge")
    assert f"{state}/rclone.conf stays" in done.stdout
    assert [path for path in root.rglob("*") if path.is_file()] == [state / "rclone.conf"]
    (state / "rclone.conf").unlink()
    assert install(root, "--uninstall", "--purge").returncode == 0
    assert not state.exists()


def test_purging_without_uninstalling_is_refused(root: Path) -> None:
    done = install(root, "--purge")
    assert (done.returncode, "--purge goes with --uninstall" in done.stderr) == (2, True)
