"""A guest that runs on a restore point in the repository, and on nothing else."""
