"""A Ceph cluster of one monitor and one OSD on loopback, all of it in one directory."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.lab.daemon import Daemon
from tests.lab.errors import LabError
from tests.lab.programs import run_program, wait_until

ADDRESS = "127.0.0.1"
MESSENGER_V2_PORT = 3300
MESSENGER_V1_PORT = 6789
POOLS = ("vms", "ssd")
# Seconds. 0.8 of it is how long placement groups stay readable without a sign of their OSD: a test that
# stops the OSD for longer can leave some that wait for ever (seen with Ceph 16.2). Nothing waits for it here:
# an OSD that was killed and started again is back after 10 to 15 s with 75 and with 600.
HEARTBEAT_GRACE = 600
# Seconds until a killed client's watch of an image is forgotten; clients give a sign of life every 5.
WATCH_TIMEOUT = 12
USER = "libvirt"
PLACEMENT_GROUPS = 8

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = {monitor}
ms bind ipv4 = {ipv4}
ms bind ipv6 = {ipv6}
auth cluster required = {auth}
auth service required = {auth}
run dir = {directory}
crash dir = {directory}
keyring = {directory}/$cluster.$name.keyring
osd crush chooseleaf type = 0
osd heartbeat grace = {grace}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true

[mon]
mon data = {directory}/monitor
mon cluster log file = {directory}/cluster.log
keyring = {directory}/monitor/keyring
log to file = false
log to stderr = true
admin socket = {directory}/$name.asok

[osd]
public addr = {address}
cluster addr = {address}
osd data = {directory}/osd
keyring = {directory}/osd/keyring
log to file = false
log to stderr = true
admin socket = {directory}/$name.asok
osd memory target = 1073741824
osd client watch timeout = {watch_timeout}
bluestore block create = true
bluestore block size = 21474836480
"""


@dataclass(frozen=True)
class Cluster:
    """`address` is one of loopback; with `auth` "none", anybody may do anything."""

    directory: Path
    address: str = ADDRESS
    v2_port: int = MESSENGER_V2_PORT
    v1_port: int = MESSENGER_V1_PORT
    auth: str = "cephx"

    @property
    def conf(self) -> Path:
        return self.directory / "ceph.conf"

    @property
    def key_file(self) -> Path:
        """The key of client.libvirt, in base64."""
        return self.directory / f"client.{USER}.key"

    @property
    def monitor(self) -> Daemon:
        return self._daemon("ceph-mon", "a")

    @property
    def osd(self) -> Daemon:
        return self._daemon("ceph-osd", "0")

    def up(self) -> None:
        self.directory.mkdir()
        self.conf.write_text(
            CONFIGURATION.format(
                fsid=uuid4(),
                monitor=self._monitor_addresses,
                address=self.address,
                ipv4=":" not in self.address,
                ipv6=":" in self.address,
                auth=self.auth,
                grace=HEARTBEAT_GRACE,
                watch_timeout=WATCH_TIMEOUT,
                directory=self.directory,
            )
        )
        self._start_monitor()
        self._start_osd()
        for pool in POOLS:
            self.ceph("osd", "pool", "create", pool, str(PLACEMENT_GROUPS))
            self.ceph("osd", "pool", "application", "enable", pool, "rbd")
        for pool in POOLS:
            self.rbd("ls", "--pool", pool)

    def down(self) -> None:
        self.osd.end()
        self.monitor.end()

    def ceph(self, *arguments: str, stdin: bytes = b"") -> str:
        patience = ("--connect-timeout", "100")
        return run_program("ceph", "--conf", self.conf, *patience, *arguments, stdin=stdin).decode()

    def rbd(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        return run_program("rbd", "--conf", self.conf, *arguments, stdin=stdin or b"")

    def refuse_taken_ports(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        for port in (self.v2_port, self.v1_port):
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.address, port))
                except OSError as error:
                    hint = f"end what listens there: ss --listening --tcp --processes 'sport = {port}'"
                    raise LabError(f"port {port} on {self.address} is taken", hint) from error

    @property
    def _monitor_addresses(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"[v2:{host}:{self.v2_port},v1:{host}:{self.v1_port}]"

    def _daemon(self, program: str, identity: str) -> Daemon:
        return Daemon(
            command=(program, "--foreground", "--id", identity, "--conf", str(self.conf)),
            pid_file=self.directory / f"{program}.pid",
            log_file=self.directory / f"{program}.log",
        )

    def _start_monitor(self) -> None:
        admin = _keyring_entry("client.admin", new_key(), mon="allow *", osd="allow *", mgr="allow *")
        user_key = new_key()
        pools = ", ".join(f"profile rbd pool={pool}" for pool in POOLS)
        user = _keyring_entry(f"client.{USER}", user_key, mon="profile rbd", osd=pools)
        self.key_file.write_text(user_key)
        (self.directory / "ceph.client.admin.keyring").write_text(admin)
        (self.directory / f"ceph.client.{USER}.keyring").write_text(user)
        first_keyring = self.directory / "first.keyring"
        first_keyring.write_text(_keyring_entry("mon.", new_key(), mon="allow *") + admin + user)
        monmap = self.directory / "monmap"
        monitors = ("--addv", "a", self._monitor_addresses)
        run_program("monmaptool", "--create", "--conf", self.conf, *monitors, monmap)
        content = ("--monmap", str(monmap), "--keyring", str(first_keyring))
        run_program("ceph-mon", "--mkfs", "--id", "a", "--conf", self.conf, *content)
        self.monitor.start()

    def _start_osd(self) -> None:
        uuid, key = str(uuid4()), new_key()
        secret = json.dumps({"cephx_secret": key}).encode()
        self.ceph("osd", "new", uuid, "0", "--in-file", "-", stdin=secret)
        (self.directory / "osd").mkdir()
        (self.directory / "osd" / "keyring").write_text(_keyring_entry("osd.0", key))
        run_program("ceph-osd", "--mkfs", "--id", "0", "--conf", self.conf, "--osd-uuid", uuid)
        self.osd.start()
        wait_until(self._osd_is_up, 240, "the OSD is up", self.osd.log_file)

    def _osd_is_up(self) -> bool:
        return bool(json.loads(self.ceph("osd", "stat", "--format", "json"))["num_up_osds"])


def new_key() -> str:
    """A cephx key of the installed Ceph's kind: new clusters of Ceph 20.2.4 refuse what all had before."""
    return run_program("ceph-authtool", "--gen-print-key").decode().strip()


def _keyring_entry(entity: str, key: str, **capabilities: str) -> str:
    lines = [f"[{entity}]", f"key = {key}"]
    lines += [f'caps {service} = "{allowed}"' for service, allowed in capabilities.items()]
    return "\n".join(lines) + "\n"
