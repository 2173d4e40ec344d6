"""Reports of runs: JSON, history, metrics, the HTML page."""
