"""The base of what a poller can wait for; see `ISource`."""

from gocept.runner.waits.source import Source, Watcher

__all__ = ['Source', 'Watcher']
