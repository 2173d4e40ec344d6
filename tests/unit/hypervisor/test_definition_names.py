"""backup/hypervisor/definition_names.py: the names that libvirt's own files have."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.hypervisor import definition_names


def test_names_are_those_of_the_files_of_a_local_libvirt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition_names, "DIRECTORY", str(tmp_path))
    (tmp_path / "networks").mkdir()
    for name in ("web 1.xml", "a.b.xml", "notes"):
        (tmp_path / name).touch()
    names = definition_names.definition_names(["qemu+ssh://other/system", "qemu:///system"])
    assert sorted(names) == ["a.b", "web 1"]
    assert definition_names.definition_names(["qemu+ssh://other/system"]) == ()


def test_without_libvirt_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition_names, "DIRECTORY", str(tmp_path / "none"))
    assert definition_names.definition_names(["qemu:///system"]) == ()
