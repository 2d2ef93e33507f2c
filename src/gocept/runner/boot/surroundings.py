"""The tasks of a background server in the component architecture.

A task is to the server what a tick is to the main loop. Each attempt of it has
a transaction, the site, and an interaction of the principal.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

import zope.interface
from zope.authentication.interfaces import PrincipalLookupError
from zope.component.hooks import setSite
from zope.component.interfaces import ISite
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot import environment, environments, messages, program
from gocept.runner.boot.attempts import Failure, run_attempts
from gocept.runner.boot.environments import CurrentSite, Settings
from gocept.runner.boot.texts import described
from gocept.runner.interfaces import ITaskSurroundings
from gocept.runner.logs import Log
from gocept.runner.signals import Shutdown

log = Log('gocept.runner.background')

T = TypeVar('T')

ATTEMPTS = 3

SHUTDOWN_TIMEOUT = 30.0
"""The time in which children that tasks have started have to end, in seconds.
"""


def _not_started(message: str, status: int) -> errors.ServerNotStarted:
    error = errors.ServerNotStarted(message)
    error.status = status
    return error


@zope.interface.implementer(ITaskSurroundings)
class Surroundings:
    """See `ITaskSurroundings`.

    `path` is that of the object that becomes the site, or None for the root.
    `settings` are those of `IEnvironment`.
    """

    def __init__(self, zope_conf: str, principal: str | None = None,
                 path: str | None = None,
                 settings: Sequence[str | None] = ()) -> None:
        self._zope_conf = zope_conf
        self._principal = principal
        self._path = path
        self._settings = Settings(*settings)
        self._stack = ExitStack()
        self._site: CurrentSite | None = None
        self._shutdown = Shutdown()  # nobody requests it
        self._has_failed = False

    def start(self) -> None:
        """See `ITaskSurroundings`.

        ServerNotStarted, with the status of a worker that cannot be started
        for the same reason.
        """
        expecting = messages.guard(_not_started)
        with ExitStack() as stack:
            stack.enter_context(self._shutdown)
            with program.configuration(
                    self._zope_conf, expecting, self._settings) as options:
                _, found = stack.enter_context(
                    program.opened(options, self._path, expecting))
                with expecting(errors.UNKNOWN_PRINCIPAL,
                               PrincipalLookupError, ComponentLookupError):
                    self._site = stack.enter_context(
                        environments.current().entered(
                            found, lambda: self._principal, 'background task',
                            _tell_replaced))
            setSite(None)  # each task sets it
            stack.callback(environment.stop_children, SHUTDOWN_TIMEOUT)
            self._stack = stack.pop_all()

    def run(self, attempt: Callable[[], T]) -> T:
        """See `ITaskSurroundings`."""
        current = self._site
        assert current is not None

        def step(number: int) -> T:
            current.end()
            current.begin()
            return attempt()
        try:
            outcome = run_attempts(
                step, ATTEMPTS, self._shutdown, lambda: 'a task',
                lambda message, error: None, doom_fails=True)
        finally:
            current.end()
            setSite(None)  # whose database may be closed when it is asked
        if not isinstance(outcome, Failure):
            return outcome
        self._has_failed = True
        error = outcome.error
        if outcome.uncertain:
            log.error('The second phase of a commit failed', exc_info=error)
            raise errors.PartlyCommitted(
                'the second phase of the commit failed, so it is not known '
                'what the task has stored, and it is not tried again: '
                f'{described(error)}') from error
        raise error

    def check(self) -> None:
        """See `ITaskSurroundings`."""
        if self._site is not None and (
                self._has_failed
                or environment.has_lost_connection(self._site.app)):
            self._has_failed = False
            environment.check_databases(self._site.app)

    def close(self) -> None:
        """See `ITaskSurroundings`."""
        self._stack.close()


def _tell_replaced(found: ISite) -> None:
    log.warning('The site was replaced in the database, so the server goes on '
                'with the new one')
