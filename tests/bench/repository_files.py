"""Writes files of a restic repository without restic, so that a large one takes a minute.

The format: restic's design document (doc/design.rst), "Keys, Encryption and MAC", "Indexing" and "Snapshots".
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

BLOBS_OF_A_PACK = 12  # of 1.5 MB each, in a pack of 16 MiB
PACKS_OF_AN_INDEX = 4000
STORED, BLOB = 1_400_000, 1_500_000  # bytes of a blob, compressed and not


@dataclass(frozen=True)
class RepositoryFiles:
    """A repository on this machine, with its master key."""

    place: Path
    encryption: bytes
    mac: tuple[bytes, bytes]

    @classmethod
    def of(cls, place: Path, restic: str, environment: Mapping[str, str]) -> RepositoryFiles:
        command = [restic, "cat", "masterkey", "--no-cache", "--repo", str(place)]
        printed = subprocess.run(command, env=dict(environment), stdout=subprocess.PIPE, check=True).stdout
        key = json.loads(printed)
        mac = (base64.b64decode(key["mac"]["k"]), base64.b64decode(key["mac"]["r"]))
        return cls(place, base64.b64decode(key["encrypt"]), mac)

    def add_index(self, blobs: int) -> int:
        """Name so many blobs in packs that do not exist, which no backup asks; give their bytes."""
        named = 0
        while named < blobs:
            packs = [self._pack() for _ in range(PACKS_OF_AN_INDEX)]
            self._add("index", {"packs": packs})
            named += BLOBS_OF_A_PACK * PACKS_OF_AN_INDEX
        return named * BLOB

    def add_snapshot(self, content: Mapping[str, Any]) -> None:
        self._add("snapshots", content)

    @staticmethod
    def _pack() -> Mapping[str, Any]:
        blobs = [
            {
                "id": os.urandom(32).hex(),
                "type": "data",
                "offset": number * STORED,
                "length": STORED,
                "uncompressed_length": BLOB,
            }
            for number in range(BLOBS_OF_A_PACK)
        ]
        return {"id": os.urandom(32).hex(), "blobs": blobs}

    def _add(self, kind: str, content: Mapping[str, Any]) -> None:
        """Write a file of a kind (the name of its directory) under the hash of what is in it."""
        sealed = self._sealed(json.dumps(content, separators=(",", ":")).encode())
        (self.place / kind / hashlib.sha256(sealed).hexdigest()).write_bytes(sealed)

    def _sealed(self, plain: bytes) -> bytes:
        """AES-256 in counter mode, and Poly1305-AES of the result."""
        nonce = os.urandom(16)
        encrypted = Cipher(algorithms.AES(self.encryption), modes.CTR(nonce)).encryptor().update(plain)
        k, r = self.mac
        masked = Cipher(algorithms.AES(k), modes.ECB()).encryptor().update(nonce)
        return nonce + encrypted + Poly1305.generate_tag(r + masked, encrypted)
