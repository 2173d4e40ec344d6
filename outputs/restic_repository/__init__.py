"""The restic program and what a repository of it holds."""
