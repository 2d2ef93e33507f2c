"""The start of a kernel, and its keeper."""
