"""Guard and watchdog, which thaw guests of killed or stopped processes; the lock of the only run."""
