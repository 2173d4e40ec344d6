"""One execution of the program: jobs and workers, cleanup, check."""
