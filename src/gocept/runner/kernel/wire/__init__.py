"""What goes between a client and the daemon."""
