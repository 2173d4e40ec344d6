"""Lists and copies single files out of the guests' file systems in a restore point."""
