"""A node of libvirt's test driver on which main.py is run, as an admin runs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from .driver_node import domain_element, node_uri
from .repository import Repository
from .samples import OTHER_UUID, RUN, UUID

PYTHON = "/usr/bin/python3"  # the distribution's: rados and rbd exist for no other
MAIN = Path(__file__).parents[2] / "main.py"

WEB = domain_element(
    "web",
    UUID,
    "<disk type='network'><source protocol='rbd' name='vms/web-root'/><target dev='vda'/></disk>"
    "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>",
)
PLAIN = domain_element("plain", OTHER_UUID)


Done = subprocess.CompletedProcess[str]


class Node:
    """A node of libvirt's test driver with one RBD domain, whose cluster can't be reached."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = directory / "settings.py"
        self.repository = Repository(directory)
        self.runtime_dir = directory / "run"
        self.report_file = directory / "report.json"
        self.uri = node_uri(directory / "node.xml", WEB, PLAIN)
        self.constants: dict[str, Any] = {
            "LIBVIRT_URI": self.uri,
            "CEPH_CONF": f"{directory}/no.conf",
            "RESTIC_REPOSITORY": str(self.repository.path),
            "RESTIC_PASSWORD_FILE": str(self.repository.password_file),
            "RESTIC_OPTIONS": ["--no-cache"],
            "RUNTIME_DIR": str(self.runtime_dir),
            "REPORT_FILE": str(self.report_file),
            "STATE_DIR": str(directory / "state"),
        }

    def configure(self, **constants: Any) -> None:
        merged = {**self.constants, **constants}
        self.settings.write_text("".join(f"{name} = {value!r}\n" for name, value in merged.items()))
        self.settings.chmod(0o600)

    def run(self, *arguments: str, **constants: Any) -> Done:
        """Run main.py with these arguments, and constants changed, in a directory of its own."""
        self.configure(**constants)
        return self.start(arguments)

    def save_restore_point(self) -> None:
        """Have a restore point of web in the repository, made in RUN, with a definition alone."""
        tags = ("virt-rbd-backup", f"run={RUN}", f"uuid={UUID}", "consistency=offline", "definition")
        arguments = ["--host=web", *(f"--tag={tag}" for tag in tags)]
        with self.repository.program().backup(arguments, lambda: None) as backup:
            backup.sink.write(b"what it was")

    def run_each(self, *lines: str, **constants: Any) -> dict[str, Done]:
        """Run main.py with the arguments of each line, all at the same time."""
        self.configure(**constants)
        with ThreadPoolExecutor() as threads:
            return dict(zip(lines, threads.map(lambda line: self.start(line.split()), lines)))

    def start(
        self,
        arguments: Sequence[str],
        command: Sequence[str] = (PYTHON, str(MAIN)),
        stdout: int | IO[str] = subprocess.PIPE,
    ) -> Done:
        environment = {**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(self.settings)}
        return subprocess.run(
            [*command, *arguments],
            cwd=self.directory,
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=180,
            check=False,
        )
