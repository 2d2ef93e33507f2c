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
    shutdown_timeout=30)``

    A decorator that makes a program of a worker. A worker is a function that
    does a piece of work each time it is called.

    * `ticks` is the number of seconds between two calls, unless the worker
      returns another one. ValueError if it is not a number >= 0.
    * `principal` is the id of the principal that the worker runs as; or a
      callable that returns an id, and is called when zope.conf has been read
      (see `IFromConfig`); or None for no interaction.
    * `attempts` is how often one tick calls the worker at most. The worker is
      called again after an error that passes, such as a conflict.
    * `max_backoff` is the longest pause, in seconds, after several errors in a
      row.
    * `shutdown_timeout` is the number of seconds in which the children that
      ZCML declares have to end, before they are killed.

    A worker returns one of

    * None: the loop sleeps for `ticks` seconds;
    * a number >= 0: the loop sleeps for that many seconds, this time (with 0
      not at all);
    * `gocept.runner.Exit`: the loop ends.

    `IMainLoop` says how a tick may end otherwise.
    """

    def __call__(worker):
        """Return the program.

        The program keeps the name, the docstring and the module of the worker.
        There are two ways to call it.

        ``program(appname, configfile, *args)`` runs the worker. `appname` is
        the name of the site, an object in the root folder; or None, and the
        root folder is the site. `configfile` is the path of a zope.conf.
        `args` are the arguments of the worker. The call returns None, or
        `IMainLoop.status` if the worker runs just once and this is not 0. A
        signal that comes before the loop begins raises SystemExit with 128 and
        its number. Exceptions are raised as they are: KeyError for an unknown
        `appname`, PrincipalLookupError for an unknown principal, and those of
        ZConfig, zope.configuration and the storages for files and databases
        that cannot be used. An exception of the worker is never raised here.

        ``program()`` reads the command line, and returns or exits with a
        status; `gocept.runner.errors` lists them. If the worker raises
        SystemExit, it is raised again when the database is closed. A mistake
        of the user is reported as one line on standard error.

        ``program.main(site=None, config=None)`` does the same. `site` and
        `config`, the path of a zope.conf, are the defaults of the command
        line. Generated scripts call this one.

        Scripts of earlier versions call ``program(appname, configfile)`` from
        the main module. If there is a command line that the program
        understands as a whole, and that does not name a site or a zope.conf,
        such a call reads the command line, too: `appname`, `configfile` and
        `args` are its defaults, and a status other than 0 is raised as a
        SystemExit.
        """


class IOnce(IAppMain):
    """``once(principal=None, *, attempts=3, shutdown_timeout=30)``

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

    def __call__(appname, configfile, *, shutdown_timeout=30):
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


class IMainLoop(Interface):
    """``MainLoop(app, ticks, worker, principal=None, once=False, *,
    attempts=3, max_backoff=60)``

    Calls a worker, tick by tick. `app` is the object that becomes the site.
    `worker` is called without arguments. The other parameters are those of
    `IAppMain`.
    """

    failed = Attribute('Whether the last tick failed.')

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
        interaction. Its first participation is a request that carries the
        principal, which is looked up anew in each tick. The principal is also
        looked up before the first tick: PrincipalLookupError if it is unknown.

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
        that writes all the time would make a worker fail all the time. Events
        tell what happens, see `ILoopEvent`.

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

    def stop():
        """End the loop as a signal does; from any thread or signal handler.

        If the loop has not begun yet, it will end before its first tick.
        """

    def stopMainLoop(signum, frame):
        """The handler of the signals that end the loop."""


class ITransactionPerItem(Interface):
    """Run each of many steps in a transaction of its own."""

    def __call__(func=None, *, attempts=1, on_failure='status'):
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
          sees the changes that the generator itself has made.
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

        At the end one line is logged with the number of items that were done,
        failed and skipped; `IMainLoop.counts` has the numbers, too. If
        standard error is a terminal, a progress bar is shown there.

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

    A custom channel is a subclass of `gocept.runner.channel.Channel`. It has
    ``_read()`` (which returns bytes, or ``b''`` when there are none now, and
    raises EndpointClosedException when no more will come), `write`, `close`
    and, if it can be polled, `get_fd`.

    One thread reads a channel; any thread may write. A channel is a context
    manager, which closes it. A channel that is garbage-collected before it was
    closed causes a ResourceWarning.
    """

    buffering = Attribute("None, 'bytes' or 'line'.")

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

        ``b''`` if there are none, or no complete line. When the other side is
        gone, `read` first returns everything that was sent (the last line also
        without a newline), and then raises EndpointClosedException. When the
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
        * EndpointClosedException if the other side is gone, or after `close`
          and `write_eof`. No signal is sent.
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
        """Return the same as `get_fd`, but -1 once the channel is closed."""


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
    already.
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
    that the transaction calls retryable (such as a conflict), and no OSError
    of the commit itself (such as a full disk). Items that a failed transaction
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

    A channel without descriptors, for tests. The test plays the other side. A
    test channel cannot be polled, and its `read_until` does not wait.
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

        TypeError for anything that is not a source; NotImplementedError for a
        channel without a descriptor; ValueError if another source with the
        same descriptor is registered. A regular file is always ready.
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
      ``on_end=None``: called with the process when it was reaped, by the
      thread that reaped it.
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
        """

    def close():
        """End the child and close its channels; read them before.

        A forked copy of the parent closes the channels only.
        """


class IRunner(Interface):
    """``Runner(extra_paths=(), *, poller=None)``

    Starts applications that are known by name. Each start has an alias, so
    that one application may run several times.

    `extra_paths` are directories that are appended to the PATH of all
    children. `poller` is a poller of your own. While your program waits with
    it, this poller sends the bytes that channels keep, notices the ends of
    children, and restarts them. With None, the poller of the background thread
    does this.

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
        * ``socket``: the path of that socket, seen from `cwd`.
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
        unknown application; OSError if the program cannot be run.

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
        parent closes the channels only.
        """


