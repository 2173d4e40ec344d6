"""backup/hypervisor/nvram.py: a domain's NVRAM, without which its guest may not boot."""

from __future__ import annotations

import pytest

from backup.hypervisor.nvram import read_nvram
from backup.model import State

from ..raising import raises

PATH = "/nvram/web.fd"


def never_read(path: str) -> bytes:
    raise AssertionError(path)


def missing(path: str) -> bytes:
    raise FileNotFoundError(2, "No such file or directory")


def unreadable(path: str) -> bytes:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("state", State)
def test_a_domain_without_nvram_reads_none(state: State) -> None:
    assert read_nvram("", state, never_read) == b""


@pytest.mark.parametrize("state", State)
def test_the_file_s_content_is_returned_unchanged(state: State) -> None:
    assert read_nvram(PATH, state, lambda path: f"of {path}\0".encode()) == b"of /nvram/web.fd\0"


@pytest.mark.parametrize("state", [state for state in State if not state.active])
def test_a_missing_file_of_an_inactive_domain_is_no_error(state: State) -> None:
    assert read_nvram(PATH, state, missing) == b""


@pytest.mark.parametrize("state", [state for state in State if state.active])
def test_a_missing_file_of_an_active_domain_is_an_error(state: State) -> None:
    with raises(f"cannot read the domain's NVRAM {PATH}: no such file or directory") as caught:
        read_nvram(PATH, state, missing)
    assert caught.value.hint == "without it the restored guest would not boot"


@pytest.mark.parametrize("state", State)
def test_a_file_that_cannot_be_read_is_an_error_in_any_state(state: State) -> None:
    with raises(f"cannot read the domain's NVRAM {PATH}: permission denied"):
        read_nvram(PATH, state, unreadable)
