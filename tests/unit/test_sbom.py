"""tests/sbom.py: the list of what the package depends on, by version."""

from __future__ import annotations

import pytest

from tests.sbom import sbom

OWN = "virt-rbd-backup\t1.0.0\tall\t\n"
RESTIC = "restic\t0.14.0-1+b5\tamd64\thttps://restic.net\n"
PYTHON = "python3-rbd\t16.2.15+ds-0+deb12u2\tamd64\t\n"


def test_each_package_has_its_version_and_the_program_depends_on_all_of_them() -> None:
    made = sbom("bookworm", [RESTIC, OWN, PYTHON])
    assert made["metadata"]["component"]["name"] == "virt-rbd-backup"
    assert [(one["name"], one["version"]) for one in made["components"]] == [
        ("python3-rbd", "16.2.15+ds-0+deb12u2"),
        ("restic", "0.14.0-1+b5"),
    ]
    restic = made["components"][1]
    assert restic["purl"] == "pkg:deb/debian/restic@0.14.0-1%2Bb5?arch=amd64&distro=bookworm"
    assert restic["externalReferences"] == [{"type": "website", "url": "https://restic.net"}]
    (depends,) = made["dependencies"]
    assert depends["dependsOn"] == [one["bom-ref"] for one in made["components"]]


def test_the_order_of_the_input_changes_nothing() -> None:
    assert sbom("trixie", [OWN, RESTIC, PYTHON]) == sbom("trixie", [PYTHON, OWN, RESTIC])


@pytest.mark.parametrize("lines", [[], [OWN], [RESTIC]])
def test_a_list_without_the_program_or_its_dependencies_is_refused(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="are not among"):
        sbom("bookworm", lines)
