# What differs on this node from the defaults; /opt/virt-rbd-backup/config.py explains all constants.
# This file is executed, so only root may write it. After a change: virt-rbd-backup check

# The repository, as restic takes it: a path, "sftp:backup@nas:/srv/restic", "s3:https://host/bucket".
RESTIC_REPOSITORY = ""

# Its password is in a file of its own, which only root may read; keep a copy of it elsewhere.
# RESTIC_PASSWORD_FILE = "/etc/virt-rbd-backup/restic-password"

# Keys of the repository's host, where it wants any.
# RESTIC_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "...", "AWS_SECRET_ACCESS_KEY": "..."}
