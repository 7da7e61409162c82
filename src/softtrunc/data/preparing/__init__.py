"""Images read once, checked and laid down for memory-mapped reading."""
