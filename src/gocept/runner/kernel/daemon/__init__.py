"""The daemon, and what it keeps."""
