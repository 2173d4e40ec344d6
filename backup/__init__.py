"""The engine: from libvirt's domains to restore points in an output."""

__version__ = "0.1.0"
