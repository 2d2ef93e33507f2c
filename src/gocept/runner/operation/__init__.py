"""A worker as others see it: its lock, its state, its metrics."""
