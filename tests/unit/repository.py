"""A restic repository for one test, quickly made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outputs.restic_repository.program import Program
from tests.quick_repository import PASSWORD, make_repository


class Repository:
    """An empty repository in a directory, with its password file beside it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "repository"
        self.runtime_dir = directory / "run"
        self.state_dir = directory / "state"
        self.password_file = directory / "password"
        if not self.path.exists():
            make_repository(self.path)
            self.password_file.write_text(PASSWORD)
            self.password_file.chmod(0o600)

    def program(
        self,
        binary: str = "restic",
        repository: str = "",
        environment: Mapping[str, str] | None = None,
        stall_timeout: float = 60,
    ) -> Program:
        return Program(
            binary=binary,
            repository=repository or str(self.path),
            password_file=str(self.password_file),
            environment=environment or {},
            options=("--no-cache",),
            stall_timeout=stall_timeout,
            runtime_dir=str(self.runtime_dir),
            state_dir=str(self.state_dir),
        )

    def restic(self, *arguments: str) -> bytes:
        """Run restic by hand, as an admin would."""
        environment = {
            **os.environ,
            "RESTIC_REPOSITORY": str(self.path),
            "RESTIC_PASSWORD_FILE": str(self.password_file),
        }
        command = ["restic", "--no-cache", "--no-lock", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """Return the snapshots by their only file's name and their host: "vda.img of web"."""
        listed = json.loads(self.restic("snapshots", "--json")) or []
        return {f"{Path(one['paths'][0]).name} of {one['hostname']}": one for one in listed}

    def snapshot_count(self) -> int:
        return len(list((self.path / "snapshots").iterdir()))

    def locks(self) -> list[str]:
        """Name the locks; a file that restic had not yet given its final name is none."""
        names = [path.name for path in (self.path / "locks").iterdir()]
        return [name for name in names if "-tmp-" not in name]

    def records(self) -> list[str]:
        """Name the records of programs that were started, and not erased since."""
        return [path.name for path in self.runtime_dir.glob("restic/*")]

    def dump(self, restore_id: str, file_name: str) -> bytes:
        """Read a file back."""
        return self.restic("dump", restore_id, file_name)
