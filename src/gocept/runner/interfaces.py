"""Every contract of the project; the code refers to it by name.

Times are in seconds, as int or float, on a clock that is never set back.

A handler of a signal may call `IMainLoop.stop`, `IShutdown.request`,
`IPoller.wakeup`, `IPoller.interrupt` and `IProcess.send_signal` (to pass a
signal on to a child), and nothing else of this project. Other calls may raise
RuntimeError there, as the handler may have interrupted a thread that holds a
lock which the call needs.
"""

from zope.interface import Attribute, Interface


class IAppMain(Interface):
    """``appmain(ticks=1, principal=None, *, attempts=3, max_backoff=60,
    shutdown_timeout=30, application=None, watch=None, watch_interval=0.5,
    schedule=None, timezone=None, jitter=0, missed='skip', tick_timeout=None,
    tick_timeout_action='log', lock=False)``

    A decorator that makes a program of a worker. A worker is a function that
    does a piece of work each time it is called.

    * `ticks` is the number of seconds between two calls, unless the worker
      returns another one. ValueError if it is not a number >= 0. With
      `gocept.runner.Exit` the worker runs one tick, as with `IOnce`.
    * `principal` is the id of the principal that the worker runs as; or a
      callable that returns an id, and is called when zope.conf has been read
      (see `IFromConfig`); or None for no interaction. With Zope, the callable
      may also return a user.
    * `attempts` is how often one tick calls the worker at most. The worker is
      called again after an error that passes, such as a conflict.
    * `max_backoff` is the longest pause, in seconds, after several errors in a
      row.
    * `shutdown_timeout` is the number of seconds in which the children that
      ZCML declares have to end, before they are killed.
    * `application` is the kind of application that the worker is for:
      ``toolkit`` for the Zope Toolkit, or ``zope`` for Zope 5, Zope 6 and
      Plone. None: the one that the zope.conf is for. See `IEnvironment`.
    * `watch` is a callable that tells which objects of the database end the
      pause between two calls when others change them; see `IWatch`. TypeError
      if it cannot be called.
    * `watch_interval` is the number of seconds between two looks for such a
      change, if a storage has to be asked. ValueError if it is not more than
      0.
    * `schedule` says in the words of cron at which times the worker runs, such
      as ``*/15 2-5 * * mon-fri``; see `ISchedule`, and `IMainLoop` for how a
      loop keeps it. It takes the place of `ticks`. ValueError if it is given
      together with `ticks` or `watch`, or is no schedule.
    * `timezone` is the name of the zone whose times these are, such as
      ``Europe/Berlin``; None: that of the system. ValueError if it is unknown.
    * `jitter` is a number of seconds. Each run of the schedule begins at a
      random instant, fewer seconds after its time. ValueError if it is longer
      than the time between two runs.
    * `missed` tells what becomes of runs whose time has passed while the
      program did not run, or while a tick went on: with ``skip`` they are left
      out, with ``once`` there is one run for all of them, at once. ValueError
      for another value, and if `timezone`, `jitter` or `missed` is given
      without a `schedule`.
    * `tick_timeout` is the number of seconds that a tick may take, or an item
      of `ITransactionPerItem`; None: any number. ValueError if it is not more
      than 0. The time of a tick has all its attempts, the pauses between them
      and the commit in it, but not the pause after the tick. The time for
      which the machine was suspended does not count.
    * `tick_timeout_action` tells what is done about one that takes longer.
      ValueError for another value, and for one that is not the default where
      there is no `tick_timeout`.

      With ``log``, an error is logged once, with the stacks of all threads:
      while the tick goes on, if another thread can run Python code, else as
      soon as one can. Then the stacks are those of a moment after the time has
      passed. On Linux they are taken also while C code holds the interpreter,
      by a signal (the highest one that nobody uses) to the thread of the loop;
      it interrupts a system call there.

      With ``abort``, the process ends by SIGABRT as well, with the default
      action of this signal, whatever handlers there are. On Linux this is so
      also while C code holds the interpreter, half a second later. The stacks
      are written to standard error; if this is ``/dev/null``, to the first log
      file. Nothing is committed, and no code of Python is run at the end, but
      all children that the process has started as an `IProcess` end, with all
      their descendants, daemons as well: they get SIGTERM, and SIGKILL five
      seconds later. A process that ends by another signal, even SIGKILL, takes
      its children along, too. Detached children, processes in a kernel,
      background servers and what was started by other means, such as
      `subprocess`, go on.

      A child that is forked in a tick has no time to keep, and neither has a
      program that takes the place of the process. Nothing is too long under
      ``--debug``.
    * `lock` tells whether only one process at a time may run the worker on
      this machine, for the same database and site. Another one ends before it
      opens the database; see below.

    A worker returns one of

    * None: the loop sleeps for `ticks` seconds;
    * a number >= 0: the loop sleeps for that many seconds, this time (with 0
      not at all);
    * `gocept.runner.Exit`: the loop ends.

    `IMainLoop` says how a tick may end otherwise.

    The lock is held from before the databases are opened until they are
    closed, also by a dry run. It belongs to the name of the worker and the
    path of the site; the arguments do not count. It is a lock on a file that
    stays when it is free, ``Data.fs.WORKER.lock`` or, for the site ``shop``,
    ``Data.fs.WORKER@shop.lock``, beside the file of a FileStorage. With other
    storages it is a file in a directory for the database below
    ``$XDG_STATE_HOME/gocept.runner``, or ``~/.local/state/gocept.runner``: so
    each user has a lock of their own. The directory is that of the server and
    the storage of ZEO, that of the connection of RelStorage, and otherwise
    that of the path of zope.conf.

    However the process ends, the lock is free then; no child inherits it, and
    a forked one does not keep it. A second process gets a WorkerLocked, with
    the number of the first one, and its command line ends with status 75.
    CannotLock, and status 73, if the file cannot be written or its file system
    has no locks.

    If ``NOTIFY_SOCKET`` names a service manager, such as systemd, the program
    tells it how the loop fares, see sd_notify(3): ``READY=1`` when the first
    tick begins, or the pause before it; ``STATUS=``; ``RELOADING=1`` and
    ``READY=1`` around the reopening of log files; ``STOPPING=1`` as soon as
    the end is requested; and from then on ``EXTEND_TIMEOUT_USEC=`` while a
    tick is within its `tick_timeout`, and for the end of children. Twice in
    ``WATCHDOG_USEC`` it sends ``WATCHDOG=1``, unless a tick or item takes
    longer than `tick_timeout` (without one: than ``WATCHDOG_USEC``), or the
    end of a pause is ten seconds late. No tick waits for the manager, or fails
    for it. The variables are removed from `os.environ` while the loop runs.

    Subclasses may override what stands here. An instance has the parameters as
    attributes.
    """

    once = Attribute('Whether the worker runs one tick.')

    main_loop = Attribute(
        'The class of the loop, `IMainLoop` or a subclass of its '
        'implementation.')

    def get_principal():
        """Return the id of the principal that the worker runs as, or None.

        Called once in each run of the program, when zope.conf has been read
        and the site is set; so it may use components. What it returns counts,
        also in a dry run, for workers that ZCML declares, and for the items of
        `ITransactionPerItem`. If not overridden, it returns `principal`, or
        what this returns if it can be called. Exceptions are those of the
        program.
        """

    def __call__(worker):
        """Return the program.

        The program keeps the name, the docstring and the module of the worker.
        There are two ways to call it. TypeError if the worker is a generator
        function without `ITransactionPerItem`, which belongs between the two:
        a call of a generator function runs nothing of it. TypeError if the
        worker is an ``async`` function, for the same reason.

        ``program(appname, configfile, *args)`` runs the worker. `appname` is
        the path of the site: its name in the root folder, or several names
        with a slash between two; or None, and the root folder is the site.
        `configfile` is the path of a zope.conf.
        `args` are the arguments of the worker. The call returns None, or
        `IMainLoop.status` if the worker runs just once and this is not 0. A
        signal that comes before the loop begins raises SystemExit with 128 and
        its number. Exceptions are raised as they are: KeyError for an unknown
        `appname`, PrincipalLookupError for an unknown principal, and those of
        ZConfig, zope.configuration and the storages for files and databases
        that cannot be used. An exception of the worker is never raised here.

        ``program()`` reads the command line, and returns or exits with a
        status; `gocept.runner.errors` lists them. The arguments of the worker
        follow ``--``, which may be left out if none of them begins with ``-``
        or is the name of an option.
        If the worker raises SystemExit, it is raised again when the database
        is closed. A mistake of the user is reported as one line on standard
        error.

        ``program.main(site=None, config=None)`` does the same. `site` and
        `config`, the path of a zope.conf, are the defaults of the command
        line. Generated scripts call this one.

        Scripts of earlier versions call ``program(appname, configfile)`` from
        the main module. If there is a command line that the program
        understands as a whole, and that does not name a site or a zope.conf,
        such a call reads the command line, too: `appname`, `configfile` and
        `args` are its defaults, and a status other than 0 is raised as a
        SystemExit.

        ``program.worker`` is the undecorated worker, so that tests can call
        it. ``program.decorator`` is this decorator, and ``program.name`` the
        name of the worker. ``program.site`` and ``program.arguments`` are what
        `appname` None and no `args` stand for; ZCML sets them.
        """


class IOnce(IAppMain):
    """``once(principal=None, *, attempts=3, shutdown_timeout=30,
    application=None, tick_timeout=None, tick_timeout_action='log',
    lock=False)``

    Like `IAppMain`, for a worker that runs one tick.
    """


class IFromConfig(Interface):
    """Read a value from zope.conf, once zope.conf has been read."""

    def __call__(section, variable):
        """Return a callable that returns the value of `variable` in the
        ``<product-config section>``.

        The callable raises KeyError if zope.conf has no such section, or the
        section has no such variable.
        """


class IInit(Interface):
    """Boot what a worker needs, for code that has no loop."""

    def __call__(appname, configfile, *, shutdown_timeout=30,
                 application=None):
        """Return a context manager that hands out the site.

        On entering, zope.conf is read, the process is set up, the databases
        are opened, and the children that ZCML declares as eager are started.
        On leaving, all children are stopped, the transaction is aborted, and
        the databases are closed. Commit to keep changes. The site is *not*
        set. If the caller sets one, the previous site is put back at the end.
        Parameters and exceptions are those of `IAppMain`.

        Where ZCML declares children, SIGTERM and SIGHUP raise Terminated (a
        SystemExit) unless they have handlers, so that no child is left behind.

        Loggers, product configuration and components stay set up afterwards. A
        second call with the same site definition does not run the ZCML again.
        With another site definition it is a `ConfigurationError`, as there is
        one component registry in a process. A call that fails leaves all of
        this as it was before.
        """


class IEnvironment(Interface):
    """``factory(settings)``

    A kind of application: all that a worker needs to know of it. There are
    two, ``toolkit`` for the Zope Toolkit (zope.app.appsetup), and ``zope`` for
    Zope 5, Zope 6 and Plone.

    An instance is made for each start. `settings` has the attributes
    `application`, `server_url`, `log_config` and `log_format`; each is a
    string, or None. They are the options of the command line with these names.
    With the `log_format` 'json', each line of a log is one of
    `gocept.runner.JSONFormatter`. UsageError if there is one with which this
    kind can do nothing.

    The attribute `words` of the factory is the set of all names of keys and
    section types, in lower case, that may stand at the top of its zope.conf.
    A word that only one kind has tells which one a file belongs to. A file
    without such a word is one of the Toolkit. A file with such words of two
    kinds is a ConfigurationError, unless `application` names one of them.

    Other packages add kinds as entry points of the group
    ``gocept.runner.environments``: the name of the kind, and the factory. They
    are looked for if a file has a word that is not one of the two, or if
    `application` has another name.

    A start calls `load`, `configured`, `opened` within this, and `find_site`.
    Then `entered` is called for each loop. `configured` makes it the current
    environment of the process. That is the one that a `IMainLoop` uses, and
    that `IFromConfig` and ZCML ask for product configuration.
    """

    name = Attribute('The name of the kind, such as ``toolkit``.')

    def load(configfile):
        """Read a zope.conf, and return its options.

        The attribute `configfile` is the path as it was given,
        `site_definition` the path of the ZCML file that configures the
        components, and `built_in` tells whether the zope.conf names none, so
        that a file of this package takes its place. Everything else is the
        business of this kind of application.

        Errors are those of ZConfig, OSError, ValueError, and the
        ConfigurationError of this package; their messages name the file.
        Nothing in the process is changed.
        """

    def configured(options, *, verbose=0, logs=True):
        """Return a context manager that sets up the process.

        On entering: search path, product configuration, loggers, components.
        No database is opened, so that this works beside an application that
        has its database locked. The block holds the other steps of a start. An
        error in it puts back everything that can be put back. When it has
        ended well, all this stays.

        `verbose` shows all messages on standard error, and debug messages: 1
        shows those of the application and of this package, 2 also those of the
        libraries. Without `logs`, the loggers stay as they are, and no log
        file is opened.

        A second call with the same site definition runs no ZCML. With another
        one it is a ConfigurationError, as there is one component registry in a
        process. Errors are those of `load`, and zope.configuration's.
        """

    def opened(options, *, create=True, opening=...):
        """Return a context manager that opens the databases.

        It hands out the root of the application: the root folder, or the
        ``Application`` object. Its connection is that of the transaction
        manager of this thread. On leaving, the site is the one from before,
        the transaction is aborted, and connection and databases are closed.

        Without `create` this is a dry run: nothing is created, changed or
        committed. DatabaseMissing if something would be.

        The storages are opened in ``with opening()``, if this is given:
        errors there are not those of the application, but for a user to mend,
        as for a database that is locked or cannot be reached.
        ConfigurationError for a database of another application.
        """

    def find_site(root, path):
        """Return the object that becomes the site.

        `path` is made of the names from the root on, with a slash between two;
        None and ``/`` stand for the root. NoSuchSite if there is no object,
        NotASiteError if it cannot become the site, and ConfigurationError if
        its class cannot be imported.
        """

    def find_principal(principal):
        """Return the principal of this id, in the site that is set.

        It is what the security of the application knows: an object with an
        `id`, or a user of a user folder. PrincipalLookupError if there is
        none, and ComponentLookupError if nothing can be asked.
        """

    def entered(app, principal, name, replaced):
        """Return a context manager that hands out an `ICurrentSite`.

        The block holds a loop, a console, or the tasks of a server. In it,
        `app` is the site, and there is no interaction but that of an attempt.
        On leaving, `ICurrentSite.end` is called, and site and interaction are
        the ones from before. A context that is forgotten, and never left,
        changes nothing when it is collected.

        `principal` is called once, without arguments, when the site is set. It
        returns the id of the principal, or None for none; with Zope it may
        also return a user object. PrincipalLookupError or ComponentLookupError
        on entering, if it is not known. What `principal` raises propagates.

        `name` is what an undo log shows as the description of each
        transaction. `replaced` is called with the new object, if another
        object has taken the place of `app` in the database.
        """

    def product_configuration(section):
        """Return the ``<product-config section>`` of zope.conf, as a mapping
        of strings, or None if there is no such section.

        The names of sections and keys are in lower case, as ZConfig makes
        them.
        """


class IMainDatabase(Interface):
    """What an `IEnvironment` may have as well.

    Without it, the path of a zope.conf stands for its database, where
    `IAppMain` tells the place of a lock.
    """

    def main_database(options):
        """Return the section of the database with the root.

        It is what ZConfig makes of this section, so that no database need be
        open. `options` are those of `IEnvironment`.
        """


