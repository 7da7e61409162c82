"""Every format of data that can be read, one file a format."""
