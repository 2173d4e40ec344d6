"""main.py on nodes that lack modules of libvirt, Ceph and others, or have broken ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from outputs.restic import Restic

from .jobs_on_paper import JobOnPaper
from .memory_snapshot import MemorySnapshot, MemorySource
from .program_node import MAIN, PYTHON, Done, Node
from .samples import MIB, domain, rbd_disk, restore_point

HYPERVISOR_AND_CLUSTER = ("libvirt", "libvirt_qemu", "rados", "rbd")
CONTENT = MemorySnapshot(3 * MIB + 512, {0: b"boot", 2 * MIB - 3: b"data" * 5000})
LOST_LIBRARY = "librados.so.2: cannot open shared object file: No such file or directory"


def hiding(node: Node, *modules: str) -> Sequence[str]:
    """Give the command that runs main.py where these modules are not installed."""
    lines = "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    (node.directory / "sitecustomize.py").write_text(f"import sys\n{lines}")
    return ("env", f"PYTHONPATH={node.directory}", PYTHON, str(MAIN))


def breaking(node: Node, module: str, code: str = f"raise ImportError({LOST_LIBRARY!r})") -> Sequence[str]:
    """Give the command that runs main.py where this module is there and its import runs this code."""
    directory = node.directory / f"broken-{module}"
    directory.mkdir(exist_ok=True)
    (directory / f"{module}.py").write_text(code)
    return ("env", f"PYTHONPATH={directory}", PYTHON, str(MAIN))


@pytest.fixture(scope="module")
def rescue(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node with a restore point in its repository, and the report of a run."""
    node = Node(tmp_path_factory.mktemp("node"))
    node.run("backup", EXCLUDE_IMAGES=["*"])
    sources = [MemorySource(CONTENT, rbd_disk("vda"))]
    point = restore_point(domain("web", disks=[source.disk for source in sources]))
    Restic(node.repository.program()).save(point, sources, JobOnPaper())
    node.configure()
    return node


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("restore-points", "web"),
        ("restore-points web --json", '"complete": true'),
        ("verify", "1 image"),
        ("verify web --sample 5%", "1 image"),
        ("restore web --to-file {directory}/vda.raw", "vda.raw"),
        ("restore web --disk vda --to-file {directory}/vda.qcow2", "vda.qcow2"),
        ("report", "run "),
        ("report --json", '"run"'),
        ("report --html -", "<html"),
    ],
)
def test_what_is_saved_can_be_verified_and_restored_without_libvirt_and_ceph(
    rescue: Node, line: str, printed: str
) -> None:
    command = hiding(rescue, *HYPERVISOR_AND_CLUSTER)
    done = rescue.start(line.format(directory=rescue.directory).split(), command=command)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert printed in done.stdout


