"""The rules of the house: which way imports run, and what linters and types say."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backup import __version__
from backup.terminal.required_modules import MODULES

ROOT = Path(__file__).parents[1]

# What each part may import of the others.
ALLOWED = {"main": {"config", "outputs", "backup"}, "outputs": {"backup"}, "backup": set(), "config": set()}
# The floor of each room of backup/, of which a room imports those below and itself. "" is what lies
# in backup/ itself.
FLOORS = {
    "": 0,
    "system": 1,
    "hypervisor": 2,
    "ceph": 2,
    "restore_point": 2,
    "report": 2,
    "transfer": 3,
    "hooks": 3,
    "quiesce": 3,
    "job": 4,
    "restore": 4,
    "mount": 4,
    "files": 5,
    "instant": 5,
    "watch": 5,
    "orphaned": 5,
    "instant_restore": 6,
    "run": 6,
    "status": 6,
    "verify": 6,
    "terminal": 7,
}
# The rooms that alone may import what stands between us and the outside.
CHOKE_POINTS = {
    "libvirt": {"backup/hypervisor"},
    "libvirt_qemu": {"backup/hypervisor"},
    "rados": {"backup/ceph"},
    "rbd": {"backup/ceph"},
    "rich": {"backup/terminal/progress"},
    "setproctitle": {"backup/system"},
}
# ruff knows the syntax of Python 3.9, this what its library has; mypy knows no version that old
PYTHON_3_9_IS_ENOUGH = "vermin --no-tips --violations --target=3.9- main.py config.py backup outputs tests"


def test_imports_run_one_way() -> None:
    wrong = [
        f"{path} imports {module}"
        for path, module in _imports()
        if (part := module.split(".")[0]) in ALLOWED and part not in {_part(path), *ALLOWED[_part(path)]}
    ]
    assert wrong == []


def test_every_room_has_its_floor() -> None:
    rooms = {
        str(path.parent.relative_to(ROOT / "backup")) for path in (ROOT / "backup").glob("*/__init__.py")
    }
    assert rooms == {room for room in FLOORS if room}


def test_rooms_import_only_from_floors_below() -> None:
    wrong = [
        f"{path} imports {module}"
        for path, module in _imports()
        if path.startswith("backup/") and module.startswith("backup")
        if (here := _room(path.split("/")[1:-1])) != (there := _room(module.split(".")[1:]))
        if FLOORS[there] >= FLOORS[here]
    ]
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    for path, module in _imports():
        graph.setdefault(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."), set()).add(
            module
        )
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert graph == {}


@pytest.mark.parametrize("module", CHOKE_POINTS)
def test_the_outside_has_its_importers_and_no_others(module: str) -> None:
    importers = {str(Path(path).parent) for path, imported in _imports() if imported.split(".")[0] == module}
    assert importers == CHOKE_POINTS[module]


def test_one_module_starts_all_other_programs() -> None:
    importers = {path for path, imported in _imports() if imported == "subprocess"}
    assert importers == {"backup/system/started_program.py"}


def test_no_code_runs_in_a_copy_of_a_process_with_threads() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in _sources()
        for node in ast.walk(tree)
        if (isinstance(node, ast.keyword) and node.arg == "preexec_fn")
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "os.fork")
    ]
    assert [one.split(":")[0] for one in wrong] == ["backup/watch/watchdog.py"]  # it has no threads yet


def test_the_engine_neither_prints_nor_exits() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in _sources()
        for node in ast.walk(tree)
        if path != "main.py"
        and isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.exit", "exit")
    ]
    assert wrong == []


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", PYTHON_3_9_IS_ENOUGH])
def test_linters_and_types_have_nothing_to_say(command: str) -> None:
    program, *arguments = command.split()
    path = Path(sys.executable).with_name(program)
    done = subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_units_are_sound(tmp_path: Path) -> None:
    for unit in (ROOT / "res").glob("*.service"):  # the program is not where an admin will have put it
        here = unit.read_text().replace("/opt/virt-rbd-backup", str(ROOT))
        (tmp_path / unit.name).write_text(here)
    for unit in (ROOT / "res").glob("*.timer"):
        (tmp_path / unit.name).write_text(unit.read_text())
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 11
    assert _verified(units) == ""
    drop_in = tmp_path / "virt-rbd-backup.service.d"
    drop_in.mkdir()
    (drop_in / "incremental.conf").write_text((ROOT / "res/restic-incremental.conf").read_text())
    assert _verified(units) == ""


@pytest.mark.parametrize("drop_in", ["", "restic-incremental.conf", "unprivileged.conf"])
def test_the_service_is_locked_in(tmp_path: Path, drop_in: str) -> None:
    service = str(shutil.copy(ROOT / "res/virt-rbd-backup.service", tmp_path))
    if drop_in:
        (tmp_path / "virt-rbd-backup.service.d").mkdir()
        shutil.copy(ROOT / "res" / drop_in, tmp_path / "virt-rbd-backup.service.d")
    assert _exposure(service) <= 3.0


@pytest.mark.parametrize("kind", ["-drill", "-thaw", "@", "-drill@"])
def test_the_other_services_are_locked_in(kind: str) -> None:
    assert _exposure(str(ROOT / f"res/virt-rbd-backup{kind}.service")) <= 3.0


@pytest.mark.parametrize("unit", ["{}.service", "{}.timer", "{}-drill.service", "{}-drill.timer"])
def test_the_units_of_a_group_differ_in_the_group_alone(unit: str) -> None:
    alone = (ROOT / "res" / unit.format("virt-rbd-backup")).read_text().splitlines()
    name, suffix = unit.format("virt-rbd-backup").split(".")
    of_group = (ROOT / f"res/{name}@.{suffix}").read_text().splitlines()
    set_in_both = [re.sub(r" \(group %i\)| --group %i", "", line) for line in _set(of_group)]
    in_group_alone = ("/groups.md", "Slice=system.slice")
    assert [line for line in set_in_both if not line.endswith(in_group_alone)] == _set(alone)
    assert [line for line in of_group if "main.py" in line and "--group %i" not in line] == []


@pytest.mark.parametrize("kind", ["", "-drill"])
def test_the_weights_of_a_group_s_service_count_against_those_of_guests(kind: str) -> None:
    """An instance's default slice is one of its template alone, with the weight of any other unit."""
    of_group = (ROOT / f"res/virt-rbd-backup{kind}@.service").read_text().splitlines()
    assert {"CPUWeight=20", "IOWeight=20", "Slice=system.slice"} <= {*of_group}


