"""Restores a domain while its guest already runs: on overlays, which are then copied into its images."""
