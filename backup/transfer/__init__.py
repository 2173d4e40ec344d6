"""Streams bytes from a snapshot to an output and back, and compares them."""
