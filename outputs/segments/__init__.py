"""Images cut into files, so that only what has changed is read again."""
