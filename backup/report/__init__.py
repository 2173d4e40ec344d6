"""What a run came to, and what is made of it: JSON, history, metrics, the HTML report."""
