"""Nodes of libvirt's own test driver: a file with domains and pools, and the URI that opens it."""

from __future__ import annotations

from pathlib import Path

from .samples import UUID

SHUT_OFF = "<test:runstate>5</test:runstate>"


def domain_element(
    name: str = "web",
    uuid: str = UUID,
    devices: str = "",
    metadata: str = "",
    system: str = "",
    state: str = "",
) -> str:
    """Give a domain, running unless `state` says otherwise."""
    return (
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>"
        f"<metadata>{metadata}</metadata><os><type>hvm</type>{system}</os>"
        f"<devices>{devices}</devices>{state}</domain>"
    )


def node_uri(file: Path, *elements: str) -> str:
    """Write the node's file, give its URI. Each connection to it is a node of its own."""
    namespace = "xmlns:test='http://libvirt.org/schemas/domain/test/1.0'"
    file.write_text(f"<node {namespace}>{''.join(elements)}</node>")
    return f"test://{file}"
