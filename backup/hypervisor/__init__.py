"""libvirt and its XML: the only room that imports libvirt."""
