"""What thaws guests whatever happens to workers: guard, watchdog, and the lock of the only run."""
