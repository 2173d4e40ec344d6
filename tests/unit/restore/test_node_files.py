"""backup/restore/node_files.py: NVRAM, TPM state and boot files, written to a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.model import TPM_STATE, Level, NodeFile
from backup.restore.node_files import NodeFiles

from ..raising import raises
from ..recorder import Recorder


class Files:
    """A TPM's state and a kernel, neither of which this node has."""

    def __init__(self, directory: Path) -> None:
        self.recorder = Recorder()
        self.tpm, self.kernel = directory / "swtpm/uuid/tpm2/state", directory / "boot/vmlinuz"
        own = NodeFile(TPM_STATE, str(self.tpm), b"state")
        shared = NodeFile("kernel", str(self.kernel), b"kernel", 0o644, "nobody-of-that-name:root")
        self.files = NodeFiles([own], [shared], self.recorder, "web")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_own_files_are_there_once_the_domain_is_defined(files: Files) -> None:
    files.files.require_writable(True, "")
    files.files.require_free()
    with files.files.replaced():
        assert not files.tpm.exists()
    assert [path.name for path in files.tpm.parent.iterdir()] == ["state"]
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
    with files.files.written():
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
    with raises(f"cannot write the TPM state {files.tpm} on another node (qemu+ssh://a/system)"):
        files.files.require_writable(False, "qemu+ssh://a/system")
