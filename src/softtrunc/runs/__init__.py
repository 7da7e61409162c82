"""A run folder: open it, draw samples from it."""
