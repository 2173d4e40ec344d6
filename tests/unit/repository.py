"""A restic repository of one test's own, made in no time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outputs.restic_process import Program

PASSWORD = "correct horse battery staple"

# The two files of an empty repository. Its key is derived with scrypt's N = 2, which costs nothing;
# what `restic init` makes takes half a second for each call.
KEY = (
    '{"created":"2024-01-01T00:00:00Z","username":"tests","hostname":"tests","kdf":"scrypt",'
    '"N":2,"r":1,"p":1,"salt":"C3rKw4+Lh3bjdFbAgMUIQHR269ODGRLK3ta8N4yXZfGGmgoDfHzKW3CKFnsMgkCxRS//'
    'KREVkMLfxYMs0LhLLA==","data":"NFWajU2EP03g/gOuROLQsDVqWAxQFBhWf1wdMGf7AuIdHCO4VPRw8W1t0iVYirjk'
    "pTAoUHiOtBgi6Ax6IIJPBUfE6S7vWVjrivWKkrn0FBQye1aCXNUzzeN4pRcEIPDh/M2ipOCT3V5IyWfQra3IyoesgId9L15O"
    'DmeBdceXX5YDT8TQE4IjxAVMGAXVMHx/amZThsoW9ipB8+ebHBGYOw=="}'
)
CONFIG = (
    "gMcoXiHzSVazngi64fb8SsXkV42kG8UDufR9PmIoE0cZM+wAVh7mX1UQxi/3QhcouO7JcEY4jlStxEdZwjqvCXkoVm64ecto9R3p"
    "CrefEPjgiQGVk3tQWb5WBh51q5xVcuQtH8kftT9sqmqcJEbj5W2JyDY/Ekj9IpuxmgbcS9vtO+FE0U44wG4LOaEqbZ5lLOJyhMxI"
    "ErxiC74="
)


class Repository:
    """An empty repository in a directory, with its password file beside it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "repository"
        self.password_file = directory / "password"
        if not self.path.exists():
            for name in ("data", "index", "keys", "locks", "snapshots"):
                (self.path / name).mkdir(parents=True)
            (self.path / "config").write_bytes(base64.b64decode(CONFIG))
            (self.path / "keys" / hashlib.sha256(KEY.encode()).hexdigest()).write_text(KEY)
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
        )

    def restic(self, *arguments: str) -> bytes:
        """Run restic by hand, as an admin would."""
        environment = {
            **os.environ,
            "RESTIC_REPOSITORY": str(self.path),
            "RESTIC_PASSWORD_FILE": str(self.password_file),
        }
        command = ["restic", "--no-cache", "--no-lock", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """Give the snapshots by their only file's name and their host: "vda.img of web"."""
        listed = json.loads(self.restic("snapshots", "--json")) or []
        return {f"{Path(one['paths'][0]).name} of {one['hostname']}": one for one in listed}

    def snapshot_count(self) -> int:
        return len(list((self.path / "snapshots").iterdir()))

    def locks(self) -> list[str]:
        """Name the locks; a file that restic had not yet given its final name is none."""
        names = [path.name for path in (self.path / "locks").iterdir()]
        return [name for name in names if "-tmp-" not in name]

    def dump(self, restore_id: str, file_name: str) -> bytes:
        """Read a file back."""
        return self.restic("dump", restore_id, file_name)
