"""What thaws guests whatever happens to workers: guard and watchdog; and the node's lock."""
