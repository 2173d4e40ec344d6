"""backup/units.py, backup/errors.py and backup/model.py: small values that travel between processes."""

from __future__ import annotations

import pickle

import pytest

from backup.errors import AlreadyRunning, BackupError, ConfigError, DomainGone, FreezeFailed, Interrupted
from backup.hypervisor import HypervisorError
from backup.model import Image
from backup.units import size_text
from outputs.restic_process import ResticError


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
    "error",
    [
        BackupError("what", "how"),
        ConfigError([BackupError("one", "first"), BackupError("two")]),
        AlreadyRunning("what"),
        DomainGone("what"),
        FreezeFailed("what", "how"),
        Interrupted("what", 15),
        HypervisorError("what", "how", 86),
        ResticError("what", "how", 11),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_arrives_whole_at_another_process(error: BackupError) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert (arrived.message, arrived.hint, str(arrived)) == (error.message, error.hint, str(error))


def test_an_image_is_shown_with_its_pool_and_its_namespace_if_it_has_one() -> None:
    assert str(Image("vms", "root")) == "vms/root"
    assert str(Image("vms", "root", "tenant")) == "vms/tenant/root"
