"""A user's mistakes, progress, signals, and files written whole."""