class ICurrentSite(Interface):
    """A site as its database has it now, and who works in it.

    An attempt is one call of a worker, with its transaction. `begin` and `end`
    are called around each.
    """

    app = Attribute(
        'The site. It is another object when `replaced` of '
        '`IEnvironment.entered` was called.')

    components = Attribute(
        'The components that are in use: the site manager of the site or of '
        'the nearest one above it, or the global one. It may be another '
        'object after `begin`.')

    def begin():
        """Begin a transaction, and what surrounds an attempt.

        The transaction carries the principal and the name for an undo log. The
        object at the place of the site becomes the site, and the principal,
        looked up anew, has an interaction (and with Zope a request and a
        security manager). If the attempt before was not ended, it is ended
        first. LookupError if the database has no object at the place of the
        site any more. After an exception, `end` is called.
        """

    def begin_item():
        """Begin the transaction of a further item of `ITransactionPerItem`,
        or of another attempt of an item.

        The item belongs to the attempt that has begun: what the generator
        holds stays usable.
        """

    def end():
        """End what surrounds an attempt.

        Called after commit or abort of its last transaction, never before: a
        commit may need request, user and site. Called after errors, too, and
        where nothing has begun; then nothing is done. It raises nothing: an
        error is logged.
        """


class IPlacedSite(Interface):
    """What an `ICurrentSite` may have as well.

    Without it, the runs of a schedule belong to the oid of the site.
    """

    path = Attribute(
        'The names on the way from the root to the site, with a slash between '
        'two; None if the database has the site at no such place.')


class IWatch(Interface):
    """Tells which objects of the database end the pause between two ticks."""

    def __call__(site):
        """Return a persistent object, an iterable of them, or None.

        Called with the site after a tick, in a transaction and with the
        surroundings of one (site, interaction), unless nothing was committed
        since the last call. The transaction is aborted, so what the callable
        changes is not stored.

        A tree of the package BTrees is watched with all its nodes and buckets:
        every insert, change and removal of an item counts. Values that are
        persistent do not belong to the tree. Another object is watched with
        the trees, Lengths, PersistentLists and PersistentMappings among its
        attributes. So a container may be returned as it is. Objects may be in
        several databases; they must have been stored.

        The pause of the loop ends when another client, or another connection
        of this process, commits a change of one of these objects. Commits of
        the connections that the loop itself uses do not end it. A change that
        comes during a tick ends the pause after the tick at once, also if the
        same tick has made this object, or has merged its own change with that
        of the other (a resolved conflict). After n failed ticks in a row, if n
        is more than 1, a change does not end the pause before ``2 ** (n - 1)``
        seconds are over (fewer if `ticks` is less than 1, and at most
        `max_backoff`); then also a change ends it that came meanwhile. When a
        ZEO client has lost its server, and is connected again, anything may
        have changed, so this ends the pause, too. A pause may end though there
        is nothing to do; a change is never missed.

        With ZEO and within one process, a change is told in the moment of the
        commit. RelStorage and other storages with an MVCC of their own tell
        nobody, so the loop looks for changes every `watch_interval` seconds of
        the pause, through a connection of its own. As long as these looks
        fail, since the database is away, it looks every ten seconds.

        If the callable fails, the error is logged, but not that of further
        calls that fail in a row. Until a call succeeds, the objects of the one
        before are watched. Time ends the pause as ever. SystemExit and
        KeyboardInterrupt end the loop, as in a tick.
        """


class IMainLoop(Interface):
    """``MainLoop(app, ticks, worker, principal=None, once=False, *,
    attempts=3, max_backoff=60, watch=None, watch_interval=0.5)``

    Calls a worker, tick by tick. `app` is the object that becomes the site.
    `worker` is called without arguments. The other parameters are those of
    `IAppMain`.

    Subclasses may override `begin`, `commit` and `abort`, which the loop calls
    around each attempt of a tick, or write a ``__call__`` of their own that
    calls them.

    A loop has the parameters but `principal` as attributes, and also `missed`,
    `tick_timeout` and `tick_timeout_action` of `IAppMain`. They may be set
    before the loop is called, and `ticks` and `max_backoff` at any time.
    """

    name = Attribute(
        'The name of the worker, for the log and the undo log; None: that of '
        'the function. A worker that ZCML declares has its name there.')

    principal_id = Attribute(
        'The id of the principal, or None. A callable is called when the id '
        'is asked for the first time.')

    interaction = Attribute('Whether there is a principal.')

    principal = Attribute(
        'The principal. It is looked up each time, in the site that is set.')

    running = Attribute("""Whether the loop may go on.

    False once `stop`, `stopMainLoop` or a signal has asked the loop to end.
    This is for the ``while`` of a subclass that has a ``__call__`` of its own.
    Such a subclass may set it as well. Asking may log that a signal came.
    """)

    failed = Attribute('Whether the last tick failed.')

    tick = Attribute(
        'The number of the tick in progress, or else of the last one, since '
        'the loop began; 0 before the first one.')

    attempt = Attribute(
        'The number of the attempt of this tick, from 1 on; 0 before the '
        'first one.')

    tick_started = Attribute(
        'When the tick in progress began, on the monotonic clock; None in a '
        'pause.')

    deadline = Attribute(
        'When the tick in progress, or the item of it, is longer than '
        '`tick_timeout` allows, on the monotonic clock; None in a pause, and '
        'without a `tick_timeout`.')

    timed_out = Attribute(
        'How many ticks were longer than `tick_timeout` allows, the one in '
        'progress as well; items that were too long count each.')

    next_tick = Attribute(
        'When the next tick is due, as an `Instant` of '
        '`gocept.runner.waits.instants`; None during a tick, and where nobody '
        'knows: in a loop whose ``__call__`` is that of a subclass.')

    stopping = Attribute('Whether the loop was asked to end; for any thread.')

    known_principal = Attribute(
        'The id of the principal, if it was asked for; for any thread.')

    schedule = Attribute(
        'The `ISchedule` whose times the ticks keep; None: they follow each '
        'other with pauses. It may be set before the loop is called.')

    counts = Attribute(
        'The numbers of items that `ITransactionPerItem` has run since the '
        'loop began, as attributes: `done`; `failed`, with an error; '
        '`skipped`, after a conflict; and `uncertain`, where the second phase '
        'of the commit failed. Items that a tick repeats count once.')

    status = Attribute("""What a program ends with that runs one tick.

    `gocept.runner.errors.PARTLY_COMMITTED` if the second phase of a commit has
    failed; else the status of `ended_by`, if it is not 0; else 128 and the
    number of the signal that came before the tick or has cut the tick short
    (between two items or two attempts), or `WORKER_FAILED` if `stop` or an
    exit in an item has; else
    `WORKER_FAILED` if the tick has failed, or an item of `ITransactionPerItem`
    whose failures matter; else `SUCCESS`, also if a signal came during the
    tick. When many ticks are run, this is about the last one.
    """)

    ended_by = Attribute(
        'The SystemExit or KeyboardInterrupt that ended the loop, or None.')

    def __call__():
        """Run until the worker, a signal or `stop` ends the loop.

        A tick is one transaction, which begins before the worker is called.
        During the tick, `app` is the site. With a principal there is an
        interaction. Its first participation is a `RunnerRequest` of
        `gocept.runner.runner`: a request that carries the principal, and takes
        any attributes. The principal is looked up anew in each tick. It is
        also looked up before the first tick: PrincipalLookupError if it is
        unknown.

        RuntimeError if the connection of `app` belongs to another thread: its
        changes would not be committed by this one.

        If `app` has a place in its database, given by its `__parent__` and
        `__name__` and those of its parents, each tick looks there. If another
        object has replaced `app`, this is logged, and the new object is the
        site from now on. If there is no object, the tick fails.

        * When the worker returns what `IAppMain` allows, the transaction is
          committed (or aborted with a warning, if it was doomed; if the loop
          runs one tick, this tick has failed).
        * SystemExit and KeyboardInterrupt are logged, abort the transaction
          and end the loop.
        * An error that the transaction calls retryable, such as a conflict,
          raised by the worker or by the commit, aborts the transaction. The
          worker is called again in the same tick, `attempts` times in all at
          most. The pause before attempt n + 1 is random: at most
          ``0.01 * 2 ** n`` seconds, and never more than a second. If the last
          attempt fails, the tick has failed. A conflict is then logged as a
          warning.
        * Any other error, and any other return value, is logged as an error
          and aborts the transaction; the tick has failed.
        * An error in the second phase of a commit, when some data managers may
          have finished already, is logged and never tried again; the tick has
          failed. See `ITickUncertain`.

        So a worker cannot end the loop by failing, unless its database or the
        connection of `app` was closed: then DatabaseClosed is raised. After
        the first failed tick, the pause is `ticks` seconds. After the nth one
        in a row it is ``max(ticks, 0.1) * 2 ** (n - 1)`` seconds, but at most
        `max_backoff`, or `ticks` if that is longer. A tick that succeeds ends
        the row. An exception that a signal handler raises in a pause is
        logged, and the pause begins anew.

        The pause is `IPoller.pause` of the `IPoller` utility, if there is one:
        every source that is registered there ends it at once. The loop reads
        nothing; the worker fetches with `poll(0)`. If a loop in another thread
        pauses with the utility already, this loop makes a poller of its own,
        which nothing of the utility wakes. From the second failed tick
        in a row on, only signals and `stop` end the pause; otherwise a child
        that writes all the time would make a worker fail all the time. What
        `watch` of `IAppMain` returns ends the pause as well; `IWatch` says how
        it is after errors. A loop that runs one tick, and a subclass with a
        ``__call__`` of its own, do not call `watch`. Events tell what happens,
        see `ILoopEvent`.

        With a `schedule`, a tick is a run of the schedule. A run is named by
        its time, and its transaction also stores that this time is done: in
        the root of the database of the site, by the name of the worker and the
        path of the site. With `ITransactionPerItem` this is the transaction
        after the last item, and only if the run was not cut short and no item
        has failed whose failures matter.

        * Each attempt first reads what is stored. If the run was done
          meanwhile, by another process, the worker is not called; the tick
          ends with an `ITickAborted` about `AlreadyRun`, and has not failed.
        * A worker that has never run waits for the next time.
        * A run that has failed, or is not whole, is tried again after the
          pauses that follow errors, from the first error on, until the next
          time. Then it is given up, and is one that was `missed`. But a run
          that may be committed in part is not tried again.
        * If times have come when a pause ends, one run stands for all of them,
          and is that of the last one. So it is after the machine was
          suspended, and when the clock was put forward.
        * A run that is stored for the future is logged as a warning, as the
          clock must have been set back. The loop waits for the first time
          after it.
        * When the worker returns a number, a tick follows after so many
          seconds that is no run: nothing is stored about it. The next time of
          the schedule comes first, if it is sooner.
        * A pause ends at a time of the schedule. Sources of the `IPoller` do
          not end it; the next tick can fetch what they have.
        * A loop that runs one tick calls the worker at once, also if that run
          was done. What it stores is the last time that has come.
        * If what is stored cannot be read, this is logged as an error, and
          tried again after a pause as after failed ticks.

        UsageError if the site is in no database, and for the first `begin` in
        a ``__call__`` of a subclass, which has no schedule.

        In the main thread, SIGTERM, SIGHUP and SIGINT end the loop when the
        tick in progress is over. They end a pause at once. This also holds
        where these signals were ignored before. After the first of them all
        three have their default action, so that a second one ends the process.
        If the worker hangs in C code, only a second signal of the same kind
        ends the process. In a child that the worker forks, the three have
        their default action from the start. SIGUSR2 reopens the log files that
        zope.conf names.

        The loop belongs to the process that began it. If the worker or a
        subscriber forks, and the child comes back to the loop, the child is
        logged and ends at once. Its status is 0, the code of a SystemExit, or
        1 for another exception. Nothing that it shares with the loop is
        committed, aborted or closed. The same holds for `IInit`.

        A log handler that fails does not end the loop. Standard error is told
        once.

        When the loop has ended, site, interaction and signal handlers are as
        they were before.
        """

    def begin():
        """Begin a transaction and, if there is a principal, an interaction.

        The transaction carries what an undo log shows: the principal as its
        user, and the name of the worker as its description.

        Called at the beginning of each attempt, before the worker, and also
        before a loop with a schedule reads which run was the last. An
        exception is one of the tick. This is also what sets the site, and
        what looks at its place in the database. See `ICurrentSite`.
        """

    def commit():
        """Commit the transaction.

        Called when the worker has returned. It may commit several times, or
        swallow exceptions. The status of the transaction that the worker has
        left decides about the outcome of the tick: if the transaction was
        committed, the tick is a success, even after an exception. If it was
        not, the tick has failed. If the second phase of its commit has failed,
        nobody knows what was committed; see `ITickUncertain`. Whether a tick
        that has failed is tried again depends on the exception; there is no
        other attempt without one.

        The items of `ITransactionPerItem`, and what the worker commits itself,
        do not come here.
        """

    def abort():
        """Abort the transaction.

        Called after each attempt that has failed. An exception is logged. What
        an override leaves is aborted.

        An override that raises SystemExit or KeyboardInterrupt ends the loop.

        In a ``__call__`` of a subclass, items of `ITransactionPerItem` are
        counted from `begin` on, and `stop` and `stopMainLoop` end a run of
        them, between two items. `commit` and `abort` end this and the
        interaction, put the site from before `begin` back, and set `failed`
        and `status`. A child that the worker has
        forked ends when it comes to them. `abort` tells from the
        exception that is handled whether it ends the loop. All else that
        `__call__` describes is left to the subclass: the handlers of signals,
        further attempts, events, and the pause.
        """

    def stop():
        """End the loop as a signal does; from any thread or signal handler.

        If the loop has not begun yet, it will end before its first tick.
        """

    def stopMainLoop(signum, frame):
        """The handler of the signals that end the loop."""


class ITransactionPerItem(Interface):
    """Run each of many steps in a transaction of its own, or a few in one."""

    def __call__(func=None, *, attempts=1, on_failure='status', batch=1,
                 total=None):
        """Decorate a generator function that yields callables.

        The decorator is used with and without parentheses, on functions and
        methods with any arguments. A call of the result calls each item in
        turn and commits after each. What the generator does between two items
        belongs to the transaction of the second item, and is undone if that
        item fails.

        * An item that raises an exception is logged and aborted, and counts as
          failed. The next item is called.
        * An item with a conflict is logged and aborted, and counts as skipped;
          another run may yield the item again. With `attempts`, an item that
          fails with an error that the transaction calls retryable is called
          again first, up to that many times in all. Only the first attempt
          sees the changes that the generator itself has made. If the
          generator has fetched something from an `ITransactionalChannel` for
          the item, there is one attempt only: this is given back, and comes
          again. So fetch it in the item.
        * An item that fails in the second phase of its commit counts as
          uncertain, and is never called again; see `ITickUncertain`.
        * An item whose transaction was doomed is logged and aborted, and
          counts as failed.
        * SystemExit and KeyboardInterrupt are logged, abort the transaction
          and propagate.
        * An exception in the generator itself aborts the transaction and
          propagates.

        If items have failed or were skipped, a program that runs once ends
        with the status `WORKER_FAILED`, unless `on_failure` is 'ignore'.

        A signal that ends the main loop ends this loop too, between two items.
        If the program runs once, the generator is first asked for its next
        item, to see whether there is one; that item is not called.

        With `tick_timeout` of `IAppMain`, each item has this time: for the way
        of the generator to the item, all its attempts, and its commit. In a
        batch, the commit belongs to the last item.

        `batch` is the number of items that share one transaction, at least 1.
        What the generator does between the items, and at its end, belongs to
        this transaction. If an item fails, conflicts or dooms the transaction,
        or if the commit fails, the transaction is aborted. Then the items that
        were called in it are called again, one by one, each in a transaction
        of its own and with its own `attempts`. So each item counts as it would
        without a batch, and only those that are to blame are not stored. What
        the generator has changed in the transaction is undone. There are other
        ends of a batch:

        * An error in the generator aborts the transaction. The items before
          the error are called again, one by one, before it propagates.
        * When a signal ends the loop, what was called is committed. Of the
          items that are called again, those that are left count as skipped.
        * SystemExit and KeyboardInterrupt abort the transaction. All items in
          it count as skipped.
        * When the second phase of the commit fails, all items in the
          transaction count as uncertain, and none is called again.
        * When the worker itself commits, the items before are done; when it
          aborts, they are called again.
        * When the generator has fetched something from an
          `ITransactionalChannel`, this is given back, and comes again. So no
          item is called again; they count as skipped.

        `total` is the number of items that there will be, if this is known: an
        int, or a callable. The callable is called with the arguments of the
        generator function, before the generator begins, and in the same
        transaction; it may return None, and what it raises propagates.
        ValueError if the number is none. It is only for show.

        At the end one line is logged with the number of items that were done,
        failed and skipped; `IMainLoop.counts` has the numbers, too. The line
        is a debug message if there were no items, in one tick of many. If
        standard error is a terminal, a progress bar is shown there, and is
        removed if no item was run. Otherwise a line is logged every minute,
        when an item has ended, with these numbers, the rate and, if `total` is
        known, the time left.

        Returns the return value of the generator, so that a worker can return
        `gocept.runner.Exit`; None if a signal ended the loop.
        """


