"""backup/ceph/image_limits.py: limits that still slow down a backup."""

from __future__ import annotations

from typing import Any

import rbd

from backup.ceph.image_limits import BURST, LIMITS, limits_in_effect

IMAGE, POOL, CONFIG = (
    rbd.RBD_CONFIG_SOURCE_IMAGE,
    rbd.RBD_CONFIG_SOURCE_POOL,
    rbd.RBD_CONFIG_SOURCE_CONFIG,
)


class PaperConfigured:
    """A fake rbd.Image with options of its own or of its pool."""

    def __init__(self, **own: tuple[str, int]) -> None:
        self._options = {
            **{f"{name}_limit": ("0", CONFIG) for name in LIMITS},
            **{f"{name}_burst": (str(BURST), CONFIG) for name in LIMITS},
            **own,
        }

    def config_list(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "value": value, "source": source}
            for name, (value, source) in self._options.items()
        ]


def test_a_limit_without_a_burst_of_its_own_is_ineffective() -> None:
    assert limits_in_effect(PaperConfigured(rbd_qos_bps_limit=("1048576", IMAGE)), "read") == ""


def test_a_limit_with_a_burst_of_its_own_is_named_with_its_place() -> None:
    limited = PaperConfigured(rbd_qos_iops_limit=("100", POOL), rbd_qos_iops_burst=("0", POOL))
    assert limits_in_effect(limited, "read") == "rbd_qos_iops_limit = 100 of the pool"


def test_a_limit_that_was_set_with_a_suffix_is_named_as_it_was_set() -> None:
    limited = PaperConfigured(rbd_qos_bps_limit=("50M", IMAGE), rbd_qos_bps_burst=("50M", IMAGE))
    assert limits_in_effect(limited, "read") == "rbd_qos_bps_limit = 50M of the image"


def test_a_limit_of_writes_does_not_slow_down_reads() -> None:
    limited = PaperConfigured(rbd_qos_write_bps_limit=("9", IMAGE), rbd_qos_write_bps_burst=("9", IMAGE))
    assert limits_in_effect(limited, "read") == ""
    assert limits_in_effect(limited, "write") == "rbd_qos_write_bps_limit = 9 of the image"


def test_no_limit_is_in_effect_where_reads_and_writes_are_excluded_from_them() -> None:
    limited = PaperConfigured(
        rbd_qos_bps_limit=("9", IMAGE),
        rbd_qos_bps_burst=("9", IMAGE),
        rbd_qos_exclude_ops=("read,write", CONFIG),
    )
    assert limits_in_effect(limited, "read") == ""
