"""What the operating system gives: processes, pipes, files, time limits. Nothing here knows of domains."""
