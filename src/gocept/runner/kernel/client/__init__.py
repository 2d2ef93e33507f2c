"""The client of a kernel."""