class IChannel(Interface):
    """``Channel(*, buffering=None, encoding=None, limit=1048576)``

    A stream of bytes in both directions that never blocks and never loses a
    byte.

    `buffering` says what `read` returns: all bytes that there are with None or
    'bytes', one line with 'line'. A line ends with a newline character. A line
    that is longer than `limit`, with its newline, is returned in pieces of
    that length.

    With an `encoding` the channel is a stream of text: `limit` counts
    characters, and ``''`` stands for ``b''`` in the descriptions below.
    Characters may be split anywhere. Bytes that cannot be decoded are shown as
    ``\\xff``. ``write`` takes text and bytes.

    A custom channel is any object with `read`, `write` and `close`: pollers,
    `LineChannel` and `TransactionalChannel` take it. If it can be polled, it
    has `get_fd` as well. Its `read` returns what there is, ``b''`` (or None)
    for nothing, and raises EndpointClosedException when no more will come. A
    poller reads it once when it is ready; if its attribute `buffering` is
    'line', until nothing is left. Another exception is logged, and the poller
    reports the end behind what it has read.

    A subclass of `gocept.runner.channel.Channel` has everything else that is
    described here, too; its constructor need not call ours. Instead of `read`
    it may have ``_read()``, which returns bytes as above: then `buffering` and
    `encoding` are done for it.

    One thread reads a channel; any thread may write. A channel is a context
    manager, which closes it. A channel that is garbage-collected before it was
    closed causes a ResourceWarning.
    """

    buffering = Attribute("'bytes' or 'line'.")

    encoding = Attribute('The name of the encoding, or None for bytes.')

    is_text = Attribute('Whether the channel returns text, not bytes.')

    closed = Attribute('Whether the channel was closed on this side.')

    kept = Attribute(
        'The number of bytes that were written but that the other side has '
        'not taken yet.')

    unread = Attribute(
        'Whether something was received that was not read yet.')

    partial = Attribute(
        'Whether the last read returned a piece of a line whose next piece is '
        'still to come.')

    def read():
        """Return the bytes that there are now, or one line.

        ``b''`` if there are none, or no complete line. (An empty line is
        ``b'\\n'``.) When the other side is gone, `read` first returns
        everything that was sent (the last line also without a newline), and
        then raises EndpointClosedException. So a loop that ends with ``b''``
        has got all that was sent, if the other side is gone by then. When the
        channel was closed on this side, `read` first returns what was received
        before.
        """

    def read_until(pattern, timeout=None):
        """Wait for `pattern`, and read up to its end.

        `pattern` is bytes (or text) or a compiled regular expression. Returns
        a pair: the data before the match, and the match, which is `pattern`
        itself or the match object. The data after the match is read next. A
        regular expression is searched in all data so far, when more has come;
        so write it in such a way that it cannot match too early. All data so
        far are in memory: have a `timeout` where a child may say too much.
        ``$`` also matches where the data so far ends; write ``\\n`` instead.

        DeadlineExceeded after `timeout` seconds; EndpointClosedException if
        the stream ends first. Both have the end of the data as `seen`, and all
        of the data can still be read. TypeError for a pattern of text in a
        channel of bytes; ValueError for an empty pattern. A channel without a
        descriptor cannot wait: either the pattern is there, or
        DeadlineExceeded is raised.
        """

    def write(*data):
        """Send chunks of bytes, without waiting.

        Bytes that the other side does not take now are kept. They are sent by
        later calls of the channel's methods, and by the poller that the
        channel is registered with. For the channel of a child, the poller of
        the child sends them; by default that is the poller of the background
        thread.

        * WriteBufferFull if more than `high_water` bytes are kept before the
          call; then nothing of `data` is sent or kept. Otherwise all of `data`
          is accepted, however long it is.
        * EndpointClosedException if the other side is gone, after `close` and
          `write_eof`, or if somebody else has closed the descriptor by its
          number. Nothing is kept then. No signal is sent. Another file that
          has got this number meanwhile is neither written to nor closed.
        * Another OSError, such as that of a full disk: the bytes that were not
          sent are kept, as in Python's own buffered files. Write or flush
          later.
        * NotImplementedError if the channel cannot be written to.
        """

    def write_eof():
        """Let the other side read the end, after the bytes that are kept.

        This closes the standard input of a process, which reads the end when
        nobody has the other end of the pipe any more: a process that was
        forked meanwhile, and goes on, has to close its copy of the channel.
        """

    def flush(timeout=None):
        """Wait until all bytes that are kept have been sent.

        DeadlineExceeded after `timeout` seconds; the rest is still kept. The
        errors are those of `write`.
        """

    def close():
        """Close the descriptors. A second call does nothing.

        Before that, the channel tries once to send the bytes that are kept.
        The number of bytes that cannot be sent is logged. A `flush` or
        `read_until` in another thread goes on until its deadline.
        """

    def closing():
        """Call this first in the `close` of a custom channel that can be
        polled, so that pollers report the end.
        """

    def get_fd():
        """Return the descriptor that the channel reads from.

        A poller calls this with a lock held, so it must not wait for anything.
        NotImplementedError if there is none; EndpointClosedException once the
        channel is closed.
        """

    def fileno():
        """Return the same as `get_fd`, but -1 once the channel is closed, or
        when somebody else has closed its descriptor."""


class IPipeChannel(IChannel):
    """``PipeChannel(faucet=None, sink=None, *, high_water=1048576,
    buffering=None, encoding=None, limit=1048576)``

    Reads from the descriptor `faucet` and writes to `sink`, which may be the
    same one. The channel owns the descriptors and closes them. They do not
    block while the channel is open.
    """


class ISocketChannel(IChannel):
    """``SocketChannel(sock, *, high_water=1048576, buffering=None,
    encoding=None, limit=1048576)``

    Reads from and writes to a connected stream socket. The channel owns the
    socket.
    """


class ILineChannel(IChannel):
    """``LineChannel(channel, *, encoding=None, limit=1048576)``

    Reads lines from another channel of any class. The other channel does
    everything else. ValueError for an encoding if the other channel has one
    already; TypeError for what is no channel.

    Each channel with ``buffering='line'`` is an instance of `LineChannel`, so
    that `isinstance` tells which channels give lines.
    """


class ITransactionalChannel(IChannel):
    """``TransactionalChannel(channel, *, redeliveries=5)``

    Another channel, of any class, whose data follow the transaction. The
    transaction is that of the thread which reads or writes, as
    ``transaction.get()`` returns it; whoever begins and ends it.

    **What is fetched** (by `read`, by `read_until`, or by the poller that the
    channel is registered with) belongs to the transaction in which it was
    fetched. If this transaction is aborted, or does not get through the first
    phase of its commit, the data are given back. Then they are fetched again,
    in the same order: by the next reads, or from the same poller, before all
    that came later. The end of the stream is given back as well. Other sources
    of the poller do not repeat anything. The rollback of a savepoint gives
    back what was fetched after it. What was given back ends the next pause.

    **What is written** is kept, and sent when the transaction is committed:
    after the database has finished. An abort forgets it; so does the rollback
    of a savepoint made before. It counts as `kept`, and `write` raises
    WriteBufferFull if there is too much. While something is kept for the
    commit, nobody can answer it. So `flush` raises `StillKept`, and so do
    `read_until`, if it would have to wait, and `IPoller.poll` without a
    timeout. The commit fails, and the transaction is
    aborted, if it is known by then that the other side does not read any more.
    If it is known only later, an error with the number of bytes is logged.

    When the second phase of the commit has begun, what was fetched is consumed
    and what was written is sent, whatever data manager fails.

    **What makes transactions fail** is not given back for ever. A transaction
    fails if it is aborted while an error is handled: an Exception, but none
    that the transaction calls retryable (such as a conflict), no OSError of
    the commit itself (such as a full disk), and not that a `commit` of
    `IMainLoop` has decided to commit nothing. Items that a failed transaction
    has fetched are given back in two halves, each for a transaction of its
    own, and so on down to a single item, so that the error shows which item is
    to blame. An item that has then come again `redeliveries` times, alone, and
    has failed each time is logged as an error with its whole text, counted in
    `skipped`, and not given back any more. (A WriteBufferFull is no such
    failure, as it passes when the child reads.) None stands for no limit. All
    that one transaction has read is one item if it has called `read_until`.

    In a dry run nothing is sent, and what was fetched is consumed. So use
    dry runs only with a child that ends with the program.

    Outside of a transaction (in explicit mode, and in hooks after a commit)
    the channel is like the other channel. In a transaction that has failed and
    was not aborted, fetching and writing raise TransactionFailedError.

    ValueError if the other channel is transactional already. A `LineChannel`
    of a transactional channel is a ValueError, too; make a transactional
    channel of the line channel.
    """

    redeliveries = Attribute('The number, or None.')

    skipped = Attribute('The number of items that were skipped.')


class ITestChannel(IChannel):
    """``TestChannel(*, buffering=None, encoding=None, limit=1048576)``

    A channel for tests. The test plays the other side, in the same thread or
    in another one. A poller takes it for any other channel: `put`, `put_eof`
    and `close` make it ready. It has a descriptor of its own once somebody
    asks for it; then it has to be closed like any other. `read_until` does not
    wait, not even when another channel wraps it: a test that has put too
    little gets DeadlineExceeded at once.
    """

    def put(*data):
        """Have chunks of bytes, or of text, come in.

        As in any stream, chunks have no borders: one `read` returns everything
        that was put before. EndpointClosedException after `put_eof` and
        `close`.
        """

    def put_eof():
        """End the stream as the other side would, after what was put."""

    def get():
        """Return what was written since the last call; ``b''`` for nothing."""


class ISource(Interface):
    """What a poller can wait for: a channel, a process or a timer.

    `gocept.runner.source` has the base class, and what pollers and sources
    tell each other.
    """

    def collect():
        """Return a sequence of the items that there are now, and whether they
        are the last ones.
        """


class IPoller(Interface):
    """``Poller(*, buffering=None)``

    Waits until one of many sources is ready, or the time is over.

    A poller belongs to the thread that calls `poll` or `pause`: while one
    thread does, these calls are PollerInUse in another thread. All other
    methods may be called from any thread, and take effect at once. A forked
    child has the poller without registrations, as these are the parent's. A
    poller is a context manager, which closes it.

    `buffering` is that of the channels of accepted clients.
    """

    wakeup_fd = Attribute(
        'A descriptor: any byte but 255 that is written to it is an '
        "`interrupt`. It is for the standard library's "
        '``signal.set_wakeup_fd()``.')

    def register(source, callback=None):
        """Wait for a channel, a process or a timer from now on.

        `poll` returns what the source has. With a `callback`, `poll` calls it
        with the same pair as its arguments instead; what the callback raises
        is logged. A second call for the same source only changes the callback.

        TypeError for anything that is no source and no custom channel (see
        `IChannel`); NotImplementedError for a channel without a descriptor;
        ValueError if another source with the same descriptor is registered. A
        regular file is always ready.
        """

    def unregister(source):
        """Do not wait for `source` any more; nothing if it is not registered.
        """

    def send_for(channel):
        """Send what `channel` keeps, now and in future, but do not read it.

        A channel that is registered needs no such call.
        """

    def add_server(sock, callback=None):
        """Accept connections of a listening socket, and register the clients.

        If a connection cannot be accepted, for instance because no descriptors
        are left, that is logged and tried again after a while. `unregister`
        takes the socket as well.
        """

    def poll(timeout=None):
        """Wait for `timeout` seconds at most (None: for ever), and return a
        list of pairs:

        * ``(data, channel)``: the bytes of one read; or, with
          ``buffering='line'``, a pair for each complete line of one read.
          ``(b'', channel)`` is the end of the channel (``''`` with an
          encoding), also if it was closed on this side. The end comes once,
          and the channel is not registered any more.
        * ``((address, channel), sock)``: a client, accepted and registered.
        * ``(status, process)``: a process has ended.
        * ``(expirations, timer)``: how often the timer was due since the last
          time.

        The list is empty when the time is over or `wakeup` was called.
        """

    def pause(timeout=None, over=lambda: False):
        """Wait for `timeout` seconds at most, until there is something new.

        Nothing is read. A source that is ready ends the pause, and does not
        end another pause before somebody has fetched from it: with `poll`, or
        by a read of the channel itself. If one fetch leaves data in the
        source, these end the next pause. A timer ends each pause in which it
        is due, whoever polls it.

        `over` is called before each wait, also after a signal; the pause ends
        if it returns something true.

        Returns True if the pause was ended so, by something new or by
        `wakeup`; False when the time is over.
        """

    def wakeup():
        """End the wait in progress, or else the next one.

        From any thread and from signal handlers; nothing once the poller is
        closed.
        """

    def interrupt():
        """Like `wakeup`, but a pause only asks whether it is over."""

    def close_all():
        """Unregister and close all registered channels and servers."""

    def close():
        """Close the poller's own descriptors, but none of the sources'.

        A second call does nothing. Afterwards `poll`, `pause` and `register`
        raise RuntimeError.
        """


class ITimer(ISource):
    """``Timer(seconds, interval=None)``

    Due `seconds` after it is registered, and every `interval` seconds from
    then on. A timer without an interval is not registered any more once it was
    due.
    """


class IWallTimer(ISource):
    """``WallTimer(at)``

    Due once, at the instant `at`: a number of seconds since the epoch, as
    `time.time()` gives it. The timer is due sooner if the clock of the system
    is set meanwhile, or goes on after the machine was suspended. So whoever
    waits looks at the clock then. A system without a timerfd, and a process
    that has no descriptor left, have whoever waits look each second.

    The timer is a context manager, which closes it. ValueError if `at` is no
    instant.
    """

    at = Attribute('When the timer is due, at the latest.')

    def close():
        """Close the descriptor, and be due no more."""