def test_a_file_restored_without_libvirt_and_ceph_has_every_byte(rescue: Node) -> None:
    path = rescue.directory / "whole.raw"
    done = rescue.start(
        ("restore", "web", "--to-file", str(path)), command=hiding(rescue, *HYPERVISOR_AND_CLUSTER)
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == CONTENT.content


def test_verify_finds_damage_without_libvirt_and_ceph(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.configure()
    output, source = Restic(node.repository.program()), MemorySource(CONTENT, rbd_disk("vda"))
    point = restore_point(domain("web", disks=[source.disk]))
    image, _ = output._save_image(point, source, JobOnPaper())
    others = Checksums()
    others.add(0, b"BOOT")
    output.save_manifest(point, manifest.pack(point, [image], {"vda": others}), JobOnPaper())
    done = node.start(("verify",), command=hiding(node, *HYPERVISOR_AND_CLUSTER))
    assert (done.returncode, "differs from what was saved" in done.stderr) == (3, True)


NEEDED: Mapping[str, Sequence[str]] = {
    "list": ("libvirt", "rados", "rbd", "xxhash"),
    "mount web dir": ("xxhash",),
    "files web": ("xxhash",),
    "check": ("libvirt", "rados", "rbd", "xxhash"),
    "backup": ("libvirt", "rados", "rbd", "xxhash"),
    "cleanup": ("libvirt", "rados", "rbd", "xxhash"),
    "drill": ("libvirt", "rados", "rbd", "xxhash"),
    "restore web": ("rados", "rbd", "xxhash"),
    "restore web --define": ("libvirt", "rados", "rbd", "xxhash"),
    "restore web --to-file x": ("xxhash",),
    "restore-points": ("xxhash",),
    "verify": ("xxhash",),
    "report": (),
}


@pytest.mark.parametrize("line", NEEDED)
def test_a_command_names_the_modules_that_it_needs_and_no_others(rescue: Node, line: str) -> None:
    command = hiding(rescue, *HYPERVISOR_AND_CLUSTER, "xxhash")
    done = rescue.start(line.split(), command=command)
    if not NEEDED[line]:
        assert (done.returncode, done.stderr) == (0, "")
        return
    error, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert error == f"error: this interpreter ({PYTHON}) has no module {', '.join(NEEDED[line])}"
    assert hint.endswith("apt-get install " + " ".join(f"python3-{name}" for name in NEEDED[line]))


BROKEN: Mapping[str, Mapping[str, str]] = {
    "libvirt": dict.fromkeys(("list", "check", "backup", "cleanup", "drill", "restore web --define"), ""),
    "libvirt_qemu": dict.fromkeys(("list", "check", "backup", "cleanup"), ""),
    "rados": dict.fromkeys(("list", "check", "backup", "cleanup", "drill", "restore web"), ""),
    "rbd": dict.fromkeys(("list", "check", "backup", "cleanup", "drill", "restore web"), ""),
    "xxhash": dict.fromkeys(("list", "check", "backup", "verify", "restore web --to-file x"), ""),
    "pyfuse3": dict.fromkeys(
        ("check", "backup", "mount web dir", "files web"), 'OUTPUT = "restic_incremental"'
    ),
    "prometheus_client": dict.fromkeys(
        ("check", "backup", "verify", "drill"), 'METRICS_FILE = "/nowhere/x.prom"'
    ),
    "jinja2": {"report --html -": ""},
}
PACKAGES = {"libvirt_qemu": "python3-libvirt", "prometheus_client": "python3-prometheus-client"}


@pytest.mark.parametrize("module", BROKEN)
def test_a_module_that_cannot_be_imported_is_one_line_with_its_reason_and_a_hint(
    tmp_path: Path, module: str
) -> None:
    node = Node(tmp_path)
    command = breaking(node, module)
    node.configure()
    (constants,) = set(BROKEN[module].values())
    with node.settings.open("a") as file:
        file.write(f"{constants}\n")

    def run(line: str) -> Done:
        return node.start(line.split(), command=command)

    with ThreadPoolExecutor(2) as threads:
        ended = dict(zip(BROKEN[module], threads.map(run, BROKEN[module])))
    for line, done in ended.items():
        assert (done.returncode, done.stdout) == (1, ""), line
        error, hint = done.stderr.splitlines()
        broken = node.directory / f"broken-{module}" / f"{module}.py"
        assert error.startswith(
            f"error: this interpreter ({PYTHON}) cannot import module {module}: {LOST_LIBRARY} ({broken})"
        )
        package = PACKAGES.get(module, f"python3-{module}")
        assert hint.startswith(f"hint: apt-get install --reinstall {package}")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_part", "No module named 'no_such_part'"),
        ("raise AttributeError('rados has no\\nattribute x')", "rados has no\\nattribute x"),
        ("x = (", "'(' was never closed (rados.py, line 1)"),
        ("raise ValueError", "ValueError"),
    ],
)
def test_whatever_an_import_raises_is_a_reason(tmp_path: Path, code: str, reason: str) -> None:
    node = Node(tmp_path)
    node.configure()
    done = node.start(("list",), command=breaking(node, "rados", code))
    error, _ = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot import module rados: {reason}" in error


def test_the_directory_that_a_removed_package_leaves_is_not_its_module(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.configure()
    (tmp_path / "site/xxhash").mkdir(parents=True)
    hide = "import sys; sys.path[:] = [p for p in sys.path if 'dist-packages' not in p]"
    (tmp_path / "site/sitecustomize.py").write_text(hide)
    command = ("env", f"PYTHONPATH={tmp_path}/site", PYTHON, str(MAIN))
    done = node.start(("restore-points",), command=command)
    error, _ = done.stderr.splitlines()
    assert error.endswith(
        f"cannot import module xxhash: {tmp_path}/site/xxhash is a directory without its files"
    )


def test_missing_and_broken_modules_are_reported_together(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.configure()
    breaking(node, "rados")
    (node.directory / "broken-rados/sitecustomize.py").write_text("import sys; sys.modules['rbd'] = None")
    command = ("env", f"PYTHONPATH={node.directory}/broken-rados", PYTHON, str(MAIN))
    error, hint = node.start(("list",), command=command).stderr.splitlines()
    assert f"has no module rbd, and cannot import module rados: {LOST_LIBRARY}" in error
    assert "apt-get install python3-rbd; apt-get install --reinstall python3-rados" in hint


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("jinja2", "report --html"),
        ("prometheus_client", "METRICS_FILE"),
        ("pyfuse3", 'OUTPUT = "restic_incremental", mount, files'),
        ("rich", "progress on a terminal"),
        ("setproctitle", "process titles"),
    ],
)
def test_a_broken_module_that_nothing_needs_yet_is_found_by_check_alone(
    tmp_path: Path, module: str, use: str
) -> None:
    node = Node(tmp_path)
    node.configure()
    command = breaking(node, module)
    done = node.start(("check",), command=command)
    assert (done.returncode, done.stderr) == (1, "")
    assert (
        f"PROBLEM  module {module}, for {use}: cannot import module {module}: {LOST_LIBRARY}" in done.stdout
    )
    listed = node.start(("list",), command=command)
    assert (listed.returncode, listed.stderr) == (0, "")
