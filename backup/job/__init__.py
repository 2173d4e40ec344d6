"""The backup of one domain: lock, snapshots of the quiesced moment, previous backup."""
