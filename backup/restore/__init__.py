"""Restores images, files and the definition of a domain."""
