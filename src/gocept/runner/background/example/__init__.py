"""Tasks to try a background server with."""
