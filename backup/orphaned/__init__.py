"""Snapshots of ours on any image of the known pools: finding them, and removing those of no domain."""
