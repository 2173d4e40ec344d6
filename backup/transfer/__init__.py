"""Bytes on their way: from a snapshot to an output, back into an image, and compared."""
