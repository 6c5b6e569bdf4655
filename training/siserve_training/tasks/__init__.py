"""Tasks: what a corpus and a configuration turn into for the loop."""
