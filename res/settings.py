# What differs on this node from the defaults; /opt/virt-rbd-backup/config.py explains all constants, and
# /opt/virt-rbd-backup/res/docs/configuration.md has them as a table.
# Domains with other settings are a group, with a file of its own beside this one: res/docs/groups.md.
# This file is executed, so only root may be able to write it. After a change: virt-rbd-backup check

# The repository, as restic's own RESTIC_REPOSITORY takes it: a path, "sftp:backup@nas:/srv/restic", "s3:https://host/bucket".
RESTIC_REPOSITORY = ""

# Its password is in a file of its own, which only root may read; keep a copy of it elsewhere.
# RESTIC_PASSWORD_FILE = "/etc/virt-rbd-backup/restic-password"

# Access keys of the repository's host, if it needs any.
# RESTIC_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "...", "AWS_SECRET_ACCESS_KEY": "..."}