class IProcess(ISource):
    """``Process(command, *, ...)``: one child, started at once.

    `command` is a list of arguments, or a string that is split as a shell
    would split it. ValueError, TypeError and LookupError for keywords that
    cannot be meant; OSError if the program cannot be run, as from
    `subprocess.Popen`; ShortageError, an OSError, if this process or the
    machine has no descriptors, processes or memory left; NotImplementedError
    on a system other than Linux (4.18 or later). A signal handler that raises
    an exception during the start leaves no child behind. The keywords and
    their defaults are as follows.

    How the child is started:

    * ``shell=False``: whether ``/bin/sh`` runs `command`, a string.
    * ``cwd=None``: the directory that it starts in; None for ours.
    * ``env=None``: a dictionary that replaces the environment; None for ours.
      ``extra_env={}`` is added to it; a variable whose value is None is
      removed. What systemd tells a service in variables (``NOTIFY_SOCKET``,
      ``WATCHDOG_PID``, ``WATCHDOG_USEC``, ``LISTEN_PID``, ``LISTEN_PIDFDID``,
      ``LISTEN_FDS``, ``LISTEN_FDNAMES``) is not inherited; name a variable in
      `env` or `extra_env` to pass it on.
    * ``user=None, group=None, extra_groups=None``: names or numbers. With a
      user but no group, the child gets the groups of that user and none of
      ours; LookupError for a number of a user whose group is not known. As
      under systemd, ``HOME``, ``USER`` and ``LOGNAME`` are those of the user,
      unless `env` replaces the environment or `extra_env` names them. Our
      own user needs no privileges.
    * ``umask=-1``: the file mode mask; -1 for ours.
    * ``rlimits={}``: limits by their lower-case names, such as ``nofile``. The
      value is a number for both, or a pair of the soft and the hard limit; -1
      means no limit.
    * ``setpgrp=False``: whether it gets a process group of its own, so that
      signals for our group (as from the keyboard) do not reach it; if it reads
      from the terminal, the system stops it. ``setsid=False``: whether it gets
      a session of its own, so that it has no terminal.
    * ``stdin='inherit', stdout='inherit', stderr='inherit'``: 'inherit',
      'null', 'pipe', a path (a string with a slash, or a path object; output
      is appended), a file or a descriptor. `stderr` may be 'merge', to go
      where `stdout` goes. No start waits for the other end of a FIFO: as
      `stdin` it is also opened for writing, so that the child waits for data
      and finds no end; as output it needs a reader, otherwise the start is an
      OSError (ENXIO).
    * ``pass_fds=()``: descriptors that it gets under the same numbers.
    * ``die_with_parent=False``: a signal that the system sends the child when
      we end, in whatever way; True is SIGKILL. Children of the child do not
      get it.
    * ``detached=False``: whether the child is meant to outlive us. It gets a
      session of its own and no mark, and is not ended at exit. A Python
      program gets our ``sys.path``.
    * Other keywords are those of `subprocess.Popen`, without ``preexec_fn``
      and the keywords that make text of streams. ``popen_kwargs={}`` are
      handed to Popen unchanged (a ``preexec_fn`` among them may hang where
      there are threads).

    How you talk to it: ``buffering``, ``encoding``, ``limit`` and
    ``high_water`` are those of its channels.

    How it is watched:

    * ``poller=None``: the poller that the process is registered with, and that
      sends what its channels keep; None for that of the background thread.
    * ``on_start=None``: called with the process before its end can be noticed.
      ``on_end=None``: called with the process when it was reaped, once, by the
      thread that reaped it or by one that ends it.
    * ``name``: what messages call it; by default the name of the program.
    * ``servers=None``: a callable that yields the pids of daemons that do the
      work of the child after the child itself has ended. Only children of ours
      that are not a `Process` themselves count. They are descendants of the
      child, even if they have left its session and carry no mark any more.

    How it is ended:

    * ``stop_signal=SIGTERM``, ``stop_timeout=10``, ``kill_signal=SIGKILL``:
      see `terminate`. The program does not inherit that the two signals are
      ignored or blocked here, as by a shell for what is behind ``&``; it does
      with ``restore_signals=False``.
    * ``adopt=False``: whether we become the parent of descendants that have
      lost their own parent, until this child was ended by `terminate`. Those
      that are known to descend from this child end with it. They are known by
      a mark in their environment; or, if they have overwritten it, by their
      session or process group. They are reaped as they end, within a second or
      so. Meanwhile, orphans of children of other libraries come to us, too.
      Of these, those are reaped that are in a session which is neither ours
      nor their own, as they cannot be a child that a library waits for. Others
      that end meanwhile stay zombies until we exit.

    A child that has not ended when the interpreter exits is ended then, with
    less patience: see `exit_timeout`. Ctrl-C kills the children at once then.
    Afterwards, the start of a child that is not detached is a RuntimeError.
    Nothing is ended by a forked copy of the interpreter. A worker of
    `multiprocessing` ends its children when it returns; one that is killed by
    a signal, as by ``terminate``, cannot: start these children with
    `die_with_parent`. A process is a context manager, which closes it.
    """

    pid = Attribute('The number of the child.')

    args = Attribute('The list of arguments.')

    name = Attribute('What messages call the child.')

    returncode = Attribute(
        'None until the end of the child was noticed; then its status, or -N '
        'if signal N ended it, or `gocept.runner.process.LOST_STATUS` if '
        'others have reaped it.')

    lost = Attribute(
        'Whether others have reaped the child, so that its status is not '
        'known. A lost status counts as no failure.')

    status_text = Attribute('The status for messages, which may be unknown.')

    channel = Attribute(
        'An `IChannel` that reads the standard output and writes to the '
        'standard input of the child, as far as these are pipes; or None.')

    stderr = Attribute(
        'An `IChannel` that reads the standard error of the child, or None.')

    exit_timeout = Attribute(
        'The number of seconds that the child has at our exit, until it is '
        'killed: `stop_timeout`, 30 at most; or 5 if no `stop_timeout` was '
        'given. You may change it.')

    killed = Attribute('Whether `terminate` had to use its `kill_signal`.')

    finished = Attribute(
        'Whether `terminate` has ended the child and all its descendants. A '
        'child that is finished is not looked for again.')

    in_kernel = Attribute(
        'Whether it is the child of a kernel. Then `close` does not end it.')

    was_found = Attribute(
        'Whether it ran already in the kernel, and was not started here.')

    is_ours = Attribute(
        'Whether it is a child of this process, not of one that this process '
        'was forked from.')

    def channels():
        """Iterate over `channel` and `stderr`, without None."""

    def poll():
        """Look whether the child has ended, and return `returncode`.

        None for ever in a forked copy of its parent.
        """

    def wait(timeout=None):
        """Wait for the end of the child, and return `returncode`.

        DeadlineExceeded after `timeout` seconds; RuntimeError in a forked copy
        of its parent.
        """

    def send_signal(signum):
        """Send a signal to the child alone; nothing if it has ended.

        A signal handler may call this, too.
        """

    def signal_group(signum):
        """Send a signal to the process group of the child, if the child leads
        one; otherwise to the child.

        When the child has ended, the signal goes to the processes that it has
        left behind in its group.
        """

    def signal_all(signum):
        """Send a signal to the child and its descendants, once to each.

        The call does not wait. A process that is forked meanwhile may miss the
        signal. RuntimeError in a forked copy of the parent. PermissionError if
        a process may not be signalled, ShortageError if no descriptor was left
        to look for descendants: the others have got the signal all the same.
        """

    def terminate(signum=None, timeout=None):
        """End the child and its descendants, and return `returncode`.

        The signal (`stop_signal` by default) goes to the child, and to its
        process group if the child leads one. When the child has ended, its
        other descendants get the signal. A process that is stopped is
        continued. Each that is left after `timeout` seconds (`stop_timeout` by
        default) gets `kill_signal`, and `killed` becomes true.

        Descendants are the children of the child and their children and so on,
        the members of its process group, and those that have left both and are
        known by a mark in their environment.

        If the child has ended already, its descendants are ended.
        DeadlineExceeded if a process does not end even though it was killed;
        RuntimeError in a forked copy of the parent.

        When this returns, `on_end` was called. If another thread calls it,
        this waits until that has returned, one second at most: `on_end` may
        want what the caller has. In `on_end` itself it does not wait.
        """

    def settle(seconds=1.0):
        """Wait until `on_end` has returned, if the end was noticed.

        Returns False if that takes longer. In `on_end` itself, it returns True
        and does not wait. It does not wait for the child either.
        """

    def close():
        """End the child and close its channels; read them before.

        A forked copy of the parent closes the channels only.
        """


class IRunner(Interface):
    """``Runner(extra_paths=None, *, poller=None, kernel=None, instance='')``

    Starts applications that are known by name. Each start has an alias, so
    that one application may run several times.

    `extra_paths` are directories that are appended to the PATH of all
    children. `poller` is a poller of your own. While your program waits with
    it, this poller sends the bytes that channels keep, notices the ends of
    children, and restarts them. With None, the poller of the background thread
    does this.

    With a `kernel`, all applications live in that `IKernel`, unless `add` says
    otherwise. There, they are called like their alias; with an `instance`,
    that and a dot come first. So each program that shares a kernel needs an
    instance of its own. An application that lives in a kernel differs in this:

    * It is not ended when the runner is closed, or when this program ends, in
      whatever way. Only `terminate` ends it, also where it was not started
      here, and has the kernel forget it and those before it.
    * A start finds it, if it runs, and then starts nothing. What it has said
      since then, and nobody has acknowledged, is read first. A socket is
      connected to. The channel acknowledges what it has returned when it is
      asked for more; if the application is transactional, when the transaction
      is committed. So after the program was killed, the next one reads on
      behind the last line that was committed.
    * If it has ended without us, a start logs this, sends `IChildEnded`, and
      starts it anew. `get_channel` returns the channel with the rest that
      nobody has acknowledged, until all of it is read. What is written to that
      channel goes to the new process.
    * Restarts are up to us: while no program has it, nobody restarts it.
    * What is written is kept by the kernel, up to a mebibyte, until the child
      reads it; the end of the standard input is left open for the next one.
    * A child that says more than a mebibyte that nobody reads has to wait, as
      with a pipe.
    * 'inherit' is nothing that a child of the kernel could have: its standard
      error is logged, by ``gocept.runner.spawn``, unless `stderr` says
      otherwise; ValueError for the other streams, for paths in their place,
      and for ``umask``, ``extra_groups``, ``pass_fds``, ``die_with_parent``,
      ``adopt`` and ``popen_kwargs``. It always has a session of its own.

    Several threads may use a runner. It is a context manager, which closes it.
    """

    def add(name, command, **kwargs):
        """Add an application, or replace it.

        `command` and the keywords are those of `IProcess` (without `poller`,
        `on_start`, `on_end`, `servers` and `name`), and:

        * ``type='stdio'``: the channel of the application is the standard
          output and input of the process. Standard error is ours, by default.
          With 'socket' the channel is connected to the Unix socket that the
          process listens on.
        * ``socket``: the path of that socket. It may also be given to `start`
          and `ensure_running` only. A relative path is seen from `cwd`, as the
          process sees it; if the process listens at that path as we see it,
          this is found as well.
        * ``start_timeout=30``: the number of seconds until the process has to
          listen.
        * ``buffering``, ``encoding``, ``limit`` and ``high_water`` are those
          of the channels.
        * ``restart='never'``: or 'on-failure' (after a status other than 0),
          or 'always'. ``restart_delay=0.1`` is the number of seconds before
          the first restart. The delay doubles before each further one, up to a
          minute. ``restart_limit=5`` is the number of restarts in a row; a
          process that has run for 10 seconds ends the row.
        * ``transactional=False``: whether the channels are transactional, see
          `ITransactionalChannel`. ``redeliveries=5`` is that of the channels.
          Without ``transactional`` they are a ValueError.
        * ``kernel``: the `IKernel` that it lives in, in place of that of the
          runner; None for a child of ours. ``on_change='keep'`` says what a
          start does that finds it, but started by another declaration: it is
          kept as it is, or, with 'replace', ended and started anew; both with
          a warning. With 'refuse', the start is a ProcessExistsException if
          the command is another one. What is compared otherwise are the
          command, directory, user, limits and streams, and the variables that
          are declared.

        The standard output and error of a 'socket' application are logged by
        ``gocept.runner.spawn`` (level INFO), unless you say where they go. The
        last lines are part of error messages.

        TypeError, ValueError and LookupError for keywords that cannot be
        meant.
        """

    def update_config(config):
        """Add several applications: a dictionary of keywords by name.

        ``{'app': {'command': 'cat', 'buffering': 'line'}}``. If one of them is
        wrong, none is added.
        """

    def start(app_name, alias=None, with_args=None, **kwargs):
        """Start an application under `alias`, or under its own name.

        `with_args` is a list of further arguments. The keywords replace those
        of the configuration.

        ProcessExistsException if the alias runs already; KeyError for an
        unknown application; ValueError for ``type='socket'`` without a
        `socket`; OSError if the program cannot be run, and
        KernelError if it cannot be run in the kernel.

        For a 'socket' application the call returns when the channel is
        connected. A stale socket, or an empty regular file in its place, is
        removed before. StartError if something else is there, if another
        process has bound the socket or listens in place of this one, or if the
        process ends before it listens (with its status and output);
        DeadlineExceeded if it does not listen in time. In all these cases the
        process has been ended.
        """

    def ensure_running(app_name, alias=None, with_args=None, **kwargs):
        """Do nothing if the alias runs; otherwise `start` it."""

    def get_channel(alias, stream=None):
        """Return an `IChannel` to the process, or None.

        `stream` 'stdout' is the standard output and input of the process,
        'stderr' its standard error; each is None unless it is a pipe. Without
        `stream` it is the channel that belongs to the type of the application.

        None if the alias does not run; but a channel in which something is
        left to be read is returned. After a restart there is a new channel,
        and the one of the process before is closed with the next restart. If
        something was given back to a transactional channel which is not
        registered with a poller, this channel is returned first. For
        a 'socket' application the call waits until the channel is connected,
        as `start` does, also if you have closed the one before, or the server
        has closed it and all was read. The errors are those of `start`, but
        the process is not ended, unless it has listened before and does not
        listen any more: then it has failed. ValueError for an unknown stream.

        The runner that ZCML registers starts what is declared and was not
        started yet. It raises KeyError for an unknown alias, and ValueError
        for the 'stderr' of a declared application without such a channel.
        """

    def get_process(alias):
        """Return the `IProcess`, also if it has ended.

        KeyError for an unknown alias.
        """

    def running(alias):
        """Return whether the process runs; False for an unknown alias.

        The runner that ZCML registers raises KeyError for an unknown alias.
        """

    def status(alias):
        """Return the status that the process has ended with, as
        `IProcess.returncode`.

        None while it runs. KeyError for an unknown alias.
        """

    def state(alias):
        """Return what may be expected of the alias:

        * 'running': its process runs.
        * 'restarting': its process has ended, and is started again soon.
        * 'given-up': its process has failed, and is not started again, as
          `restart` or `restart_limit` say so. Nobody has asked for this end.
          Who waits with the `poller` of the runner is woken then.
        * 'ended': its process has ended in order, or was ended by `terminate`
          or `close`. So is what is declared in ZCML and was not started yet.

        KeyError for an unknown alias.
        """

    def aliases():
        """Return a sorted list of all aliases that were ever started.

        Each one is remembered with its status, in some 8 KiB of memory: start
        many short jobs under a few aliases, again and again.
        """

    def give_up(alias):
        """Do not restart the alias any more. KeyError for an unknown alias."""

    def terminate(alias, signum=None, timeout=None):
        """End the process as `IProcess.terminate` does; close its channels.

        It is not restarted. KeyError for an unknown alias. The errors are
        those of `IProcess.terminate`; the channels are closed even then.
        """

    def close():
        """End all processes side by side, and close their channels.

        Afterwards applications may be started again. A forked copy of the
        parent closes the channels only. Of processes that live in a kernel
        only the channels are closed.
        """


