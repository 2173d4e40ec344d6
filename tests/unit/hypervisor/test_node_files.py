"""backup/hypervisor/node_files.py: files that a domain boots from or needs, and its TPM's state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.hypervisor import node_file, node_files, tpm_state
from backup.model import Definition, Disk, Gap, NodeFile, Override, State

from ..raising import raises
from ..samples import MIB, UUID, domain

QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
EVERYTHING = f"""
<domain {QEMU}>
  <sysinfo type='fwcfg'><entry name='opt/a' file='/srv/a.ign'/><entry name='opt/b'>text</entry></sysinfo>
  <os>
    <kernel>/srv/vmlinuz</kernel><initrd>/srv/initrd</initrd><dtb>/srv/board.dtb</dtb>
    <loader>/srv/fw.fd</loader><nvram template='/srv/vars.fd'>/srv/web.fd</nvram>
    <acpi><table type='slic'>/srv/slic.bin</table></acpi>
  </os>
  <devices><interface><rom file='/srv/nic.rom'/></interface><interface><rom bar='off'/></interface></devices>
  <qemu:commandline>
    <qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/c,file=/srv/c.ign'/>
    <qemu:arg value='-bios'/><qemu:arg value='/srv/bios.bin'/>
    <qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/d,string=/not/a/file'/>
    <qemu:arg value='-name'/><qemu:arg value='file=/not/needed'/>
  </qemu:commandline>
</domain>"""
TPM = "<domain><devices><tpm model='tpm-crb'>{}</tpm></devices></domain>"
EMULATOR = TPM.format("<backend type='emulator' version='2.0'/>")


def files_of(
    xml: str, limit: int = MIB, local: bool = True, **changes: object
) -> tuple[Definition, tuple[Disk, ...]]:
    found = replace(domain(), **changes)  # type: ignore[arg-type]
    return node_files.with_files(found, Definition(xml), limit, local)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"kernel")
    path.chmod(0o640)
    return path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the TPM of web, with what swtpm writes."""
    monkeypatch.setattr(tpm_state, "SWTPM", str(tmp_path))
    directory = tmp_path / UUID / "tpm2"
    directory.mkdir(parents=True)
    for name in ("tpm2-00.permall", ".lock", "TMP2-00.permall"):
        (directory / name).write_text(name)
    return directory


def test_all_files_that_a_domain_boots_from_or_needs_are_found() -> None:
    assert {(use, Path(path).name) for use, path in node_files.needed_files(EVERYTHING)} == {
        *(("kernel", "vmlinuz"), ("initrd", "initrd"), ("dtb", "board.dtb"), ("loader", "fw.fd")),
        *(("nvram-template", "vars.fd"), ("acpi-table", "slic.bin"), ("rom", "nic.rom")),
        *(("fw-cfg", "a.ign"), ("fw-cfg", "c.ign"), ("bios", "bios.bin")),
    }


def test_the_files_that_a_running_domain_has_now_and_at_its_next_start_are_found() -> None:
    xmls = [f"<domain><os><kernel>/boot/{name}</kernel></os></domain>" for name in ("now", "next")]
    assert node_files.needed_files(*xmls) == [("kernel", "/boot/now"), ("kernel", "/boot/next")]
    assert node_files.needed_files("", xmls[1]) == [("kernel", "/boot/next")]


def test_a_needed_file_is_read_with_its_mode(kernel: Path) -> None:
    definition, unsaved = files_of(f"<domain><os><kernel>{kernel}</kernel></os></domain>")
    (file,) = definition.files
    assert (file.use, file.path, file.content, file.mode) == ("kernel", str(kernel), b"kernel", 0o640)
    assert unsaved == ()


def test_a_file_that_cannot_be_saved_is_named_with_the_reason(kernel: Path) -> None:
    xml = (
        f"<domain><os><kernel>{kernel}</kernel><initrd>/no/initrd</initrd><dtb>/dev/null</dtb></os></domain>"
    )

    def reasons(unsaved: Sequence[Disk]) -> list[tuple[str, str]]:
        assert all(disk.gap is Gap.FOREIGN for disk in unsaved)
        return [(disk.target, disk.skipped) for disk in unsaved]

    others = [("initrd:/no/initrd", "no such file or directory"), ("dtb:/dev/null", "not a regular file")]
    large = "6 B, larger than 5 B (MAX_FILE_SIZE)"
    definition, unsaved = files_of(xml, limit=5)
    assert (definition.files, reasons(unsaved)) == ((), [(f"kernel:{kernel}", large), *others])
    excluded = Override(exclude=(f"kernel:{kernel}",))
    assert reasons(files_of(xml, override=excluded)[1]) == [(f"kernel:{kernel}", "excluded"), *others]
    assert {text for _, text in reasons(files_of(xml, local=False)[1])} == {"on another node"}


def test_a_file_of_a_package_is_not_missed_where_it_cannot_be_read() -> None:
    loader = "<domain><os><loader>/usr/share/OVMF/{}</loader></os></domain>"
    assert files_of(loader.format("CODE.fd"), local=False)[1] == ()
    (own,) = files_of(loader.format("../../local/fw.fd"), local=False)[1]
    assert own.skipped == "on another node"
    (missing,) = files_of(loader.format("not-installed.fd"))[1]
    assert missing.skipped == "no such file or directory"


