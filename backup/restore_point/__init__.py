"""Restore points: manifest, checksums, and finding one."""
