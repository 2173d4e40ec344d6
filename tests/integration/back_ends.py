"""Servers of restic's back ends, each with an empty repository: sshd, radosgw, a REST server, rclone."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.link import Link, link_to
from tests.integration.node import Node, wait_until
from tests.lab.programs import ENDS_WITH_US, ENVIRONMENT
from tests.quick_repository import PASSWORD, make_repository

SECRET = "a-secret-of-the-back-end"
KEY_ID = "AKIATESTS"
BUCKET = "backups"
POOL_WORDS = ("rgw", "default.rgw")  # at the beginning of a pool's name

SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""
SSH = """\
Host nas
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile {directory}/key
    UserKnownHostsFile {directory}/known_hosts
    StrictHostKeyChecking accept-new
"""
RCLONE = """\
[store]
type = webdav
url = http://127.0.0.1:{port}
vendor = other
user = {user}
pass = {password}
"""


@dataclass
class BackEnd:
    """A repository behind a server, which is reached over `link`: the constants that name it.

    `by_server` are restic's variables at the server itself, for what an admin does there.
    """

    constants: Mapping[str, Any]
    by_server: Mapping[str, str]
    link: Link
    secrets: Sequence[str] = ()

    def restic(self, *arguments: str) -> bytes:
        """Run restic at the server."""
        environment = {**ENVIRONMENT, "RESTIC_PASSWORD": PASSWORD, **self.by_server}
        command = ["restic", "--no-cache", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


MakeBackEnd = Callable[[Node, float], AbstractContextManager[BackEnd]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def served(command: Sequence[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    """Run a server, which listens at the port, during the block."""
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*ENDS_WITH_US, *command], env={**ENVIRONMENT, **environment}, stdout=output, stderr=output
        ) as server,
    ):
        try:
            wait_until(lambda: server.poll() is not None or _listens(port), 60, f"{command[0]} listens")
            assert server.poll() is None, log.read_text()
            yield
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(60)
            server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _repository(node: Node) -> Path:
    path = node.directory / "served"
    make_repository(path)
    return path


@contextmanager
def sftp(node: Node, delay: float) -> Iterator[BackEnd]:
    """Serve it by a real sshd, reached by ssh with a configuration as in ~/.ssh/config."""
    directory, port, path = node.directory, free_port(), _repository(node)
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True)
    configuration = directory / "sshd_config"
    configuration.write_text(SSHD.format(port=port, directory=directory))
    Path("/run/sshd").mkdir(exist_ok=True)
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(configuration)]
    with served(command, port, directory / "sshd.log"), link_to(port, delay) as link:
        client = directory / "ssh_config"
        client.write_text(SSH.format(port=link.port, directory=directory))
        options = [f"--option=sftp.command=ssh -F {client} nas -s sftp"]
        constants = {"RESTIC_REPOSITORY": f"sftp:nas:{path}", "RESTIC_OPTIONS": options}
        yield BackEnd(constants, {"RESTIC_REPOSITORY": str(path)}, link)


@contextmanager
def rest(node: Node, delay: float) -> Iterator[BackEnd]:
    """Serve it by rclone as a REST server, which lets nothing be removed (append-only)."""
    port, path = free_port(), _repository(node)
    command = ["rclone", "serve", "restic", f"--addr=127.0.0.1:{port}", "--append-only", f"--user={KEY_ID}"]
    log = node.directory / "rest.log"
    with (
        served([*command, str(path)], port, log, RCLONE_PASS=SECRET, RCLONE_CONFIG="/dev/null"),
        link_to(port, delay) as link,
    ):
        constants = {"RESTIC_REPOSITORY": f"rest:http://{KEY_ID}:{SECRET}@127.0.0.1:{link.port}/"}
        by_server = {"RESTIC_REPOSITORY": str(path)}
        yield BackEnd(constants, by_server, link, [SECRET])


@contextmanager
def rclone(node: Node, delay: float) -> Iterator[BackEnd]:
    """Have restic start rclone, which reaches the repository over WebDAV, for all that it can reach."""
    port, path = free_port(), _repository(node)
    command = ["rclone", "serve", "webdav", f"--addr=127.0.0.1:{port}", f"--user={KEY_ID}"]
    log = node.directory / "webdav.log"
    with (
        served([*command, str(path)], port, log, RCLONE_PASS=SECRET, RCLONE_CONFIG="/dev/null"),
        link_to(port, delay) as link,
    ):
        obscured = subprocess.run(
            ["rclone", "obscure", "-"], input=SECRET, capture_output=True, text=True, check=True
        ).stdout.strip()
        configuration = node.directory / "rclone.conf"
        configuration.write_text(RCLONE.format(port=link.port, user=KEY_ID, password=obscured))
        configuration.chmod(0o600)
        environment = {"RCLONE_CONFIG": str(configuration)}
        constants = {"RESTIC_REPOSITORY": "rclone:store:", "RESTIC_ENVIRONMENT": environment}
        yield BackEnd(constants, {"RESTIC_REPOSITORY": str(path)}, link, [SECRET, obscured])


@contextmanager
def s3(node: Node, delay: float) -> Iterator[BackEnd]:
    """Serve it by radosgw, whose pools are in the lab's cluster."""
    lab, port = node.lab, free_port()
    keyring = node.directory / "rgw.keyring"
    keyring.write_text(
        lab.ceph("auth", "get-or-create", "client.rgw.tests", "mon", "allow rw", "osd", "allow rwx")
    )
    common = ["--name=client.rgw.tests", f"--conf={lab.ceph_conf}", f"--keyring={keyring}"]
    frontend = f"--rgw-frontends=beast endpoint=127.0.0.1:{port}"
    log = node.directory / "radosgw.log"
    pools = {*json.loads(lab.ceph("osd", "pool", "ls", "--format=json"))}
    try:
        with (
            served(["radosgw", "-f", *common, frontend, f"--log-file={log}.own"], port, log),
            link_to(port, delay) as link,
        ):
            user = ["user", "create", "--uid=backup", "--display-name=backup"]
            keys = [f"--access-key={KEY_ID}", f"--secret-key={SECRET}"]
            subprocess.run(["radosgw-admin", *common, *user, *keys], check=True, capture_output=True)
            credentials = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
            by_server = {"RESTIC_REPOSITORY": f"s3:http://127.0.0.1:{port}/{BUCKET}", **credentials}
            constants = {
                "RESTIC_REPOSITORY": f"s3:http://127.0.0.1:{link.port}/{BUCKET}",
                "RESTIC_ENVIRONMENT": credentials,
            }
            back_end = BackEnd(constants, by_server, link, [SECRET])
            back_end.restic("init")
            yield back_end
    finally:
        lab.ceph("auth", "rm", "client.rgw.tests")
        lab.ceph("config", "set", "mon", "mon_allow_pool_delete", "true")
        for pool in {*json.loads(lab.ceph("osd", "pool", "ls", "--format=json"))} - pools:
            lab.ceph("osd", "pool", "delete", pool, pool, "--yes-i-really-really-mean-it")


BACK_ENDS: Mapping[str, MakeBackEnd] = {"sftp": sftp, "rest": rest, "rclone": rclone, "s3": s3}
