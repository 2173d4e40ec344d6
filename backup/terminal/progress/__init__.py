"""Displays the progress of a command while it runs."""