def test_a_file_that_grows_while_it_is_read_is_not_saved_beyond_the_limit(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_file, "require_saveable", lambda *_: None)
    monkeypatch.setattr(node_files, "require_saveable", lambda *_: None)
    definition, (unsaved,) = files_of(f"<domain><os><kernel>{kernel}</kernel></os></domain>", limit=5)
    assert (definition.files, unsaved.skipped) == ((), "6 B, larger than 5 B (MAX_FILE_SIZE)")


def test_a_pipe_in_the_place_of_a_file_does_not_block(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.unlink()
    os.mkfifo(kernel)
    monkeypatch.setattr(node_files, "require_saveable", lambda *_: None)  # it was a file a moment ago
    (unsaved,) = files_of(f"<domain><os><kernel>{kernel}</kernel></os></domain>")[1]
    assert unsaved.skipped == "not a regular file"


def test_the_state_of_an_emulated_tpm_is_read(state: Path) -> None:
    definition, unsaved = files_of(EMULATOR)
    (file,) = definition.files
    assert (file.path, file.content) == (str(state / "tpm2-00.permall"), b"tpm2-00.permall")
    assert unsaved == ()
    (state / "tpm2-00.permall").write_text("changed")
    (file,) = tpm_state.with_current_tpm(definition, UUID)
    assert file.content == b"changed"


def test_a_tpm_that_cannot_be_saved_is_named_or_refused(state: Path) -> None:
    (tpm,) = files_of(EMULATOR, override=Override(exclude=("tpm",)))[1]
    assert (str(tpm), tpm.gap) == (f"tpm ({state})", Gap.FOREIGN)
    (tpm,) = files_of(EMULATOR, local=False)[1]
    assert tpm.skipped == "the state of the TPM, on another node"
    for name in (".lock", "TMP2-00.permall", "tpm2-00.permall"):
        (state / name).unlink()
    with raises(f"cannot read the state of the domain's TPM {state}: it is empty") as caught:
        files_of(EMULATOR)
    assert 'exclude="tpm"' in caught.value.hint
    state.rmdir()
    with pytest.raises(BackupError, match="no such file"):
        files_of(EMULATOR)
    assert files_of(EMULATOR, state=State.SHUT_OFF)[0].files == (), "it has never run"


@pytest.mark.parametrize(
    ("backend", "place"),
    [
        ("<backend type='emulator' version='1.2'/>", f"{tpm_state.SWTPM}/{UUID}/tpm1.2"),
        ("<backend type='emulator'><source type='file' path='/srv/tpm'/></backend>", "/srv/tpm"),
        ("<backend type='passthrough'><device path='/dev/tpm0'/></backend>", ""),
    ],
)
def test_the_place_of_a_tpm_s_state_is_known(backend: str, place: str) -> None:
    assert tpm_state.tpm_place(TPM.format(backend), UUID) == place


def test_nothing_but_the_tpm_s_own_files_is_read(state: Path) -> None:
    (state / "id_rsa").write_text("secret")
    (state / "tpm2-00.permall.virt-rbd-backup.restoring").write_text("draft")
    (state / "tpm2-00.volatilestate").write_text("too")
    names = [Path(file.path).name for file in files_of(EMULATOR)[0].files]
    assert names == ["tpm2-00.permall", "tpm2-00.volatilestate"]


def test_no_link_is_followed_that_swtpm_s_user_could_have_made(state: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of root")
    (state / "tpm2-00.permall").unlink()
    (state / "tpm2-00.permall").symlink_to(tmp_path / "secret")
    with pytest.raises(BackupError, match="symbolic links"):
        files_of(EMULATOR)


def test_a_file_that_is_no_state_of_a_tpm_is_not_read(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm_state, "LIMIT", 5)
    with raises(f"cannot read the state of the domain's TPM {state}/tpm2-00.permall: 15 B, larger than 5 B"):
        files_of(EMULATOR)


def test_a_state_that_swtpm_writes_in_place_is_read_until_it_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [b"old", b"half", b"new", b"new"]

    def read(use: str, path: str, *_: object) -> NodeFile:
        return NodeFile(use, path, contents.pop(0) if contents else os.urandom(8))

    monkeypatch.setattr(tpm_state, "read_file", read)
    (tmp_path / "tpm").touch()
    (file,) = tpm_state.read_tpm(str(tmp_path / "tpm"), True)
    assert (file.content, contents) == (b"new", [])
    with raises(f"cannot read the state of the domain's TPM {tmp_path}/tpm: it changes while it is read"):
        tpm_state.read_tpm(str(tmp_path / "tpm"), True)


def test_a_state_in_one_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "tpm").write_bytes(b"linear")
    xml = TPM.format(f"<backend type='emulator'><source type='file' path='{tmp_path}/tpm'/></backend>")
    (file,) = files_of(xml)[0].files
    assert isinstance(file, NodeFile)
    assert (file.path, file.content) == (f"{tmp_path}/tpm", b"linear")