class ICondition(Interface):
    """What an executor waits for. Several executors may share a condition.

    * ``tcp(host, port, *, send=None, expect=None)``: connections to the port
      are accepted. With port 0 a free port is chosen; the attribute `port`
      tells it, and ``{port}`` in the command and in `envvars` is replaced by
      it. The port is held until the child listens. So the child must set
      SO_REUSEADDR, as servers do.

      With `send` or `expect`, the server must also answer. The bytes `send`
      are sent, if there are any, and what comes is the answer. `expect` is a
      regular expression, in which ``^`` and ``$`` are those of a banner (see
      `output`) and which is searched for in the answer as UTF-8; or a function
      that is called with the bytes of the answer each time more of it has
      come, and returns whether it is right. Without `expect`, any answer is.
      The server is asked again, on another connection, after it has closed
      one, or has sent 65,536 bytes without the right answer. It is also asked
      again when it has been quiet for long: after a part of an answer for 0.1
      seconds, later a fifth of the time so far; without a byte for 1 second,
      later half of the time so far. The connections before stay open, up to
      10, as their answers may still come. TypeError if `send` is no bytes,
      or `expect` is none of the two.
    * ``postgresql(host, port=5432, *, user='postgres', dbname='postgres')``: a
      PostgreSQL lets clients in. A `host` that begins with ``/`` is the
      directory of its Unix sockets. It is asked for a session (protocol 3.0,
      without TLS). It is ready if it asks for a password or the like, if the
      session has begun, and if it refuses the session with any error but
      57P01, 57P02 and 57P03: it starts up, shuts down or recovers. So neither
      a password nor the right `user` and `dbname` are needed.
    * ``redis(host, port=6379, *, password='')``: a Redis answers PING with
      PONG. A `host` that begins with ``/`` is the path of its Unix socket.
      NOAUTH and NOPERM are right answers as well, as those can use it who know
      the password, or may do something else. All other errors are wrong, such
      as LOADING, MASTERDOWN, BUSY and MISCONF. A Redis that asks for a
      password says NOAUTH even while it loads its data; with the `password`
      (of the default user), this time is waited for, too.
    * ``http(url, status=r'^2\\d\\d$', method='HEAD', payload=None,
      headers=None, request_timeout=None, *, ssl_context=None, expect=None)``:
      a request is answered with a status that equals `status` or matches it.
      `payload` is a dictionary, which is sent as a form. `request_timeout` is
      the number of seconds that one request may take; None or 0 stands for the
      whole time of the start. `expect` is called with the
      `http.client.HTTPResponse`, in a thread of its own, and returns whether
      it is the right one. With https, `ssl_context` is by default one that
      verifies.
    * ``unix(path, *, send=None, expect=None)``: connections to a Unix socket
      are accepted, and answered as with ``tcp()``.
    * ``output(banner, failure=None)``: a line of the output, complete or not,
      matches `banner`, a regular expression in which ``^`` is the beginning of
      a line, and ``$`` the end of a complete line or of the output. A match of
      `failure` ends the wait. The output is decoded with the ``encoding`` of
      the executor. Of a line that is longer than 65,536 characters only the
      end is searched.
    * ``pid_file(path)``: the file is written after the start. A process that
      the file names before the start is in the way if it may be what the
      command starts. The file is stale if nobody has the number any more; or
      if it is the number of this process, of a parent, grandparent and so on,
      of a child of ours that was not started for this file, or of another
      program. A shell, or a script for a shell, may start any program.
    * ``exits_zero(command)``: a command ends with status 0. It is run in the
      environment and the directory of the child. ``{port}`` in its arguments
      is replaced as in the command of the child.
    * ``notified()``: the child tells that it is ready. It writes a newline to
      the descriptor ``$NOTIFY_FD`` (which also replaces ``{notify_fd}`` in its
      command), or it sends ``READY=1`` to ``$NOTIFY_SOCKET``, see
      sd_notify(3). The socket is abstract: from another network namespace,
      only the descriptor can be reached.
    * ``all_of(condition, ...)``: each of the conditions has held once.

    ValueError for parameters that cannot be meant.
    """

    def for_child(setting):
        """Return a condition for one start: itself, or a copy.

        `setting` tells how the child is started: its `command`, `shell`,
        `cwd`, `env`; and `replaced` of the condition of the
        executor.
        """

    def check():
        """Return a `gocept.runner.executor.Check`, for one start."""

    def holds_already(poller, deadline):
        """Return a text that says how the condition holds before the start of
        a child, so that it would tell nothing about the child; '' if it does
        not hold.
        """

    def replaced(text):
        """Return `text`, a part of a command, with what the condition has
        chosen.
        """

    def for_found():
        """Return what of the condition can be looked at in a child that was
        ready before, and was found in a kernel; None if nothing can.

        A port can be connected to again, but a banner is not said again.
        """

    def servers():
        """Yield the pids of the processes that make the condition hold.

        These processes count as descendants of the child, even when the child
        has ended: if the child has become a daemon, there may be no other sign
        that the daemon comes from this child. Only children of ours that are
        not an `IProcess` count.
        """


class IExecutor(Interface):
    """``SimpleExecutor(command, cwd=None, shell=False, timeout=3600,
    sleep=0.1, stop_signal=SIGTERM, kill_signal=SIGKILL,
    expected_returncode=None, envvars=None, stdin=PIPE, stdout=PIPE,
    stderr=None, popen_kwargs=None, *, stop_timeout=None, output_size=2**20,
    log_file=None, requires=(), die_with_parent=False, name='',
    kernel=None)``

    Starts one child at a time, as often as you like, and ends it with all its
    descendants. An executor is a context manager, which starts and stops it.
    If an executor is garbage-collected, the background thread ends its child.

    * `command` is a list of arguments, or a string that is split as a shell
      would split it. With `shell`, ``/bin/sh`` runs it. It may be empty as
      long as nobody starts the executor, which would be a ValueError.
    * `timeout` is the number of seconds that a start may take; None waits
      without an end. A stop may take as long until the child is killed, unless
      `stop_timeout` says otherwise.
      At our exit it is killed after 5 seconds at most, or 30 if you have given
      a `stop_timeout`.
    * `sleep` is the longest pause, in seconds, between two probes.
    * `envvars` are added to our environment. ``{port}`` in a value is replaced
      by the port that the condition has chosen.
    * `stdin`, `stdout` and `stderr` are those of `subprocess.Popen`.
    * `popen_kwargs` are other keywords of `subprocess.Popen`, handed to it
      unchanged. A parameter that is given comes before the same key, and
      `envvars` are added to an ``env``. ``encoding`` and ``errors`` are those
      of `output`. A ``preexec_fn`` is ignored, with a warning: the child has a
      session of its own anyway, and the function could hang where there are
      threads.
    * `output_size`: everything that the child writes to pipes is read at once.
      So many bytes at the end of each stream are kept, and can be read.
      Everything is appended to `log_file`, also when the file was renamed or
      removed meanwhile. What cannot be written at once (the disk is full, or
      nobody reads a FIFO) is lost, which is logged with the number of bytes;
      the next piece is tried again.
    * `requires` are other executors, see `gocept.runner.executor.start_all`.
    * `die_with_parent` is that of `IProcess`.
    * `name` is for messages and events.
    * `kernel` is the `IKernel` that the child lives in, under the `name`. It
      goes on when the ``with`` statement is left, when this program ends, and
      when an interruption such as Ctrl-C ends a start; `stop` and `kill` end
      it, and so does a start that fails. A start finds it, if it runs, and
      looks at the condition as far as `ICondition.for_found` says. It is an
      ExecutorError if another command has the name. Of the output, which is
      kept up to a mebibyte, the start sees what no other one has seen. The
      streams that would be ours are pipes. ``{notify_fd}``, ``pass_fds`` and
      daemons are not possible. Port 0 is a ValueError: the next program would
      choose another port, and not find the child.

    The child is started in a session of its own, with ``adopt=True``, see
    `IProcess`.
    """

    command = Attribute(
        'The command as text. If you set it, the next start goes by it.')

    command_parts = Attribute(
        'The command as a list. If you set it, the next start goes by it.')

    name = Attribute('Its name, by default that of its program.')

    child = Attribute(
        'The `IProcess`, which events carry; None before the start and after '
        'the stop.')

    process = Attribute(
        'The child as an `IPopen`; None before the start and after the stop.')

    envvars = Attribute('The environment of the child, a dictionary.')

    requires = Attribute(
        'A tuple of executors that have to be started before this one.')

    kernel = Attribute('The `IKernel` that the child lives in, or None.')

    dropped = Attribute(
        'The number of bytes of the output that are not kept any more.')

    def start():
        """Start the child, and return the executor when the child is ready.

        If the child runs already, nothing happens; if it has ended, it is
        started anew. OSError if the program cannot be run.

        What takes longer than 5 seconds is logged: what is waited for, and
        what was seen last.
        """

    def ensure_running():
        """Start what the executor requires and then itself, unless it is up.

        Returns the executor when it is ready. If another thread is starting
        the executor, this waits for that thread. A subscriber that is told of
        the start gets the executor at once. The errors are those of `start`;
        ValueError if executors require each other; ExecutorError if two
        threads wait for each other; RunnerError in the background thread,
        unless the executor is ready.
        """

    def stop(stop_signal=None, expected_returncode=None):
        """End the child and its descendants; returns the executor.

        A process that is left when the time is over gets the kill signal. If
        there is no child, nothing happens. ProcessFinishedWithError if the
        status of the child is none of 0, `expected_returncode` and minus the
        signal; even then the child has ended. A status that is not known, as
        somebody else has reaped the child, is no failure. ExecutorError if a
        process cannot be ended; then `stop` may be called again.
        """

    def kill(wait=True, sig=None):
        """Send the child and all its descendants the kill signal, or `sig`.

        Returns the executor; without `wait` at once.
        """

    def leave():
        """Let a child go on that lives in a kernel, but watch it no more.

        Nothing happens to any other child.
        """

    def stopped():
        """Return a context manager: the executor is stopped inside, and is
        started again at the end.

        If the executor is not up before, it is not started at the end.
        """

    def running():
        """Return whether the child runs."""

    def is_up():
        """Return whether the child runs, or has become a daemon that runs.

        A child has become a daemon if it has ended with status 0 and has left
        a process behind.
        """

    def output():
        """Return a text stream of what the child writes.

        Reading from it waits for output that has not come yet. In the
        background thread, which would wait for itself, that is a RunnerError.
        If bytes were dropped that were not read, a line in brackets says how
        many. ``fileno()`` is for `select` and the like: a descriptor that is
        readable as long as ``readline()`` does not wait, also at the end. It
        has nothing to read itself. With ``text=False`` or
        ``universal_newlines=False`` in `popen_kwargs`, it is a stream of
        bytes. None before the start, and if the standard output is not a pipe.
        """

    def err_output():
        """Return the same for the standard error of the child."""

    def wait_for(condition):
        """Call `condition` until it returns something true; returns the
        executor.

        It is called when something has happened to the child, and after pauses
        of 1 ms at first, which grow to `sleep`. TimeoutExpired when the time
        of the start is over. After this and any other exception the child has
        been killed.
        """

    def check_timeout():
        """Return whether there is time left for the start or stop in progress.
        """


class IPopen(Interface):
    """The child of an executor, with what `subprocess.Popen` has.

    A context manager, which at the end closes `stdin` and waits. Use it where
    a program expects a Popen. `IExecutor.child` can do more: it ends what
    descends from the child, and it can be polled.

    RunnerError if `wait` or `communicate` would wait in the background thread,
    which reads what the child writes. A write is sent later there.
    """

    args = Attribute('The list of arguments; with `shell` the command.')

    pid = Attribute('The number of the child.')

    returncode = Attribute('That of the `IProcess`.')

    stdin = Attribute(
        'A file that writes to the child; None if its standard input is no '
        'pipe. A write waits until the child has room for it; BrokenPipeError '
        'if nobody reads.')

    stdout = Attribute(
        'What `IExecutor.output` returns; None if that is no pipe.')

    stderr = Attribute(
        'What `IExecutor.err_output` returns; None if that is no pipe.')

    def poll():
        """Look whether the child has ended, and return `returncode`."""

    def wait(timeout=None):
        """Wait for the end of the child, and return `returncode`.

        `subprocess.TimeoutExpired` after `timeout` seconds.
        """

    def communicate(input=None, timeout=None):  # noqa: A002
        """Write `input` and close `stdin`; then return all that comes.

        A tuple of what `stdout` and `stderr` give up to their end, when the
        child has ended. Nothing of this is dropped meanwhile, however much it
        is. Another call returns the same. `subprocess.TimeoutExpired` after
        `timeout` seconds, with what has come; another call, without `input`,
        goes on then. ValueError for an `input` when `stdin` was closed before.
        A stream that was closed before gives nothing.
        """

    def send_signal(sig):
        """Send a signal to the child alone; nothing if it has ended."""

    def terminate():
        """Send SIGTERM to the child alone, and return at once."""

    def kill():
        """Send SIGKILL to the child alone, and return at once."""


class ICheckedExecutor(IExecutor):
    """``Executor``: the base of executors that look for readiness.

    Override `pre_start_check` and `after_start_check`, or assign functions to
    these names of an object. If you do neither, `start` waits for nothing.
    """

    def start():
        """Start the child, and wait until `check_subprocess` returns true.

        RunnerError in the background thread, on which the start relies.
        AlreadyRunning if `pre_start_check` returns true, as it may for a
        daemon whose parent has ended with status 0; TimeoutExpired;
        ProcessExitedWithError if the child fails before it is ready, or ends
        although only the child itself could become ready. In all these cases
        every process that was started has ended.
        """

    def pre_start_check():
        """Return whether the sign of readiness is there before the start."""

    def after_start_check():
        """Return whether the child is ready.

        False if there is none. If the child was ready, a `IConditionExecutor`
        looks again, which takes a second at most. It takes for granted what it
        cannot look at again: a line of output, a message, a pid file.
        """

    def check_subprocess():
        """Return `after_start_check`; False if there is no child.

        During a start, ProcessExitedWithError if the child has ended with a
        failure.
        """


class IConditionExecutor(ICheckedExecutor):
    """``ConditionExecutor(command, condition, **kwargs)``

    Waits for a condition. The keywords are those of `IExecutor`. The usual
    conditions have executors with a name, whose parameters are attributes. You
    may change these, and a start goes by what they are then:

    * ``OutputExecutor(command, banner, *, failure=None)``. After the start,
      `output` continues behind the line of the banner.
    * ``TCPExecutor(command, host, port, *, send=None, expect=None)``, see
      ``tcp()``.
    * ``HTTPExecutor(command, url, ...)``, a TCPExecutor; see ``http()``. `url`
      is as from ``urlsplit``, and may be set to a text. It sets `host` and
      `port`; if it names no port, that is `DEFAULT_PORT` (80) or 443. `status`
      sets `status_re`, its regular expression. Any process that listens on the
      port is in the way of a start.
    * ``PidExecutor(command, filename)``. A file whose process may be the
      server is in the way of a start; a stale file is not, see ``pid_file()``.
      ValueError for no `filename`.
    * ``UnixSocketExecutor(command, socket_name, *, send=None, expect=None)``,
      see ``unix()``. The attribute for `socket_name` is `socket`.
    * ``PostgreSQLExecutor(command, host, port=5432, *, user='postgres',
      dbname='postgres', stop_signal=SIGINT)``, see ``postgresql()``. After
      SIGTERM, a PostgreSQL would wait until all clients have gone.
    * ``RedisExecutor(command, host, port=6379, *, password='')``, see
      ``redis()``.
    """

    condition = Attribute('The `ICondition`.')


class IRunnerConfig(Interface):
    """``runner_config(site=None, *, factory=None, setup=None, zcml='',
    product_config=None, storage=..., more='')``

    For tests: a temporary directory with a ``zope.conf`` and a database. This
    is a context manager, which closes it. The fixture of pytest with this name
    is called in the same way, and closes it when the test ends.

    * `site` is the name of an object in the root folder, which is made, and
      which becomes the site of the runs; None for the root folder.
      `factory` is called without arguments and returns that object, a folder
      by default. The object gets a site manager unless it has one.
    * `setup` is called with the site, in a transaction that is committed.
    * `zcml` is the path of a ZCML file; or the text of one; or some directives
      without ``<configure>`` around them. The prefix ``runner:`` is known
      there, and ``site.zcml`` and ``configure.zcml`` of this package are
      included before, as they are with no `zcml` at all.
    * `product_config` is a dictionary of dictionaries: the settings of each
      section ``<product-config>``.
    * `storage` is the section of the storage. By default it is a FileStorage,
      which later runs and other processes see, too.
    * `more` is added to the ``zope.conf``: a ``<zodb>`` or an ``<eventlog>``.

    A mistake in the ZCML is zope.configuration's ConfigurationError, whose
    message is the line that a program would end with.

    Each run, and each block of `site` and `root`, finds this process as if it
    were new. When it is over, components, security, product configuration and
    loggers are as they were before. No log is set up: messages go where the
    test runner has them, or warnings to standard error. One thread at a
    time; RuntimeError in another one. A forked copy of the process removes
    nothing; one that would close it is ended.
    """

    path = Attribute('The path of the zope.conf, for other processes as well.')

    directory = Attribute(
        'The `pathlib.Path` of the temporary directory, for more files.')

    def run(program, *args):
        """Run a program to its end, and return `IMainLoop.status`.

        `program` is what `appmain` and `once` make, or the name of a worker
        that ZCML declares. The site is that of this configuration, even if
        ZCML names another one; the arguments are those that ZCML names if
        there are no `args`. No lock is taken, as nobody else has the database.
        What ZCML declares as eager is started before, and all children are
        ended afterwards. Pauses and limits are those of
        `run_ticks`. What the worker raises is logged and makes the status.
        What keeps the program from its first tick is raised as by `IAppMain`;
        LookupError for a worker that is not declared.
        """

    def run_ticks(program, *args, ticks=None, until=None, timeout=30):
        """Run a program for some ticks, and return `ITicks`."""

    def site(principal=None):
        """Return a context manager that opens the database, and hands out the
        site.

        ZCML has been read, nothing is started. The site is set; with a
        principal there is an interaction, as in a tick. So the worker can be
        called as a function there. At the end, what was changed is committed,
        unless the block raises, and children are ended. RuntimeError within
        another block of this configuration.
        """

    def root():
        """Like `site`, for the root folder."""

    def close():
        """Remove the directory."""


