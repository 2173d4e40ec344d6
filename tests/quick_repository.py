"""An empty restic repository, made in no time."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

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


def make_repository(path: Path) -> None:
    """Make the repository in a directory that does not exist yet."""
    for name in ("data", "index", "keys", "locks", "snapshots"):
        (path / name).mkdir(parents=True)
    (path / "config").write_bytes(base64.b64decode(CONFIG))
    (path / "keys" / hashlib.sha256(KEY.encode()).hexdigest()).write_text(KEY)
