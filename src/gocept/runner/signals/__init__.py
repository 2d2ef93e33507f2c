"""The request that a program ends, and the signals that make it."""

from gocept.runner.signals.shutdown import Shutdown, current_shutdown

__all__ = ['Shutdown', 'current_shutdown']
