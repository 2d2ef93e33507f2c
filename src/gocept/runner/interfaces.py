"""Every contract of the project; the code refers to it by name.

Times are seconds, as int or float, on a clock that is never set back.
"""

from zope.interface import Attribute, Interface


class IAppMain(Interface):
    """``appmain(ticks=1, principal=None, *, attempts=3)``

    A decorator that makes a program of a worker, which is a function that does
    a piece of work each time it is called.

    `ticks` is how long to sleep between two calls, if the worker does not say;
    ValueError if it is no number >= 0. `principal` is the id of the principal
    that the worker runs as, or a callable that returns one when zope.conf has
    been read (see `IFromConfig`), or None for no interaction. `attempts` is
    how often a tick is run at most if it fails for a reason that passes, such
    as a conflict.

    A worker returns one of

    * None: the loop sleeps for `ticks` seconds;
    * a number >= 0: the loop sleeps that long, this time (with 0 not at all);
    * `gocept.runner.Exit`: the loop ends.

    What else can become of a tick is said in `IMainLoop`.
    """

    def __call__(worker):
        """Return the program.

        The program keeps the name, doc and module of the worker. It is called
        in one of two ways.

        ``program(appname, configfile, *args)`` runs the worker in the object
        called `appname` in the root folder, or in the root folder itself if
        that is None, as the file `configfile`, a zope.conf, says; `args` are
        the arguments of the worker. It returns None, or 1 if the worker runs
        just once and failed. Exceptions are raised as they are: KeyError for
        an unknown `appname`, those of ZConfig, zope.configuration and the
        storages for files and databases that cannot be used, and
        PrincipalLookupError for an unknown principal. What the worker raises
        is never among them.

        ``program()`` reads the command line, and returns or exits with a
        status; `gocept.runner.errors` lists them. A SystemExit of the worker
        is raised once more at the end. An expected mistake is one line on
        standard error.
        """


class IOnce(IAppMain):
    """``once(principal=None, *, attempts=3)``

    Like `IAppMain`, for a worker that runs one tick.
    """


class IFromConfig(Interface):
    """Read a value from zope.conf, when it has been read."""

    def __call__(section, variable):
        """Return a callable that returns the value of `variable` in the
        ``<product-config section>``.

        It raises KeyError if zope.conf has no such section or the section has
        no such variable.
        """


class IInit(Interface):
    """Boot what a worker needs, for code that has no loop."""

    def __call__(appname, configfile):
        """Return a context manager that hands out the site.

        It reads zope.conf, sets up the process and opens the databases; at the
        end it aborts the transaction and closes them. Commit what is to stay.
        The site is *not* set; one that the caller sets is put back at the end.
        Parameters and exceptions are those of `IAppMain`.

        Loggers, product configuration and components stay set up afterwards. A
        second call with the same site definition does not run the ZCML again;
        one with another is a `ConfigurationError`, as there is one component
        registry in a process. A call that fails leaves all of this as it was.
        """


class IMainLoop(Interface):
    """``MainLoop(app, ticks, worker, principal=None, once=False, *,
    attempts=3)``

    Calls a worker, tick by tick. `app` is the object that becomes the site,
    `worker` is called without arguments; the others are as in `IAppMain`.
    """

    failed = Attribute('Whether the last tick failed.')

    ended_by = Attribute(
        'The SystemExit or KeyboardInterrupt that ended the loop, or None.')

    def __call__():
        """Run until the worker ends the loop, a signal does, or `stop`.

        A tick is one transaction, begun before the worker is called. While it
        runs, `app` is the site. With a principal there is an interaction,
        whose first participation is a request that carries the principal,
        looked up anew in each tick. The principal is looked up once before
        the first tick too: PrincipalLookupError if it is not known.

        * When the worker returns what `IAppMain` allows, the transaction is
          committed (or aborted, if it was doomed).
        * SystemExit and KeyboardInterrupt abort it and end the loop.
        * What the transaction calls retryable, raised by the worker or by the
          commit, aborts it and is tried again in the same tick after a random
          pause of a few milliseconds, `attempts` times at most.
        * Everything else, and any other return value, is logged as an error,
          aborts the transaction, and the loop goes on after `ticks` seconds.

        Thus a worker cannot end the loop by failing.

        In the main thread, SIGTERM, SIGHUP and SIGINT end the loop when the
        tick in progress is over, and a pause at once; also where they were
        ignored before. After the first one all three have their default
        action, so that a second one ends the process. While the first arrives
        in C code that does not return to Python, this holds for the same
        signal only. In a child that the worker forks they have their default
        action from the start. SIGUSR2 reopens the log files that zope.conf
        names.

        Afterwards site, interaction and signal handlers are those from before.
        """

    def stop():
        """End the loop like a signal does; from any thread.

        A loop that does not run yet will end before its first tick.
        """

    def stopMainLoop(signum, frame):
        """The handler of the signals that end the loop."""


class ITransactionPerItem(Interface):
    """Run each of many steps in a transaction of its own."""

    def __call__(func=None, *, attempts=1):
        """Decorate a generator function that yields callables.

        Used with and without parentheses; on functions and methods, with any
        arguments. Calling the result calls each item in turn and commits. What
        the generator does on its way to an item belongs to that item's
        transaction.

        * An item that raises an exception is logged and aborted, and the next
          one is called. It counts as failed.
        * So is an item with a conflict; it counts as skipped, as another run
          may find it again. With `attempts`, what the transaction calls
          retryable is tried again first, up to that many times in all. An
          attempt after the first one sees no changes by the generator itself.
        * SystemExit and KeyboardInterrupt abort and propagate.
        * An exception in the generator itself aborts and propagates.

        A signal that ends the main loop ends this one too, between two items.
        In the end a line with the number of items done, failed and skipped is
        logged. While standard error is a terminal it shows a progress bar.

        Returns what the generator returns, so that a worker can return
        `gocept.runner.Exit`; None if a signal ended it.
        """


class IPoller(Interface):
    """Waits until something happens or time is over.

    Belongs to the thread that waits. A context manager, which closes it.
    """

    wakeup_fd = Attribute(
        'A descriptor; any byte written to it wakes. For the standard '
        "library's ``signal.set_wakeup_fd()``.")

    def wait(timeout=None):
        """Wait for `timeout` seconds at most, or for ever if it is None.

        True as soon as there was a wake-up, also one since the last wait;
        False when the time is over.
        """

    def wakeup():
        """End the wait in progress, or else the next one.

        From any thread and from signal handlers; nothing once closed.
        """

    def close():
        """Close its descriptors; again does nothing."""


class IShutdown(Interface):
    """The request that a loop ends, and the waits that it ends.

    A context manager; waits need it entered. While it is, it is what
    `gocept.runner.signals.current_shutdown` yields in the same thread.
    """

    requested = Attribute('Whether the loop is to end.')

    signum = Attribute('The number of the signal that requested it, or None.')

    def request(signum=None):
        """Ask the loop to end; from any thread and from signal handlers.

        Before it is entered as well: it holds until it is exited.
        """

    def request_reopening():
        """Ask the loop to reopen the log files; as `request`."""

    def attend():
        """Do what signals asked for, other than to end; return `requested`."""

    def wait(seconds):
        """Sleep, but no longer than to the request; return `requested`."""
