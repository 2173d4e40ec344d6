"""Writes an SBOM of the Debian package: python3 -m tests.sbom RELEASE, with what dpkg-query shows as input.

Each line has name, version, architecture and home page of a package, with tabs between them. The form is
CycloneDX 1.5 (cyclonedx.org/docs/1.5/json); the same packages give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

PACKAGE = "virt-rbd-backup"


def sbom(release: str, lines: Iterable[str]) -> dict[str, Any]:
    """Describe the package and all that it depends on. Raises ValueError if the package is not among them."""
    components = sorted(
        (_component(release, *line.rstrip("\n").split("\t")) for line in lines), key=_reference
    )
    own = [one for one in components if one["name"] == PACKAGE]
    others = [one for one in components if one["name"] != PACKAGE]
    if not own or not others:
        raise ValueError(f"{PACKAGE} and its dependencies are not among {len(components)} packages")
    depends = {"ref": own[0]["bom-ref"], "dependsOn": [one["bom-ref"] for one in others]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": own[0]},
        "components": others,
        "dependencies": [depends],
    }


def _component(release: str, name: str, version: str, architecture: str, home: str) -> dict[str, Any]:
    # the form of a package URL of Debian: github.com/package-url/purl-spec, "deb"
    reference = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}&distro={release}"
    described = {
        "type": "application" if name == PACKAGE else "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
    }
    return {**described, "externalReferences": [{"type": "website", "url": home}]} if home else described


def _reference(component: dict[str, Any]) -> str:
    return str(component["bom-ref"])


if __name__ == "__main__":
    print(json.dumps(sbom(sys.argv[1], sys.stdin), indent=2))
