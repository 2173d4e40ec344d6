"""Secrets stay secret, above all where something fails."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from outputs.restic_repository.program import INHERITED
from tests.faults.provoke import HeldBackRestic, restic_script
from tests.integration.node import Node
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, MEDIA
from tests.quick_repository import PASSWORD

ACCESS_KEY = "fake/access+key/of/the/back/end"
WRONG_KEY = "AQD" + base64.b64encode(b"not the key of anybody at all").decode()
SECRET_XML = """
<secret ephemeral='no' private='no'>
  <uuid>{uuid}</uuid>
  <usage type='ceph'><name>client.libvirt with a wrong key</name></usage>
</secret>"""


@pytest.fixture
def secrets(lab: Lab) -> Mapping[str, str]:
    """All that nobody may see, by what it is."""
    keyring = (lab.ceph_conf.parent / "ceph.client.libvirt.keyring").read_text()
    key = re.search(r"key = (\S+)", keyring)
    assert key
    return {
        "cephx key": key[1],
        "wrong cephx key": WRONG_KEY,
        "password": PASSWORD,
        "access key": ACCESS_KEY,
    }


@pytest.fixture
def wrong_key(lab: Lab) -> Iterator[str]:
    """A domain whose cephx key in libvirt is wrong, and that has an image which does not exist."""
    uuid = str(uuid4())
    with ExitStack() as stack:
        lab.virsh("secret-define", "/dev/stdin", stdin=SECRET_XML.format(uuid=uuid).encode())
        stack.callback(lab.virsh, "secret-undefine", uuid)
        lab.virsh("secret-set-value", uuid, WRONG_KEY)
        lab.define_domain("wrong-key", [RbdDisk("vda", "vms/no-such-image")])
        stack.callback(lab.undefine_domain, "wrong-key")
        xml = lab.virsh("dumpxml", "wrong-key").replace(str(lab.secret_uuid), uuid)
        lab.virsh("define", "/dev/stdin", stdin=xml.encode())
        yield "wrong-key"


def test_no_output_of_a_failing_run_contains_a_secret(
    node: Node, secrets: Mapping[str, str], wrong_key: str
) -> None:
    node.constants["RESTIC_ENVIRONMENT"] = {"AWS_SECRET_ACCESS_KEY": ACCESS_KEY}
    node.constants["CEPH_TIMEOUT"] = 6
    talkative = restic_script(node, f'case "$*" in *--host={MEDIA}*) env >&2; exit 1;; esac')
    debug = ("--log-level", "debug")
    done = node.run("backup", wrong_key, ARCHIVE, MEDIA, *debug, RESTIC_BINARY=talkative)
    statuses = {name: domain["status"] for name, domain in node.report()["domains"].items()}
    assert statuses == {wrong_key: "failed", ARCHIVE: "saved", MEDIA: "failed"}
    told = {"backup": done.stdout + done.stderr, "report": node.report_file.read_text()}
    assert "AWS_SECRET_ACCESS_KEY=***" in told["report"], "restic's last lines, without the secret"
    assert f"{ARCHIVE}: starting env " in told["backup"], "commands are logged, without the secret"
    for words in (("check",), ("list", "--json"), ("cleanup",)):
        done = node.run(*words, *debug)
        told[words[0]] = done.stdout + done.stderr
    assert "the key of client.libvirt" in told["check"], "the hint names the key, without it"
    told["repository"] = node.restic("snapshots", "--json").decode()
    told["manifest"] = "".join(text.decode(errors="replace") for text in node.definition(ARCHIVE).values())
    found = [(what, where) for what, secret in secrets.items() for where in told if secret in told[where]]
    assert found == []


def test_no_process_has_a_secret_that_is_not_its_own(node: Node, secrets: Mapping[str, str]) -> None:
    node.constants["RESTIC_ENVIRONMENT"] = {"AWS_SECRET_ACCESS_KEY": ACCESS_KEY}
    node.environment = {"PASSWORD_OF_SOMETHING_ELSE": "not for restic"}
    restic = HeldBackRestic(node, "vda.img")
    with node.started("backup", ARCHIVE, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        children = node.processes("--stdin-filename=vda.img")
        lines = [_strings(pid, "cmdline") for pid in node.processes("")]
        environments = [_strings(pid, "environ") for pid in node.processes("virt-rbd-backup: ")]
        names = {line.partition("=")[0] for pid in children for line in _strings(pid, "environ")}
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in node.runtime_dir.rglob("*")}
        top = stat.S_IMODE(node.runtime_dir.stat().st_mode)
        restic.let_go()
        process.communicate(timeout=240)
    assert process.returncode == 0
    assert len(environments) >= 3, "main process, worker and watchdog"
    texts = [text for strings in (*lines, *environments) for text in strings]
    assert [what for what, secret in secrets.items() if any(secret in text for text in texts)] == []
    given = {"LANG", "TZ", "RESTIC_REPOSITORY", "RESTIC_PASSWORD_FILE", "AWS_SECRET_ACCESS_KEY"}
    shells_own = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert names <= {*INHERITED, *given, *shells_own}
    assert top == 0o700
    assert all(mode & 0o077 == 0 or path.name == "run.lock" for path, mode in modes.items()), modes


def _strings(pid: int, name: str) -> list[str]:
    try:
        content = Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return []
    return [os.fsdecode(text) for text in content.split(b"\0") if text]
