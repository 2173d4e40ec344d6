"""Processes, pipes, files, time limits, signals: operating system services, without knowledge of domains."""
