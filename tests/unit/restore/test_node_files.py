"""backup/restore/node_files.py: NVRAM, TPM state and boot files, written to a node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.model import TPM_STATE, Level, NodeFile
from backup.restore import node_files
from backup.restore.node_files import NodeFiles
from backup.restore.system_directories import in_system

from ..raising import raises
from ..recorder import Recorder
from ..samples import URI, UUID


class Files:
    """A TPM's state and a kernel, neither of which this node has."""

    def __init__(self, directory: Path) -> None:
        self.recorder = Recorder()
        self.tpm, self.kernel = directory / "swtpm/uuid/tpm2/tpm2-00.permall", directory / "boot/vmlinuz"
        own = NodeFile(TPM_STATE, str(self.tpm), b"state")
        shared = NodeFile("kernel", str(self.kernel), b"kernel", 0o644, "nobody-of-that-name:root")
        self.used: set[str] = set()
        self.state_dir = directory.with_name(f"{directory.name}-state")
        context = (self.recorder, "web", URI, str(self.state_dir), lambda: self.used)
        self.files = NodeFiles([own], [shared], *context)

    def records(self) -> list[Path]:
        return list(self.state_dir.glob("written/*"))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_own_files_are_there_once_the_domain_is_defined(files: Files) -> None:
    files.files.require_writable(True)
    files.files.require_free()
    with files.files.replaced():
        assert not files.tpm.exists()
    assert [path.name for path in files.tpm.parent.iterdir()] == ["tpm2-00.permall"]
    assert (files.tpm.read_bytes(), files.tpm.parent.stat().st_mode & 0o777) == (b"state", 0o700)
    with raises(f"the TPM state {files.tpm} exists"):
        files.files.require_free()


def test_a_definition_that_fails_leaves_no_directory_that_libvirt_would_take_for_a_state(
    files: Files, tmp_path: Path
) -> None:
    with raises("refused"), files.files.replaced():
        raise BackupError("refused")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_temporary_files(files: Files, tmp_path: Path) -> None:
    with files.files.written(UUID):
        assert (files.tpm.read_bytes(), files.kernel.read_bytes()) == (b"state", b"kernel")
        (files.tpm.parent / ".lock").touch()  # by swtpm
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_added_and_others_stay_as_they_are(files: Files) -> None:
    files.files.add_missing()
    assert (files.kernel.read_bytes(), files.kernel.stat().st_mode & 0o777) == (b"kernel", 0o644)
    text = f"restored the kernel {files.kernel}, which was missing on this node"
    assert files.recorder.told(Level.INFO) == [text]
    files.files.add_missing()
    assert files.recorder.told(Level.WARNING) == []
    files.kernel.write_bytes(b"other!")
    files.files.add_missing()
    text = f"the kernel {files.kernel} on this node is not the saved one; it stays as it is"
    assert (files.recorder.told(Level.WARNING), files.kernel.read_bytes()) == ([text], b"other!")


def test_a_missing_file_that_cannot_be_written_is_a_warning(files: Files) -> None:
    files.kernel.parent.touch()
    files.files.add_missing()
    (text,) = files.recorder.told(Level.WARNING)
    assert text.startswith(f"cannot write the kernel {files.kernel}: ")


def test_own_files_of_another_node_cannot_be_written(files: Files) -> None:
    with raises(f"cannot write the TPM state {files.tpm} on another node ({URI})"):
        files.files.require_writable(False)


def test_nothing_is_written_through_a_link_that_is_in_the_way(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_files, "_draft", lambda file: f"{file.path}.draft")
    precious = tmp_path / "passwd"
    precious.write_text("root")
    files.tpm.parent.mkdir(parents=True)
    files.tpm.with_name(f"{files.tpm.name}.draft").symlink_to(precious)
    files.kernel.parent.mkdir()
    files.kernel.symlink_to(tmp_path / "nowhere")
    with files.files.replaced():
        pass
    files.files.add_missing()
    (text,) = files.recorder.told(Level.WARNING)
    assert text.startswith(f"cannot write the kernel {files.kernel}: file exists")
    assert (precious.read_text(), files.tpm.read_bytes()) == ("root", b"state")
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in files.kernel.parent.iterdir()] == ["vmlinuz"], "no draft is left"


PLACES = [
    "/etc/cron.d",
    "/etc",
    "/var/lib/../spool/cron/crontabs",
    "{root}/missing/../link",
    "{root}-state/written",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_file_of_a_restore_point_is_written_to_a_directory_of_the_system(
    place: str, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("/etc")
    path = f"{place.format(root=tmp_path)}/shadow-of-a-stranger"
    own, shared = replace(files.files.own[0], path=path), replace(files.files.shared[0], path=path)
    with raises(f"a restore does not write the TPM state {path} to a directory of the system"):
        replace(files.files, own=[own]).require_writable(True)
    replace(files.files, shared=[shared]).add_missing()
    (text,) = files.recorder.told(Level.WARNING)
    assert text.startswith(f"a restore does not write the kernel {path} to a directory of the system (hint: ")
    assert not Path(path).exists()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "place",
    ["/lib/modules", "/root/.ssh", "/usr/bin", "/usr/share/polkit-1/rules.d", "/boot/grub"],
)
def test_a_directory_of_the_system_is_one_for_restores_too(place: str) -> None:
    assert in_system(f"{place}/file", "/var/lib/virt-rbd-backup", firmware=False)


@pytest.mark.parametrize(
    "place",
    [
        "/usr/share/OVMF",
        "/usr/share/qemu-efi-aarch64",
        "/usr/local/share/edk2/ovmf",
        "/var/lib/libvirt/qemu/nvram",
        "/boot",
        "/srv/etc",
        "/etcetera",
    ],
)
def test_where_guests_usually_have_their_files_they_are_written(place: str) -> None:
    assert not in_system(f"{place}/file", "/var/lib/virt-rbd-backup", firmware=False)


def test_what_somebody_else_put_beside_temporary_files_stays(files: Files) -> None:
    other = files.kernel.with_name("of-somebody-else")
    with files.files.written(UUID):
        other.touch()
        files.used.add(str(files.kernel))  # a domain was defined meanwhile that boots from it
    assert (other.exists(), files.kernel.exists(), files.tpm.exists()) == (True, True, False)
    assert files.records() == []


def test_a_file_that_a_domain_lacked_already_is_missing_again(files: Files) -> None:
    files.used.add(str(files.kernel))
    with files.files.written(UUID):
        assert files.kernel.exists()
    assert not files.kernel.exists()


def test_a_shared_file_that_was_replaced_meanwhile_stays(files: Files) -> None:
    with files.files.written(UUID):
        files.kernel.unlink()
        files.kernel.write_bytes(b"kernel")  # as a package does
    assert files.kernel.exists()


def test_a_replaced_state_of_a_tpm_is_replaced_as_a_whole(files: Files) -> None:
    files.tpm.parent.mkdir(parents=True)
    files.tpm.write_bytes(b"old")
    old = files.tpm.with_name("tpm2-00.volatilestate")
    old.touch()
    other = files.tpm.with_name("of-somebody-else")
    other.touch()
    with files.files.replaced():
        assert (files.tpm.read_bytes(), old.exists()) == (b"old", True)
    assert (files.tpm.read_bytes(), old.exists(), other.exists()) == (b"state", False, True)


def test_no_mode_of_a_restored_file_gives_more_than_access(files: Files) -> None:
    saved = replace(files.files.shared[0], mode=0o4755)
    replace(files.files, shared=[saved]).add_missing()
    assert files.kernel.stat().st_mode & 0o7777 == 0o755
