"""Limits of an image or its pool (rbd_qos_*), which are meant for guests and hold for every client."""

from __future__ import annotations

from typing import Any

import rbd

# A limit of an image or pool wins over this connection's configuration, but it is an average: up to the
# burst, for burst_seconds, a client may be faster, and nobody sets these without need. So ours make a limit
# ineffective (common/TokenBucketThrottle.cc: capacity = burst * burst_seconds, full at the beginning).
BURST = 1 << 40  # bytes, or operations, per second
BURST_SECONDS = 1 << 20
LIMITS = tuple(
    f"rbd_qos_{kind}" for kind in ("iops", "bps", "read_iops", "read_bps", "write_iops", "write_bps")
)
NO_LIMITS = {
    **{f"{name}_burst": BURST for name in LIMITS},
    **{f"{name}_burst_seconds": BURST_SECONDS for name in LIMITS},
}

# Ceph 17 and newer: operations that no limit applies to.
EXCLUDE_OPTION, EXCLUDED = "rbd_qos_exclude_ops", "read+write"


def limits_in_effect(opened: Any, direction: str) -> str:
    """Return the limits that still slow down an open image, as a text; "" if there are none.

    Those are limits with a burst of their own. `direction` is "read" or "write".
    """
    options = {one["name"]: one for one in opened.config_list()}
    if options.get(EXCLUDE_OPTION, {}).get("value", "") not in ("", "0"):
        return ""
    names = [name for name in LIMITS if name.split("_")[2] in ("iops", "bps", direction)]
    found = []
    for name in names:
        limit, burst = options[f"{name}_limit"], options[f"{name}_burst"]
        own_burst = burst["source"] != rbd.RBD_CONFIG_SOURCE_CONFIG
        if limit["value"] not in ("", "0") and own_burst:  # librbd stores it as it was set, such as 50M
            place = "pool" if limit["source"] == rbd.RBD_CONFIG_SOURCE_POOL else "image"
            found.append(f"{name}_limit = {limit['value']} of the {place}")
    return ", ".join(found)
