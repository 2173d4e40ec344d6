"""The backup of one domain: lock, freeze, snapshots, previous backup."""
