"""Proof that restore points can be restored: verification and drill."""
