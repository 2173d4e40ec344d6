"""Shows a restore point's disks as files: a read-only FUSE file system."""
