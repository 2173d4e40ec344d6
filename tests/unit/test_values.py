"""backup/text.py, errors.py and model.py: small values, and errors that are sent between processes."""

from __future__ import annotations

import pickle

import pytest

from backup.errors import (
    AlreadyRunning,
    BackupError,
    ConfigError,
    DomainGone,
    FreezeFailed,
    Interrupted,
    Skipped,
)
from backup.hypervisor.errors import HypervisorError
from backup.model import Image, State, image_named
from backup.text import duration_text, size_text
from outputs.restic_repository.messages import ResticError


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (4.2 * 2**30, "4.2 GiB"),
        (5 * 2**40, "5.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_a_size_is_shown_with_a_binary_unit(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.316, "0.32 s"),
        (9.999, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (26 * 3600 + 65, "26 h 01 min"),
    ],
)
def test_a_duration_is_shown_with_suitable_precision(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    "error",
    [
        BackupError("what", "how"),
        ConfigError([BackupError("one", "first"), BackupError("two")]),
        AlreadyRunning("what"),
        DomainGone("what"),
        Skipped("what"),
        FreezeFailed("what", "how"),
        Interrupted("what", 15),
        HypervisorError("what", "how", 86),
        ResticError("what", "how", True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_pickling_to_another_process(error: BackupError) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert (arrived.message, arrived.hint, str(arrived)) == (error.message, error.hint, str(error))


def test_an_image_is_shown_with_its_pool_and_namespace() -> None:
    assert str(Image("vms", "root")) == "vms/root"
    assert str(Image("vms", "root", "tenant")) == "vms/tenant/root"


@pytest.mark.parametrize("image", [Image("vms", "root"), Image("vms", "root", "tenant")])
def test_the_text_of_an_image_can_be_parsed_again(image: Image) -> None:
    assert image_named(str(image)) == image


@pytest.mark.parametrize("text", ["", "root", "/root", "vms/", "vms//root", "/a/b", "a/b/", "a/b/c/d"])
def test_a_name_with_too_few_or_too_many_parts_is_not_an_image(text: str) -> None:
    assert image_named(text) is None


def test_an_image_equals_itself_with_and_without_its_id() -> None:
    assert Image("vms", "root", id="1f2e") == Image("vms", "root")
    assert str(Image("vms", "root", id="1f2e")) == "vms/root"


def test_a_domain_is_active_if_a_qemu_may_have_its_disks_open() -> None:
    assert {state for state in State if not state.active} == {State.SHUT_OFF, State.SAVED, State.ELSEWHERE}