@pytest.mark.parametrize("kind", ["", "-drill", "-copy", "@", "-drill@", "-copy@"])
def test_where_memory_runs_out_one_process_of_a_service_is_killed_and_no_guest(kind: str) -> None:
    """By default systemd ends the whole service then, and the kernel prefers the largest process."""
    lines = (ROOT / f"res/virt-rbd-backup{kind}.service").read_text().splitlines()
    assert {"OOMPolicy=continue", "OOMScoreAdjust=500"} <= {*lines}


def _set(lines: Sequence[str]) -> Sequence[str]:
    return [line for line in lines if line and not line.startswith("#")]


def _exposure(service: str) -> float:
    """Give systemd's own mark, from 0 (good) to 10."""
    command = ["systemd-analyze", "security", "--offline=yes", service]
    told = subprocess.run(command, capture_output=True, text=True).stdout
    return float(told.split("Overall exposure level for ")[1].split()[1])


def test_the_package_has_the_version_of_the_program() -> None:
    assert (ROOT / "debian/changelog").read_text().split()[1] == f"({__version__})"


def test_the_package_depends_on_the_modules_that_the_program_asks_for() -> None:
    depends = (ROOT / "debian/control").read_text().split("\nDepends:")[1].split(":Depends}")[0]
    assert [package for package in MODULES.values() if package not in depends] == []


def _verified(units: Sequence[str]) -> str:
    command = ["systemd-analyze", "verify", "--man=no", *units]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def _part(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for part in ALLOWED:
        paths = (
            [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").exists() else sorted((ROOT / part).rglob("*.py"))
        )
        for path in paths:
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _room(names: Sequence[str]) -> str:
    return names[0] if names and names[0] in FLOORS else ""


def _imports() -> Iterator[tuple[str, str]]:
    """Yield (path, module) for each import, relative ones and those under TYPE_CHECKING too."""
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name
            elif isinstance(node, ast.ImportFrom):
                package = path.split("/")[: -node.level] if node.level else []
                module = ".".join([*package, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield path, _module(f"{module}.{alias.name}") or module


def _module(name: str) -> str:
    """Give the name if it is a module of ours, else ""."""
    path = ROOT / name.replace(".", "/")
    return name if path.is_dir() or path.with_suffix(".py").exists() else ""