class ITicks(Interface):
    """``run_ticks(worker, site, *args, ticks=None, until=None, timeout=30)``

    What happened in some ticks of a worker. `worker` is a program or a plain
    function, and `site` the object that becomes the site. `args` are the
    arguments of the worker.

    * `ticks` is the number of ticks after which the loop ends, if the worker
      does not end it before.
    * `until` is called without arguments after each tick, with the site set.
      The loop ends when it returns something true. What it raises ends the
      loop and is raised.
    * `timeout` is a number of seconds.

    AssertionError, with the last error of the worker, if the condition is
    false when the loop ends; or if the loop has not ended after `timeout`
    seconds. A tick itself is not cut short.

    A pause between two ticks lasts 0.01 seconds at most, and what is
    registered with the `IPoller` utility ends it before. A schedule is left
    out: the ticks follow each other, and no run is stored. Ctrl-C ends the
    loop, and is raised then. All else is as in any `IMainLoop`. A subclass
    with a `__call__` of its own is heard by its calls of `commit` and `abort`;
    it ends when it asks for `running`.
    """

    loop = Attribute('The `IMainLoop`, which has ended.')

    status = Attribute('`IMainLoop.status`, about the last tick.')

    counts = Attribute('`IMainLoop.counts`.')

    committed = Attribute('The number of ticks that were committed.')

    errors = Attribute('The exceptions of all other ticks, in a list.')


class IFakeChildren(Interface):
    """``fake_children(declared=None, *, on_start=None)``

    For tests: until this is closed, each `IRunner` starts fake children, in
    place of the programs that are declared. A fake child is a process that
    does nothing by itself; the test says and hears what its program would. So
    worker, runner, channels and poller are real, and behave as ever: with
    ``transactional`` channels, an aborted tick gives back what it has fetched;
    with ``restart``, a child that ends with an error is replaced (without a
    delay). This is a context manager, which closes it. The fixture of pytest
    with this name is called in the same way, and closes it when the test ends.

    Of a declaration, what is said about channels, restarts and the end counts.
    Command, directory, user and limits do not matter; a user who does not
    exist here is no error if ZCML is read afterwards. Children of type
    'socket' and those that live in a kernel are fake children with pipes.
    Executors are not replaced.

    * `declared` is for tests that read no ZCML: a dictionary with the keywords
      of `IRunner.add` for each application, without the command. They are
      declared as by ZCML, with an `IRunner` and an `IPoller` that are
      utilities until then.
    * `on_start` is called with each `IFakeChild` that was started, by the
      thread that has started it. What it raises is raised by `close`.
    """

    def close():
        """Kill the children that run, and start real ones again."""

    def __getitem__(name):
        """Return the `IFakeChild` that was started last under this alias.

        KeyError if there was none.
        """

    def all(name):
        """Return the list of all that were started under this alias."""

    def wait_for(name, number=1):
        """Return the nth that is started under this alias.

        A restart is done by another thread. DeadlineExceeded after 10 seconds.
        """


class IFakeChild(Interface):
    """A child that says what the test tells it to."""

    name = Attribute('The alias.')

    args = Attribute('The list `with_args` that it was started with.')

    process = Attribute('The `IProcess`.')

    def put(*data):
        """Say bytes, or text, on the standard output.

        A poller that the worker has has them at once.
        """

    def put_error(*data):
        """Say something on the standard error, if that is a channel."""

    def get():
        """Return all that was written to the standard input since the last
        call, also after the end; bytes, or text if there is an encoding.
        """

    def end(status=0):
        """End with that status, or by signal N with the status -N.

        When this returns, the runner knows of the end.
        """


class IExecutorLayer(Interface):
    """``ExecutorLayer(name, make, *, bases=(), module=None)``

    A layer of zope.testrunner: an executor that runs as long as tests need it.

    `make` is called when the layer is set up, and returns the executor. `name`
    is the name that the test runner shows, together with `module` (by default
    the module that makes the layer). Best use the name of the variable.
    `bases` are other layers, which are set up before this one.
    """

    executor = Attribute(
        'The executor; RuntimeError while the layer is not set up.')

    def setUp():
        """Start the executor, with the executors that it requires."""

    def testSetUp():
        """Start anew each executor that a test has stopped or that has failed.
        """

    def tearDown():
        """Stop the executors that were started."""


class IKernelLayer(Interface):
    """``KernelLayer(name, *, bases=(), module=None)``

    A layer of zope.testrunner: a kernel of its own, as long as tests need it.
    The parameters are those of `IExecutorLayer`. The context manager
    ``private_kernel()`` has such a kernel for one block, and hands it out.
    """

    kernel = Attribute(
        'The `IKernel`, whose socket is in a temporary directory; '
        'RuntimeError while the layer is not set up.')

    def setUp():
        """Start the kernel."""

    def tearDown():
        """End all processes that live in the kernel, and the kernel."""


class ISupervisor(Interface):
    """The utility that knows what ZCML declares.

    ``<include package="gocept.runner" />`` registers it, together with

    * the `IRunner` utility. Its `get_channel` starts an application that is
      declared and was not started yet, after what the application requires. An
      application that has run and ended is started again by `ensure_running`,
      not by `get_channel`. KeyError for a name that is neither known nor was
      started; a plain `IRunner` returns None. A restart wakes the worker, and
      so does an application that is given up. The `state` of an application
      that was not started yet is 'ended'.
    * the `IPoller` utility, whose `pause` is the pause between two ticks. It
      belongs to the worker, and is opened at its first use.

    Executors are `IExecutor` utilities with a name, servers `IServer`
    utilities, and their clients `IClient` utilities.
    """

    children = Attribute(
        'A dictionary of apps, executors and servers, by name.')

    workers = Attribute('A dictionary of workers, by name.')

    kernels = Attribute(
        'A dictionary of kernels, by name. They are `IKernel` utilities, '
        'which connect at their first use. The names of their processes begin '
        'with that of the instance.')

    def add_app(name, eager=False, requires=(), **keywords):
        """Add an application to the runner; see `IRunner.add`.

        `requires` are the names of apps and executors.
        """

    def add_executor(name, executor, eager=False, requires=(),
                     description=''):
        """Add an `IExecutor`.

        `requires` are the names of apps and executors. `description` is what
        ``gocept-runner list`` shows.
        """

    def add_server(name, server, start, requires=()):
        """Add an `IDeclaredServer`.

        `start` is 'eager' or 'detached'. A detached one is not stopped.
        """

    def connect(name):
        """Look up what a child requires.

        ValueError for a name that is not declared, and for children that
        require each other.
        """

    def running(shutdown_timeout):
        """Return a context manager, in which the children run.

        On entering, the children that are `eager` are started, as `start_all`
        of `gocept.runner.executor` does. CannotStart if one fails; Terminated
        if a signal comes meanwhile. On leaving, `stop` is called, unless
        another thread is inside; Terminated if the first signal comes then. A
        signal ends the loop that runs inside.
        """

    def stop(timeout):
        """Stop all children that run, and close the runner, the poller and
        the clients of declared servers.

        Each child is stopped after all those that require it. Children that do
        not depend on each other are stopped side by side. A child that is left
        after `timeout` seconds in all is killed. Children that have ended
        badly are logged. Children that live in a kernel go on.
        """


class IKernel(Interface):
    """``Kernel(port_or_path=None, connection_timeout=None, *, user=None,
    autostart=True, log=None)``

    A client of a process kernel: a daemon that keeps sockets, values and
    processes for programs which come and go.

    * `port_or_path` is a port of the loopback interface, or the absolute path
      of a Unix socket; by default what ``set_default_port()`` or
      ``set_default_path()`` was called with last, or port 20202.
    * `connection_timeout` is the number of seconds in which a connection has
      to be there, the start of a kernel included; by default what
      ``set_default_connection_timeout()`` was called with last, or 10.
    * `user` is the name or the number of a user who may run the kernel, beside
      ourselves and root. A kernel gets the environments of processes, so the
      owner of the listening socket is asked for before anything is sent.
    * `autostart`: whether a kernel is started where none listens. It has
      nothing of the environment, the descriptors and the locks of this
      process; `log` is the path of its log file.

    The constructor connects. `KernelNotRunning` if nobody listens (without
    `autostart`), or if what listens there does not answer as a kernel does
    (KernelSilent, a subclass); `KernelRefused` if the kernel belongs to
    somebody else or does not serve us; KernelError, a RuntimeError and known
    as `gocept.runner.kernel.Error`, for these and for all that the kernel
    refuses or that goes wrong on the way to it. ShortageError if no process
    can be started.

    When the daemon dies or is replaced, its successor has all that it had. The
    client connects anew, in `connection_timeout` seconds, and asks again. The
    successor knows what was done, so nothing is done twice. If the kernel has
    ended with all that it had, that is an error; the next request starts a new
    one.

    Names are texts. Sockets, values and processes have names of their own. In
    methods that take several `names`, one that ends with ``*`` stands for all
    names that begin so. No name stands for all. Processes can be named by
    their pid, and sockets by their descriptor, too. Texts may have any
    characters; bytes and paths may be passed as arguments, directories and
    variables of a process. Bytes that are no UTF-8 are surrogates, as in
    ``os.fsdecode()``.

    An old kernel, such as papa 1.0, knows only a text protocol. What this
    protocol would change (line breaks, empty words, some spaces, backslashes
    and quotes, names with spaces or colons) and what it lacks is refused. When
    such a kernel is gone in the middle of a request that cannot be repeated,
    that is an error.

    Any thread may call a kernel; one request is answered after the other. A
    forked child has a connection of its own. A kernel is a context manager,
    which closes it. A connection that is garbage-collected before it was
    closed causes a ResourceWarning.
    """

    port_or_path = Attribute('Where the kernel listens.')

    connection_timeout = Attribute('The number of seconds.')

    autostart = Attribute('Whether a kernel is started where none listens.')

    def fileno():
        """The descriptor of the connection; None if there is none now."""

    def close():
        """Close the connection. A later request makes a new one."""

    def list_sockets(*names):
        """Return a dictionary of sockets by their names.

        A socket is a dictionary with its `family`, `type` and `backlog`; with
        its `path` and, if it was given, `umask`; or with its `host`, its
        `port` and, if they were given, `interface` and `reuseport`. `fileno`
        is its descriptor, which processes inherit under the same number.
        """

    def make_socket(name, host=None, port=None, family=None, socket_type=None,
                    backlog=None, path=None, umask=None, interface=None,
                    reuseport=None):
        """Make a listening socket, and return it as `list_sockets` shows it.

        * With a `path`, an absolute one, it is a Unix socket, made with
          `umask`. A socket file of this path is replaced.
        * Otherwise it is a TCP socket for `host`, by default 127.0.0.1; or
          0.0.0.0 with an `interface`, the only one it listens on. Without a
          `port` the system chooses one. With `reuseport` each process gets a
          socket of its own on the same port.
        * `family` and `socket_type` are constants of `socket`, or their names:
          AF_UNIX, AF_INET or AF_INET6, and by default SOCK_STREAM.
        * `backlog` is the number of clients that may wait, by default 5.

        If there is a socket of this name with the same parameters, it is
        returned; with others it is a KernelError, which names them. A name
        cannot end with ``*``.

        The arguments of a process have ``$(socket.NAME.fileno)`` and
        ``$(socket.NAME.port)`` in the places of the numbers.
        """

    def remove_sockets(*names):
        """Close sockets, and return True. Processes keep theirs.

        KernelError for an unknown name, and without names: pass ``*`` if all
        of them are meant.
        """

    def list_values(*names):
        """Return a dictionary of values by their names."""

    def set(name, value=None):
        """Store a text; None removes it. TypeError for anything else."""

    def get(name):
        """Return the value; None if there is none of this name."""

    def remove_values(*names):
        """Remove values, and return True.

        KernelError without names, and for the name ``*`` alone.
        """

    def list_processes(*names):
        """Return a dictionary of processes by their names.

        A process is a dictionary. It has `pid`, `running`, `started` (seconds
        since 1970), `uid`, `gid` and `args` (the command as one text). In our
        framing it also has `life`, a text that is random for each start;
        `command`, the list of arguments; `status`, None as long as the process
        runs, or if nobody knows; `ended`, when it has ended, or None;
        `closed`, whether it has ended and all its output was taken in; `begin`
        and `end`, the offsets of the output that is kept, `buffered` bytes,
        and the number `dropped`; `watched`, whether a watcher owns the output;
        `removed`, whether it was removed and still runs; and the parameters
        that it was made with, but for the environment.

        A process that has ended is listed until a watcher has acknowledged its
        end, or until it is removed.
        """

    def make_process(name, executable=None, args=None, env=None,
                     working_dir=None, uid=None, gid=None, rlimits=None,
                     stdout=None, stderr=None, bufsize=None,
                     watch_immediately=None, *, stdin=None, overflow='drop'):
        """Start a process, and return it as `list_processes` shows it.

        * `executable` is the program, looked up in the PATH of `env`; `args`
          are the arguments, or just one text for one argument. Without an
          `executable`, `args` begin with the program.
        * `env` is the whole environment; None for an empty one.
        * `working_dir` is an absolute path; None for that of the kernel.
        * `uid` and `gid` are names or numbers; None for those of the kernel.
          They are looked up by this client. Without a `gid`, the groups are
          those of the user.
        * `rlimits` are limits by their lower-case names, such as ``nofile``. A
          limit is a number for both, or a soft and a hard one.
        * `stdout` is ``PIPE`` (None as well), so that the kernel keeps what is
          written, or ``DEVNULL``. So is `stderr`, which may also be
          ``STDOUT``, to be merged.
        * `bufsize` is how much output is kept: a number of bytes, or a text
          with k, m or g behind the number; None for 1 MiB. With 0 no output is
          taken, whatever `stdout` and `stderr` say.
        * `overflow` says what happens to more output: with 'drop' the oldest
          is dropped, in whole records, and counted in `IWatcher.missing`. With
          'block' the process waits in its write, as with any full pipe.
        * `stdin` may be ``PIPE``, for `write_process`; None for /dev/null.

        With `watch_immediately` an `IWatcher` is returned instead.

        If a process of this name with the same parameters is listed, it is
        returned, and nothing is started. This holds for one that has ended,
        too: its `running` is False. To start it again, first watch it and
        acknowledge its end, or remove it.

        KernelError if the parameters differ. It names them, and the variables
        of `env`, all of which count. KernelError also if the process was
        removed and still runs; for a process that cannot be started; and for
        parameters that cannot be meant. A name cannot end with ``*``.
        """

    def remove_processes(*names):
        """Forget processes, and return True; KernelError for an unknown name.

        KernelError as well without names: pass ``*`` if all are meant.
        What was written is thrown away. A process that runs is not ended. What
        it writes from now on is thrown away, and it is not listed any more
        when it has ended.
        """

    def write_process(name, data, *, wait=True):
        """Write bytes to the standard input of a process: all or nothing.

        The kernel keeps a bounded number of bytes that the process has not
        read. As long as there is no room, this waits; KernelError if there is
        none after 30 seconds. Without `wait` it is a WriteBufferFull at once.
        KernelError if the process has no such pipe, or does not read any more.
        """

    def close_stdin(name):
        """Close the standard input of a process, behind what was written."""

    def open_process(key, command, *, make_way=lambda: None,
                     on_change='keep', overflow='drop', **keywords):
        """Return the `IProcess` of this name, and start it if none runs.

        The keywords are those of `IProcess`, as far as `check_process` allows
        it, and `overflow` of `make_process`. Its channels, and `terminate`,
        are as those of a child of ours. But it goes on when it is closed, and
        when this program ends. The channels acknowledge what they have
        returned when they are asked for more; transactional channels of them,
        when a transaction is committed.

        A process that runs is found. It may have been started with other
        keywords: `on_change` says whether to 'keep' or to 'replace' it, both
        with a warning, or to 'refuse' it with a ProcessExistsException if its
        command is another one; ValueError for other words. `make_way` is
        called before a start.

        As long as the end of one process was not acknowledged, the next one
        cannot have its name: it is called ``key#2`` and so on, which all
        methods here know. What it was started with is remembered in a value
        of the same name.
        """

    def check_process(command, **keywords):
        """ValueError for keywords that `open_process` cannot do."""

    def has_process(key):
        """Return whether a process runs that `open_process` would find."""

    def ended_processes(key, **keywords):
        """Return a list of `IProcess`, the oldest one first: those that ended
        when nobody watched them, with what they had to say.

        A keyword `besides` is an `IProcess` that the caller has. It is not
        among them, since the first one that is told of an end has the kernel
        forget it.
        """

    def watch_processes(*names, after=None, transactional=False):
        """Return an `IWatcher` of processes.

        The first watcher of a process owns its output. A second one is sent
        the same. What that one acknowledges counts when the first has ended;
        then it owns the output, and nothing is lost.

        With the positions `after`, see `IWatcher.position`, it goes on behind
        them, and what lies before is acknowledged. A position in another life
        of the process does not count, so a new life is read from its
        beginning.

        The watcher uses the connection of this kernel. The next request makes
        a new one. KernelError for an unknown name, and if there is nothing to
        watch.
        """

    def follow_processes(*names, after=None):
        """Return an `IWatcher` that only looks: it never owns any output.

        It begins with the oldest byte that is kept.
        """

    def exit_if_idle():
        """End the kernel if it has no sockets, values and processes.

        Returns whether it will end: when all clients have left, unless a new
        one comes before. Then the connection is closed.
        """

    def status():
        """Return a dictionary of all that the kernel has, and of its state.

        ``gocept-runner kernel status`` shows it.
        """

    def stop(force=False):
        """End the kernel; KernelError if it is not idle.

        With `force` it ends with its values and sockets. Processes go on: what
        they write is read and thrown away.
        """

    def upgrade():
        """Have the code on our ``sys.path`` go on in the place of the kernel.

        No process, no socket and no client notices. KernelError if the new
        code does not start; then the old one goes on.
        """


