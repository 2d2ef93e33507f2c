"""Named applications, started under aliases; see `IRunner`."""

from gocept.runner.errors import ProcessExistsException, StartError
from gocept.runner.spawn.runner import Runner

__all__ = ['ProcessExistsException', 'Runner', 'StartError']
