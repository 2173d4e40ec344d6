"""The admin's own programs: hooks and notifications."""
