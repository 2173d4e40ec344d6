"""One guest is frozen or paused for a moment, and thawed or resumed whatever happens."""
