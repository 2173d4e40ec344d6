"""backup/hypervisor/metadata.py: backup settings in a domain's own metadata."""

from __future__ import annotations

import pytest

from backup.hypervisor.metadata import override
from backup.model import Override

from ..raising import raises


def domain_with(*elements: str) -> str:
    return f"<domain><name>web</name><metadata>{''.join(elements)}</metadata></domain>"


@pytest.mark.parametrize("xml", ["<domain><name>web</name></domain>", domain_with()])
def test_a_domain_without_the_element_has_no_settings(xml: str) -> None:
    assert override(xml) is None


SAID = {
    "<backup/>": Override(),
    "<backup enabled='yes'/>": Override(enabled=True),
    "<backup enabled='no'/>": Override(enabled=False),
    "<backup enabled='' freeze='' exclude=' '/>": Override(),
    "<backup freeze='auto'/>": Override(freeze="auto"),
    "<backup freeze='required'/>": Override(freeze="required"),
    "<backup freeze='never'/>": Override(freeze="never"),
    "<backup exclude='vdb'/>": Override(exclude=("vdb",)),
    "<backup exclude=' vdb, vdc,vdd vde.backing1 '/>": Override(
        exclude=("vdb", "vdc", "vdd", "vde.backing1")
    ),
    "<backup enabled='no' freeze='never' exclude='vda'/>": Override(False, "never", ("vda",)),
}


@pytest.mark.parametrize("element", SAID)
def test_each_attribute_is_read_and_missing_ones_are_not_set(element: str) -> None:
    assert override(domain_with(element)) == SAID[element]


@pytest.mark.parametrize(
    "element",
    [
        "<b:backup xmlns:b='virt-rbd-backup' enabled='no'/>",
        "<backup xmlns='virt-rbd-backup' enabled='no'/>",
        "<backup enabled='no'/>",
    ],
)
def test_the_element_is_read_in_our_namespace_and_in_none(element: str) -> None:
    assert override(domain_with(element)) == Override(enabled=False)


def test_metadata_of_other_programs_is_ignored() -> None:
    others = (
        "<o:instance xmlns:o='http://openstack.org/xmlns'><o:backup enabled='no'/></o:instance>",
        "<my-backup enabled='no'/>",
        "<v:backups xmlns:v='backup' enabled='no'/>",
        "<backup xmlns='https://example.org/anything' enabled='no'/>",
        "<t:backup xmlns:t='their' exclude='vda'/>",
        "<t:backup xmlns:t='their' freeze='tuesdays'/>",
        "<u:backup xmlns:u='virt-rbd-backup/2' retention='7'><u:job/></u:backup>",
    )
    assert override(domain_with(*others)) is None
    assert override(domain_with(*others, "<backup freeze='never'/>")) == Override(freeze="never")


def test_an_element_outside_of_the_metadata_is_ignored() -> None:
    assert (
        override("<domain><backup enabled='no'/><devices><backup enabled='no'/></devices></domain>") is None
    )


@pytest.mark.parametrize(
    ("attributes", "unknown"),
    [
        ("enabled='false'", "enabled='false'"),
        ("enabled='No'", "enabled='No'"),
        ("freeze='always'", "freeze='always'"),
        ("enable='no'", "enable='no'"),
        ("enabled='0' freeze='no' excludes='vda'", "excludes='vda', enabled='0', freeze='no'"),
    ],
)
def test_invalid_attributes_are_reported_all_at_once(attributes: str, unknown: str) -> None:
    with raises(f"invalid <backup> in the domain's metadata: {unknown}") as caught:
        override(domain_with(f"<backup xmlns='virt-rbd-backup' {attributes}/>"))
    assert '<backup enabled="yes|no" freeze="auto|required|never" exclude="TARGET ..."/>' in caught.value.hint
    assert "virsh metadata" in caught.value.hint


def test_our_element_takes_precedence_over_that_of_another_program() -> None:
    theirs = "<t:backup xmlns:t='their' enabled='no'/>", "<u:backup xmlns:u='u' retention='7'/>"
    ours = "<o:backup xmlns:o='virt-rbd-backup' freeze='never'/>"
    assert override(domain_with(*theirs, ours)) == Override(freeze="never")
    assert override(domain_with(*theirs, "<backup exclude='vdb'/>")) == Override(exclude=("vdb",))
    assert override(domain_with(*theirs)) is None


def test_our_element_in_its_namespace_takes_precedence_over_one_without() -> None:
    ours = "<o:backup xmlns:o='virt-rbd-backup' freeze='never'/>"
    assert override(domain_with("<backup enabled='no'/>", ours)) == Override(freeze="never")


@pytest.mark.parametrize("namespace", ["", " xmlns='virt-rbd-backup'"])
def test_two_elements_are_an_error(namespace: str) -> None:
    twice = f"<backup{namespace} enabled='yes'/><backup{namespace} enabled='no'/>"
    with raises("the domain's metadata has 2 elements <backup>") as caught:
        override(domain_with(twice))
    assert "virsh metadata" in caught.value.hint


def test_an_unknown_attribute_without_a_namespace_is_not_ignored() -> None:
    with raises("invalid <backup> in the domain's metadata: enable='no'"):
        override(domain_with("<backup enable='no'/>"))