class IWatcher(ISource):
    """What processes of a kernel write, and their ends.

    A watcher is false when the ends of all its processes were acknowledged, or
    when it was closed. It is a context manager, which closes it; after an
    exception, what was read last is not acknowledged, and comes again to the
    next watcher.

    Its descriptor can be selected. It can be registered with an `IPoller` as
    well: the poller's item is the tuple that `read` returns. With the last end
    the poller does not wait for the watcher any more; call `acknowledge` then.

    When the daemon dies, the watcher goes on with its successor, behind what
    was read: nothing is lost, and nothing comes twice. The descriptor has the
    same number then. (With an old kernel, that is a KernelError.)

    An old kernel sends nothing more before the rest was acknowledged. So
    acknowledge before you select, or ask whether the watcher is `ready`.

    One thread at a time uses a watcher; another one gets a WatcherInUse. An
    exception that interrupts a call, such as the KeyboardInterrupt of a signal
    handler, takes nothing away: the next `read` returns what this one would
    have. (With an old kernel, the watcher may be closed, with a KernelError;
    another watcher gets the same output.) In a forked child it is closed.

    **Transactional watchers.** What was read belongs to the transaction of the
    thread that has read it. The commit acknowledges it, after all other data
    managers. An abort gives it back, and so does the rollback of a savepoint
    made before: the next reads return the same, before all that came later.
    `acknowledge` has no effect on its own, but after the last end it makes the
    watcher false, until an abort. A watcher that is closed in the transaction
    acknowledges at the commit.

    A worker that is killed between its commit and the acknowledgement gets
    again what it had committed. It gets nothing twice if it stores `position`
    in the same transaction, and passes it as `after` next time.

    As with `ITransactionalChannel`, what a failed transaction has read comes
    in halves again, if it was more than one read; but nothing is skipped. In
    a dry run nothing is acknowledged. Outside of a transaction the watcher is
    like any other.
    """

    transactional = Attribute('Whether transactions decide.')

    ready = Attribute("""Whether `read` would return without waiting.

    True if output has come in, and also if the last end was read and is to be
    acknowledged. Nothing is taken from the descriptor. If the daemon has died,
    this connects to its successor.""")

    missing = Attribute("""A dictionary: for each process the number of bytes
    that were dropped before what the last `read` has returned.

    Such processes only are in it. An old kernel does not tell.""")

    position = Attribute("""A dictionary: for each process a tuple of its life,
    a text; the number of bytes that were read since the process began; and
    whether its end was read.

    It can be stored as it is, as JSON as well, and passed as `after` to
    `IKernel.watch_processes`. It is empty for an old kernel.""")

    exit_code = Attribute("""A dictionary: for each process whose end was read,
    its status, as `IProcess.returncode`; None if nobody knows.""")

    closed = Attribute('Whether it is over, and has no connection any more.')

    def fileno():
        """The descriptor that is readable when there is something to read.

        -1 when it is closed.
        """

    def read():
        """Wait until there is something, and return all that has come in.

        First, it acknowledges what was read before. Returns a tuple of three
        lists: what was written to standard output, what was written to
        standard error, and the ends. Their items are named tuples: `name`;
        `timestamp`, when the kernel has read it, in seconds since 1970; and
        `data`, the bytes, or the status.

        If this acknowledges the last end, the lists are empty. None if the
        watcher is false.
        """

    def acknowledge():
        """Have the kernel forget what was read.

        If the end of the last process was read, the watcher is false from now
        on, and its connection is given back.
        """

    def close(acknowledge=True):
        """Acknowledge what was read, and watch no more.

        The kernel gets the connection back, if it has none. Without
        `acknowledge`, the next watcher gets what was not acknowledged before.
        A second call does nothing.
        """

    def receive():
        """Return a list of records: what has come in; acknowledge nothing.

        It does not wait. For programs that acknowledge by positions. A record
        has the attributes `name`, `life`, `kind` ('out', 'err' or 'closed'),
        `timestamp`, `data`, `status` and `offset`, where the data end.
        """

    def acknowledge_to(positions):
        """Acknowledge what lies before these positions, and wait for nothing.
        """


class IServer(Interface):
    """``Server(host='127.0.0.1', port=54321, token=None, log_level='INFO',
    log_file=None, init_file=None, *, tls=None, insecure=False,
    max_message=2**30, queue_size=1000, queue_bytes=2**31, zope_conf=None,
    principal=None, site=None, application=None, server_url=None,
    log_config=None, tasks=())``

    A background server: it runs Python tasks for clients (`IClient`). Linux
    only.

    * `host` and `port` say where it listens; '' for all addresses. There is no
      port 0, as no client would find it.
    * `token` is what clients have to know. None: the environment variable
      ``GOCEPT_RUNNER_TOKEN``, which is removed before any task runs. If there
      is none either, a server on a loopback address makes a token, and keeps
      it in a file that only this user can read. There clients of this user
      find it.
    * `log_level` is DEBUG, INFO, WARNING, ERROR or CRITICAL. `log_file` is the
      path of a plain file, to which the server appends. What tasks log goes
      there as well, and, of a server in the background, what they print.
    * `init_file` is the path of a Python file with the functions `init_task`,
      `exec_task` and, perhaps, `exit_task`. The server is initialized with
      these before it is ready.
    * `tls` is a `gocept.runner.background.tls.TLS`: certificates for both
      sides. On an address that other machines can reach, a server needs a
      `token`, and `tls` unless it is `insecure`.
    * `max_message` is how many bytes a request or a response has at most.
      `queue_size` is how many requests may wait, and `queue_bytes` how many
      bytes all of them may have, together with the answers that were not sent
      yet. A server that keeps as much refuses further requests.
    * `tasks` are the names of two or three functions, in place of an
      `init_file`: ``('my.package:init', 'my.package:run', 'my.package:end')``.
    * `zope_conf` is the path of a zope.conf, `principal` the id of a
      principal, and `site` the path of an object from the root on. Then
      tasks run in the component architecture; see below. `application`,
      `server_url` and `log_config` are the settings of `IEnvironment`.

    **Tasks.** There are three:

    * ``init_task(client_socket)``, which may also take no argument, returns
      the state, a dict. A server runs it once; one that has failed may be
      repeated.
    * ``exec_task(client_socket, state, exec_args)`` is called for each
      request, and returns the state for the next one.
    * ``exit_task(client_socket, state, exit_args)`` is called before the
      server ends, also by a signal, then with ``{}``. What it returns is
      dropped. If it fails, the server ends all the same.

    `client_socket` is an `IClientSocket`. Tasks run in the main thread, one at
    a time, in the order in which requests of all clients have arrived. A
    request is done though its client has gone.

    The state is the dict that the last successful task has returned. No copy
    is made, so what a failing task has changed in place stays changed. With
    `zope_conf`, each attempt gets a copy, and so a failing task changes
    nothing. A task that returns no dict has failed.

    **A database.** With `zope_conf`, the server boots as a worker does. Each
    task has a transaction; the `site`, by default the root folder; and an
    interaction of the `principal`, if there is one. The transaction is
    committed when the task returns, and aborted if it fails. After a conflict
    the task is called again, up to three times in all. Each call gets copies
    of the state and of the arguments, so keep no objects of the database in
    the state, and nothing that cannot be copied, such as a lock. What a task
    responds leaves when the transaction is committed; nothing leaves of a call
    that is followed by another one. A doomed transaction is a failure.
    PartlyCommitted is the failure of a task whose commit has failed in its
    second phase.

    The zope.conf says where the log goes, and so does `log_file`. What ZCML
    declares as eager is not started, as this is for the worker. Children that
    tasks have started end with the server. A database that has closed itself
    ends the server, as it ends a worker. Where the server cannot be started,
    the `status` of ServerNotStarted is the one that a worker would end with.

    **Failures.** A failing task does not end the server, whatever it raises:
    SystemExit and KeyboardInterrupt are errors as others are. The client that
    waits gets a RemoteTaskError. If none waits, the error is logged.
    `IClient.status` has the last one.

    A child that a task forks has no part in the server. If the child comes
    back to the code of the server, it ends there. A task that ends the process
    by ``os._exit``, or closes the descriptors of others, ends the server.

    **The end.** SIGTERM, SIGINT and SIGHUP let the task that runs complete.
    Requests that wait are refused; the log says how many. Some of these may
    have been confirmed on receipt, as their clients do not await more; but
    none that has come behind a request to terminate. A second signal ends the
    process at once. A thread that a task has started and that is no daemon
    thread keeps the process there, as in any Python program, though the port
    is free.
    """

    def run():
        """Be the server, until a client terminates it, or a signal does.

        It is for the main thread, as signal handlers are set. Without a
        `log_file`, `logging` is left as it was set up, or writes to standard
        error. ServerOccupied if somebody listens there; ServerInsecure;
        ServerNotStarted; exceptions of the `init_file`.
        """

    def run_background(timeout=30):
        """Start the server in another process, and return its pid.

        It returns when clients can connect. The process is a fresh Python with
        this one's `sys.path`, directory and environment. It is no child of
        this process, and goes on when this one ends, and when the terminal is
        closed. Without a `log_file`, what tasks print or log goes nowhere.

        ServerOccupied if somebody listens there; if this is a background
        server of this user, `pid` says which. ServerInsecure; ServerNotStarted
        with what the other process has said; BackgroundTimeout if it was not
        ready after `timeout` seconds, and then it was killed.
        """

    def stop():
        """Have `run` return as after a signal; from any thread."""


class IClientSocket(Interface):
    """The client that a task of a background server was called for.

    It is the first argument of a task. `IServer` says what tasks are.
    """

    address = Attribute("""Where the client is, such as ``127.0.0.1:40302``.

        '' for a task that no client has asked for: the init task of an
        `init_file`, and the exit task of a server that a signal ends.
        """)

    awaits = Attribute("""Whether the client waits for a response.

        False where it was called without ``await_response=True``, and in the
        init task, whose answer the server gives.
        """)

    def respond(response, error=False):
        """Send the value that the client waits for; from any thread.

        With ``error=True`` the client raises RemoteTaskError, which has the
        value as `response`. The value is encoded before the call returns, so
        it may be changed afterwards.

        The value leaves at once, with two exceptions: in an exit task it
        leaves when the port is free, and in a server with `zope_conf` when
        the transaction is committed.

        Where no client waits, nothing happens. BackgroundError if the task has
        responded before or has ended, or if the value is too large for one
        message. What cannot be encoded raises what the pickler says; the task
        may respond something else then.
        """


class ITaskSurroundings(Interface):
    """What the tasks of a background server run in; see `zope_conf` there.

    A server calls all methods in its main thread.
    """

    def start():
        """Prepare everything that tasks need; called once.

        An exception ends the server before it is ready, and its text is told
        to the caller who starts the server.
        """

    def run(attempt):
        """Call ``attempt()``, and return its result.

        The result is returned only if all that the call has done is permanent.
        Where a conflict undoes it, `attempt` is called again, up to three
        times in all. Each call gets a copy of the state of its own, and what
        it responds is kept until `run` returns. An exception, of `attempt` or
        another one, says that the task has failed and that nothing it has done
        is permanent. If this is not known, the exception is PartlyCommitted.
        """

    def check():
        """Called after each task but the exit task, when its client was told.

        An exception ends the server: no later task can work, for instance
        since the database has closed itself.
        """

    def close():
        """Undo `start`; called once, when the server ends."""


