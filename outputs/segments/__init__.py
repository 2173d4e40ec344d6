"""Images cut into segments that restic reads as files, for incremental backups."""
