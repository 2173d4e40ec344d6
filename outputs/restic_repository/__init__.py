"""The restic program, and the contents of a repository."""
