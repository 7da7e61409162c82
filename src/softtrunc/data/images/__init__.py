"""Image files to uint8 arrays."""