class IClient(Interface):
    """``Client(host='127.0.0.1', port=54321, token=None, *, tls=None,
    timeout=None, connect_timeout=10, heartbeat=10, by_value=(),
    max_message=2**30, retry=False, patient=None)``

    A client of a background server. It connects when it is used first, and
    stays connected until `close`. It is a context manager, which closes it.

    * `token` is what the server wants to be known. None: the environment
      variable ``GOCEPT_RUNNER_TOKEN``, or what a server of the same user on
      this machine keeps.
    * `tls` is a `gocept.runner.background.tls.TLS`, for a server with TLS.
    * `timeout` is for how many seconds a call waits in all: for other threads,
      the connection, the request and its answer. None for no limit. Each call
      may be given another one.
    * `connect_timeout` limits the attempts to connect, in seconds.
    * `heartbeat` is after how many seconds of silence a server that owes an
      answer is asked whether it is there. It is given up when it has not said
      a word to three of these. A long task is no silence. None: it is never
      asked.
    * `by_value` lists modules whose functions and classes travel as code. All
      others are imported by the server; those of ``__main__``, lambdas and
      functions within functions always travel as code. The server needs the
      same minor version of Python for this.
    * `max_message` is how many bytes a request or a response has at most.
    * `retry` says that a request may run twice; see below.
    * `patient` says whether a client that was connected before waits for the
      server to come back, where nobody listens any more. If not, this is an
      error at once. None: on a loopback address it waits only if it has
      `retry`, as a local server that has gone is mostly not started again by
      somebody else; elsewhere it waits.

    **Errors.** ServerNotRunning if nobody listens there; ServerRefused if the
    tokens differ; ServerBusy if the server has too many requests, or clients;
    NotInitialized, VersionMismatch, NotDecoded, NoResponse; RemoteTaskError if
    a task has failed; ProtocolError if what listens there is no background
    server; BackgroundTimeout, a DeadlineExceeded, when the time is over. All
    are BackgroundErrors. What cannot be encoded raises what the pickler says.

    **A lost connection.** A request that the server has surely not received
    whole is sent again, on a new connection. (A `patient` client tries to
    connect for `connect_timeout` seconds, with pauses that become longer.) The
    server may have run any other request: that raises ConnectionLost, unless
    the client has `retry`. If the server was started anew meanwhile, a warning
    is logged, since its state is a new one.

    **Time.** A request whose time is over may still run. Its answer is dropped
    when it comes, and the client goes on. Where only a part of a request could
    be sent in time, the client connects anew.

    **Threads, forks, interruptions.** Threads may share a client: their calls
    follow one another. A forked child has a connection of its own; what the
    parent has asked is answered there only. An exception of a signal handler,
    such as KeyboardInterrupt, leaves a client that can be used. If a request
    was sent or received in part, the connection is closed first, and other
    requests that have no answer yet get a ConnectionLost. A signal handler
    needs a client of its own.

    The client starts no thread, and runs on any system, such as Windows.
    """

    address = Attribute("""Where the server is; its str is ``host:port``.""")

    def initialize(init_task, exec_task, exit_task=None, *, timeout=...):
        """Give the server its tasks, and have it run the init task.

        Returns ``{'message': 'Initialization successful.'}``, or
        ``{'message': 'Already initialized.'}``, and then the server goes on
        with the tasks and the state that it has. A warning is logged if these
        tasks have other names, or if their file was changed since the server
        has them. `IServer` says what tasks are. A server on this machine can
        import what this program can: `sys.path` is sent along.

        TypeError if a task is no function, and no other callable.
        """

    def execute(exec_args, await_response=False, *, timeout=...):
        """Have the server run the exec task.

        Returns ``{'message': "Received 'EXEC'"}`` when the request is in the
        server's queue. With ``await_response=True``, returns what the task
        responds: the same value, as a copy.
        """

    def terminate(exit_args=None, await_response=False, *, timeout=...):
        """Have the server run the exit task (None: with ``{}``), and end.

        Returns ``{'message': "Received 'EXIT'"}`` when the port is free. With
        ``await_response=True``, returns what the exit task responds.
        """

    def submit(exec_args, await_response=True, *, timeout=...):
        """Like `execute`, but return an `IPending` when the request is sent.

        So several requests are under way at once. The server runs them one
        after another, in this order.
        """

    def status(*, timeout=...):
        """A dict of what the server tells about itself.

        Its `last_error` is None, or a dict of the last failure. There the
        `message` and the end of the `traceback` are kept, also where there is
        no log.
        """

    def receive():
        """Take what has arrived, without waiting.

        Returns a list of the `IPending` that are done by that. Another call
        may have received the answer of an `IPending` before: ask `done`.
        """

    def fileno():
        """The descriptor of the connection, which is made where needed.

        It can be read when an answer comes, or when the connection breaks;
        call `receive` then. The next connection has another one.
        """

    def close():
        """Close the connection. Again does nothing.

        Requests without an answer get a ConnectionLost, in all threads.
        """


class IPending(Interface):
    """A request to a background server that was sent by `IClient.submit`."""

    done = Attribute("""Whether `result` returns, or raises, at once.

        What has arrived is taken, without waiting.
        """)

    def result(timeout=...):
        """Wait for the answer and return it, or raise its error; see
        `IClient.execute`. The next call does the same, at once.

        After a DeadlineExceeded the answer can be asked for again.
        """


class IWorkerClient(IClient):
    """``WorkerClient(host='127.0.0.1', port=54321, token=None, *,
    transactional=False, redeliveries=5, start=None, tasks=None, name='',
    ...)``, in `gocept.runner.background.worker_client`

    A client whose answers an `IPoller` hands out. Register it with the poller:
    then the answer to a request that `submit` has sent ends the pause between
    two ticks, and `poll` returns a pair of the `IJob` and this client. Each
    job comes once. It also comes if there is no answer, as the connection was
    lost: then `result` raises the error.

    Other arguments are those of `IClient`. `start` is called without arguments
    where nobody listens, if the server belongs on this machine; it starts one.
    `tasks` is called to have what `initialize` takes, for a server that has no
    tasks yet. A client that ZCML declares has both.

    If the server has died, the next request starts another one. The state of
    that one is new, which is logged as a warning. The requests that the dead
    one has received come back with ConnectionLost, since nobody knows what
    was done; with `retry` they are sent again.

    **A transactional client.** The transaction is that of the thread which
    calls, as for `ITransactionalChannel`.

    * `submit` keeps the request until the transaction is committed. Then it is
      sent, after the database has finished. An abort forgets it, and so does
      the rollback of a savepoint made before. The commit fails if there is no
      server, and none can be started. A request that cannot be sent
      afterwards is logged as an error, and its job comes with that error.
    * A job that the poller has handed out in a transaction that is aborted
      comes again, before all others. If the transaction has failed, jobs come
      again as the items of an `ITransactionalChannel` do, in halves, and a
      single one is skipped after so many `redeliveries`. Its `result` is made
      anew, so what a transaction has changed in it is undone, too.
    * `execute` and `terminate` raise StillKept, and so does `result` of a job
      that is kept: nobody can answer before the commit.
    * In a dry run nothing is sent, and jobs that were fetched do not come
      again.

    `close` leaves a client that can be used again: the next call connects
    anew. Linux only, if it is registered with a poller.
    """

    name = Attribute('The name that ZCML has given to the server, or "".')

    transactional = Attribute('Whether the transaction decides.')

    redeliveries = Attribute('A number, or None for no limit.')

    skipped = Attribute('The number of jobs that were skipped.')

    def ensure_running():
        """Have a server that is initialized: start one if nobody answers.

        ServerNotStarted, RemoteTaskError if its init task fails, and the
        errors of `IClient`; ExecutorError for a child of this process.
        """

    def submit(exec_args, await_response=True, *, timeout=..., key=None):
        """Send a request, or keep it for the commit; returns its `IJob`.

        `key` is any value. The job has it as `key`, so that a later tick knows
        what the answer is for.
        """

    def fetch():
        """Return the next `IJob` that has its answer, or None.

        It does not wait. A poller would return all of them; so this is for one
        transaction for each job.
        """

    def fileno():
        """The descriptor that pollers wait for; the same as long as the client
        is not closed."""


class IJob(IPending):
    """A request that `IWorkerClient.submit` has made."""

    key = Attribute('What was given to `submit`.')


class IDeclaredServer(IServer):
    """A server that ``<runner:server />`` declares: the `IServer` utility with
    its name. The `IClient` utility with that name is an `IWorkerClient`.

    An *eager* server is a child that lives and dies with this process. It is
    ready when its init task has returned. A *detached* one is started when a
    client first uses it, if nobody listens there, and goes on. A program that
    finds a server which has no tasks yet initializes it.
    """

    name = Attribute('Its name.')

    client = Attribute('The `IWorkerClient`.')

    description = Attribute('What ``gocept-runner list`` shows.')

    start_timeout = Attribute(
        'How many seconds it has until it is initialized and clients can '
        'connect.')

    def ensure_running():
        """See `IWorkerClient`."""


class IInitialize(Interface):
    """``gocept.runner.background.initialize``"""

    def __call__(init_task, exec_task, exit_task, host='127.0.0.1', port=54321,
                 token=None, *, timeout=None, tls=None, by_value=(),
                 start=True, **options):
        """Start a server where none listens, and initialize it.

        Also ``initialize(host, port, init_task, exec_task, exit_task,
        token=None, ...)``.

        Where the host is this machine and nobody listens, a server is started
        in the background, with `options`; see `IServer`. It goes on when this
        program ends. With ``start=False``, and for other machines, this is a
        ServerNotRunning. Servers can be started on Linux only; elsewhere this
        is a BackgroundError. If another client ends the server meanwhile, a
        new one is started when that one has ended.

        Returns what `IClient.initialize` returns, or raises its errors. The
        `timeout` is for the start, the connection and the init task. None: the
        start and the connection have 30 seconds each, and the init task may
        take any time, as long as the server shows that it lives. After a
        BackgroundTimeout an init task that runs goes on, and the next call
        waits for it.
        """


class IExecute(Interface):
    """``gocept.runner.background.execute``"""

    def __call__(exec_args, await_response=False, host='127.0.0.1', port=54321,
                 token=None, *, timeout=None, **options):
        """Like `IClient.execute`, on a connection of its own.

        `options` are those of a client.
        """


class ITerminate(Interface):
    """``gocept.runner.background.terminate``"""

    def __call__(exit_args=None, await_response=False, host='127.0.0.1',
                 port=54321, token=None, *, timeout=None, **options):
        """Like `IClient.terminate`, on a connection of its own.

        `options` are those of a client.
        """


class ILoopEvent(Interface):
    """Something happened to a loop, see `IMainLoop`.

    Events are sent through zope.event, by the thread in which they happen. A
    subscriber that fails is logged, and changes nothing. Outside a tick there
    is no transaction; so what a subscriber changes in the database then is not
    kept. A subscription that is made during a tick counts from the next tick
    on.
    """

    loop = Attribute('The `IMainLoop`.')


class ILoopStarted(ILoopEvent):
    """The first tick is next. The site and the signal handlers are set."""


class ILoopStopped(ILoopEvent):
    """The last tick is over, in whatever way the loop was ended."""


class ITickStarted(ILoopEvent):
    """The transaction begins next."""


class ITickCommitted(ILoopEvent):
    """The transaction was committed; in a dry run, it would have been."""


class ITickAborted(ILoopEvent):
    """The transaction was aborted, and is not tried again in this tick."""

    error = Attribute(
        'The exception. `AlreadyRun` is no failure: another process has done '
        'this run of the schedule.')


class ITickUncertain(ILoopEvent):
    """It is not known what was committed, and nothing is tried again.

    The second phase of a commit has failed, of the tick or of an item. When it
    fails, each data manager has voted for the commit, and some may have
    finished it. The event is sent in place of the others that end a tick.
    """

    error = Attribute('The exception.')


class IConflictRetried(ILoopEvent):
    """The transaction was aborted, and is tried again in the same tick."""

    error = Attribute('The exception.')

    attempt = Attribute('The number of the attempt that failed, from 1 on.')


class IPauseStarted(ILoopEvent):
    """A pause begins: `next_tick` of the loop tells when the next tick is due.

    It is also sent before the first tick of a schedule. Where a tick follows
    the one before at once, it is not sent.
    """


class ITickTimedOut(ILoopEvent):
    """A tick that has taken longer than `tick_timeout` of `IAppMain` is over.

    It is sent after the events of the tick. With `ITransactionPerItem`, it is
    sent for each item that has taken longer. Of a tick that hangs, the log and
    the state file tell.
    """

    seconds = Attribute('How long the tick, or the item, has taken.')


class IChildEvent(Interface):
    """Something happened to a child of a runner or an executor.

    The event is sent like an `ILoopEvent`, but by the thread that has started
    the child or has noticed its end. That is often the background thread. If
    the worker is to react, a subscriber calls `wakeup` of the worker's poller.

    What ends a child (`terminate` and `close` of a runner, `stop` and `kill`
    of an executor, the end of a program) returns when all events of the child
    were sent, whichever thread sends them. It waits for another thread one
    second at most, as a subscriber there may want what the caller has.

    A subscriber may use the runner; no lock is held while it runs. The events
    of one alias come one after another: while a subscriber runs, no other
    thread sends events of the same alias. If a subscriber causes an event,
    such as the end of the child, this event is sent when the subscriber has
    returned. While a child with a socket starts, `get_channel` returns None to
    a subscriber that is told of this start.

    What a subscriber in the background thread waits for, all children wait
    for. So a subscriber that has to wait does that in a thread of its own.
    Nothing that a subscriber raises ends the background thread, not even
    SystemExit.
    """

    process = Attribute('The `IProcess`.')

    name = Attribute(
        'The alias of the application, or the name of the executor.')


class IChildStarted(IChildEvent):
    """The program of the child runs."""


class IChildReady(IChildEvent):
    """The child can be used: what was waited for has happened."""


class IChildEnded(IChildEvent):
    """The child has ended, wanted or not.

    For each child, this event comes after the two others. If the child of an
    executor becomes a daemon before it is ready, the event is sent when the
    start is over.
    """

    status = Attribute('The status, as `IProcess.returncode`.')


class ISchedule(Interface):
    """``Schedule(expression, timezone=None, jitter=0)``

    When runs are due, by the clock on the wall. `expression` is one of cron:
    five fields, for minute, hour, day of the month, month and day of the week,
    or a shortcut such as ``@daily``. If both days are given, it is enough that
    one of them matches; if one of the two fields starts with ``*``, both have
    to match. `schedule/schedule.rst` says what fields may have.

    `timezone` is a name of the IANA database, such as ``Europe/Berlin``. The
    default is the zone of the system, which is UTC in most containers.

    Where a zone puts its clock forward or back, the rules are those of
    Debian's cron:

    * If both the minute and the hour are given (their fields do not start with
      ``*``), each time is one run. If the clock skips the time, the run is due
      when the clock goes on; if the clock shows it twice, the first time.
    * Else runs are due whenever the clock matches: not in an hour that is
      skipped, and again in one that is repeated.

    An instant is a number of seconds since the epoch, as `time.time()` gives
    it. ValueError, with a message of one line, if `expression` or `timezone`
    is not understood, if there is no run in the next 50 years, or if `jitter`
    is not a number of seconds >= 0, or more than the time between two runs.
    """

    expression = Attribute('As it was given.')

    timezone = Attribute('The name of the zone; None for that of the system.')

    jitter = Attribute(
        'A run starts less than this number of seconds after it is due.')

    def after(instant):
        """The instant of the first run that is later than `instant`.

        ValueError if there is none in the 50 years after it.
        """

    def before(instant):
        """The instant of the last run that is not later than `instant`.

        None if there is none in the 50 years before it.
        """

    def delay():
        """A random number of seconds, >= 0 and less than `jitter`.

        `after` and `before` do not contain it. Forked workers have other ones.
        """

    def clock(instant):
        """What the clock of the zone shows at an instant: a datetime with its
        zone.
        """


class IShutdown(Interface):
    """The request that a loop ends, and the waits that the request ends.

    A shutdown is a context manager; it has to be entered before it can wait.
    While it is entered, `gocept.runner.signals.current_shutdown` yields it in
    the same thread.
    """

    requested = Attribute('Whether the loop is to end.')

    signum = Attribute('The number of the signal that requested it, or None.')

    listener = Attribute("""Who is told at once, or None.

        ``listener.note_request()`` is called by `request`, and so in any
        thread and in signal handlers; in the block of ``listener.reopening()``
        the log files are reopened.
        """)

    def request(signum=None):
        """Ask the loop to end; from any thread and from signal handlers.

        It may be called before the shutdown is entered; the request holds
        until the shutdown is left.
        """

    def request_reopening():
        """Ask the loop to reopen the log files; from any thread and from
        signal handlers.
        """

    def attend():
        """Reopen the log files if a signal has asked for this; return
        `requested`.
        """

    def wait(seconds, poller=None):
        """Sleep until the time is over or the end is requested; return
        `requested`.

        Sources of `poller` that become ready do not end the sleep. Like after
        a pause that they have ended, they do not end the next pause before
        somebody has fetched from them. Without a `poller` the sleep needs
        descriptors; if none are left, the sleep ends at once.
        """

    def pause(seconds=None, poller=None):
        """Sleep as `wait` does, but end also when `IPoller.pause` ends, and
        when `wakeup` is called.

        None means no limit of time.
        """

    def rest(seconds=None, poller=None):
        """Sleep as `pause` does; return whether something has ended the sleep
        before its time.
        """

    def wakeup():
        """End a pause without a request; from any thread."""