class ICondition(Interface):
    """What an executor waits for. Several executors may share a condition.

    * ``tcp(host, port)``: connections to the port are accepted. With port 0 a
      free port is chosen; the attribute `port` tells it, and ``{port}`` in the
      command and in `envvars` is replaced by it. The port is held until the
      child listens. So the child must set SO_REUSEADDR, as servers do.
    * ``http(url, status=r'^2\\d\\d$', method='HEAD', payload=None,
      headers=None, request_timeout=None, *, ssl_context=None, expect=None)``:
      a request is answered with a status that equals `status` or matches it.
      `payload` is a dictionary, which is sent as a form. `request_timeout` is
      the number of seconds that one request may take; None or 0 stands for the
      whole time of the start. `expect` is called with the
      `http.client.HTTPResponse`, in a thread of its own, and returns whether
      it is the right one. With https, `ssl_context` is by default one that
      verifies.
    * ``unix(path)``: connections to a Unix socket are accepted.
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
    log_file=None, requires=(), die_with_parent=False, name='')``

    Starts one child at a time, as often as you like, and ends it with all its
    descendants. An executor is a context manager, which starts and stops it.
    If an executor is garbage-collected, the background thread ends its child.

    * `command` is a list of arguments, or a string that is split as a shell
      would split it. With `shell`, ``/bin/sh`` runs it.
    * `timeout` is the number of seconds that a start may take. A stop may take
      as long until the child is killed, unless `stop_timeout` says otherwise.
      At our exit it is killed after 5 seconds at most, or 30 if you have given
      a `stop_timeout`.
    * `sleep` is the longest pause, in seconds, between two probes.
    * `envvars` are added to our environment. ``{port}`` in a value is replaced
      by the port that the condition has chosen.
    * `stdin`, `stdout` and `stderr` are those of `subprocess.Popen`.
    * `popen_kwargs` are handed to Popen unchanged, and win over all other
      parameters. ``encoding`` and ``errors`` among them are also those of
      `output`.
    * `output_size`: everything that the child writes to pipes is read at once.
      So many bytes at the end of each stream are kept, and can be read.
      Everything is appended to `log_file`, also when the file was renamed or
      removed meanwhile. What cannot be written at once (the disk is full, or
      nobody reads a FIFO) is lost, which is logged with the number of bytes;
      the next piece is tried again.
    * `requires` are other executors, see `gocept.runner.executor.start_all`.
    * `die_with_parent` is that of `IProcess`.
    * `name` is for messages and events.

    The child is started in a session of its own, with ``adopt=True``, see
    `IProcess`.
    """

    command = Attribute('The command as text.')

    command_parts = Attribute('The command as a list.')

    name = Attribute('Its name, by default that of its program.')

    process = Attribute(
        'The `IProcess`; None before the start and after the stop.')

    envvars = Attribute('The environment of the child, a dictionary.')

    requires = Attribute(
        'A tuple of executors that have to be started before this one.')

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
        background thread, which would wait for itself, a RunnerError is raised
        until the output has ended. If bytes were dropped that were not read, a
        line in brackets says how many. None before the start, and if the
        standard output is not a pipe.
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


class ICheckedExecutor(IExecutor):
    """``Executor``: the base of executors that look for readiness.

    Override `pre_start_check` and `after_start_check`. If you override
    neither, `start` waits for nothing.
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
        """Return whether the child is ready."""

    def check_subprocess():
        """Return `after_start_check`; ProcessExitedWithError if the child has
        ended with a failure.
        """


class IConditionExecutor(ICheckedExecutor):
    """``ConditionExecutor(command, condition, **kwargs)``

    Waits for a condition. The keywords are those of `IExecutor`. The usual
    conditions have executors with a name:

    * ``OutputExecutor(command, banner, *, failure=None)``. After the start,
      `output` continues behind the line of the banner.
    * ``TCPExecutor(command, host, port)``, with the attributes `host` and
      `port`.
    * ``HTTPExecutor(command, url, ...)``, see ``http()``, with the attributes
      `url` (as from ``urlsplit``), `host` and `port`. Any process that listens
      on the port is in the way of a start.
    * ``PidExecutor(command, filename)``. A file whose process may be the
      server is in the way of a start; a stale file is not, see ``pid_file()``.
    * ``UnixSocketExecutor(command, socket_name)``.
    """

    condition = Attribute('The `ICondition`.')


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

    Executors are `IExecutor` utilities with a name.
    """

    children = Attribute('A dictionary of apps and executors, by name.')

    workers = Attribute('A dictionary of workers, by name.')

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
        """Stop all children that run, and close the runner and the poller.

        Each child is stopped after all those that require it. Children that do
        not depend on each other are stopped side by side. A child that is left
        after `timeout` seconds in all is killed. Children that have ended
        badly are logged.
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

    error = Attribute('The exception.')


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


class IChildEvent(Interface):
    """Something happened to a child of a runner or an executor.

    The event is sent like an `ILoopEvent`, but by the thread that has started
    the child or has noticed its end. That is often the background thread. If
    the worker is to react, a subscriber calls `wakeup` of the worker's poller.

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


class IShutdown(Interface):
    """The request that a loop ends, and the waits that the request ends.

    A shutdown is a context manager; it has to be entered before it can wait.
    While it is entered, `gocept.runner.signals.current_shutdown` yields it in
    the same thread.
    """

    requested = Attribute('Whether the loop is to end.')

    signum = Attribute('The number of the signal that requested it, or None.')

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

    def wakeup():
        """End a pause without a request; from any thread."""
