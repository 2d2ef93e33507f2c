"""Every contract of the project; the code refers to it by name.

Times are seconds, as int or float, on a clock that is never set back.
"""

from zope.interface import Attribute, Interface


class IAppMain(Interface):
    """``appmain(ticks=1, principal=None, *, attempts=3, max_backoff=60,
    shutdown_timeout=30)``

    A decorator that makes a program of a worker, which is a function that does
    a piece of work each time it is called.

    `ticks` is how long to sleep between two calls, if the worker does not say;
    ValueError if it is no number >= 0. `principal` is the id of the principal
    that the worker runs as, or a callable that returns one when zope.conf has
    been read (see `IFromConfig`), or None for no interaction. `attempts` is
    how often a tick is run at most if it fails for a reason that passes, such
    as a conflict. `max_backoff` is the longest pause after errors in a row, in
    seconds. `shutdown_timeout` is how many seconds the end of the children
    that ZCML declares may take before they are killed.

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
    """``once(principal=None, *, attempts=3, shutdown_timeout=30)``

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

    def __call__(appname, configfile, *, shutdown_timeout=30):
        """Return a context manager that hands out the site.

        It reads zope.conf, sets up the process, opens the databases and starts
        what ZCML declares as eager; at the end it stops what runs, aborts the
        transaction and closes them. Commit what is to stay. The site is *not*
        set; one that the caller sets is put back at the end. Parameters and
        exceptions are those of `IAppMain`.

        Where ZCML declares children, SIGTERM and SIGHUP raise Terminated, a
        SystemExit, unless they have handlers, so that nothing is left behind.

        Loggers, product configuration and components stay set up afterwards. A
        second call with the same site definition does not run the ZCML again;
        one with another is a `ConfigurationError`, as there is one component
        registry in a process. A call that fails leaves all of this as it was.
        """


class IMainLoop(Interface):
    """``MainLoop(app, ticks, worker, principal=None, once=False, *,
    attempts=3, max_backoff=60)``

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

        Thus a worker cannot end the loop by failing. Errors in a row double
        the pause (from 0.1 seconds on) up to `max_backoff`, or `ticks` if that
        is longer; a success resets it.

        The pause is `IPoller.pause` of the `IPoller` utility, if there is one:
        whatever is registered there ends it at once. The loop reads nothing;
        the worker fetches with `poll(0)`. A pause that errors have lengthened
        is ended by signals only, lest a child that talks makes a worker fail
        all the time. Events tell what happens, see `ILoopEvent`.

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


class IChannel(Interface):
    """``Channel(*, buffering=None, encoding=None, limit=1048576)``

    A stream of bytes in both directions that never blocks and never loses a
    byte.

    `buffering` says what `read` gives: whatever there is with None or
    'bytes', one line with 'line'. A line ends with a newline character. One
    longer than `limit`, with its newline, comes in pieces of that length.

    With an `encoding` it is a stream of text, `limit` counts characters, and
    what is ``b''`` below is ``''``. Characters may be split anywhere; bytes
    that cannot be decoded are shown as ``\\xff``. ``write`` takes text and
    bytes.

    A custom channel is a subclass of `gocept.runner.channel.Channel` with
    ``_read()`` (bytes, ``b''`` when there are none now,
    EndpointClosedException when no more will come), `write`, `close` and, if
    it can be polled, `get_fd`.

    One thread reads a channel; any may write. A context manager, which closes
    it. Dropping one that was not closed is a ResourceWarning.
    """

    buffering = Attribute("None, 'bytes' or 'line'.")

    encoding = Attribute('What makes it text, or None.')

    is_text = Attribute('Whether it gives text, not bytes.')

    closed = Attribute('Whether it was closed here.')

    kept = Attribute(
        'The number of bytes that were written but that the other side has '
        'not taken yet.')

    unread = Attribute('Whether something was received but not read yet.')

    partial = Attribute(
        'Whether what was read last is a piece of a line whose next piece is '
        'still to come.')

    def read():
        """Return the bytes that there are now, or one line.

        ``b''`` when there are none, or no complete line. When the other side
        is gone, or the channel is closed, it first returns all that was sent
        (of lines also the rest without a newline; of a channel closed here,
        what was received before), and then raises EndpointClosedException.
        """

    def read_until(pattern, timeout=None):
        """Wait until `pattern` comes, and read up to its end.

        `pattern` is bytes (or text) or a compiled regular expression. Returns
        a pair: what came before, and the match, which is `pattern` itself or
        the match object. What came later is read next. An expression is
        searched in all that came, again and again, so write it so that it
        cannot match too early.

        DeadlineExceeded after `timeout` seconds, and EndpointClosedException
        if the stream ends before; both carry the tail of what came as `seen`,
        and all of it can still be read. TypeError for text where there are
        bytes, ValueError for an empty pattern. A channel without a descriptor
        cannot wait: it has the pattern, or the time is over.
        """

    def write(*data):
        """Send chunks of bytes, without waiting.

        What is not taken now is kept, and sent by the poller that the channel
        is registered with, by later calls of its methods, and by `flush`.

        * WriteBufferFull if more than `high_water` bytes are kept when it
          begins; nothing of it is sent or kept. One that begins below is kept
          whole, however long it is.
        * EndpointClosedException if the other side is gone, or after `close`
          and `write_eof`. No signal is sent.
        * Another OSError, as for a full disk: what is not sent is kept, as
          with Python's own buffered files; write or flush later.
        * NotImplementedError if there is nothing to write to.
        """

    def write_eof():
        """Let the other side read the end, when it has got all that is kept.

        Standard input of a process is closed by this.
        """

    def flush(timeout=None):
        """Wait until all that is kept has been sent.

        DeadlineExceeded after `timeout` seconds; the rest is still kept. The
        errors of `write`.
        """

    def close():
        """Close its descriptors; again does nothing.

        What is kept is tried to be sent once; what cannot be is logged. A
        `flush` or `read_until` in another thread goes on to its deadline.
        """

    def closing():
        """For custom channels that can be polled: call it first in `close`,
        so that pollers give the end.
        """

    def get_fd():
        """Return the descriptor that it is read from.

        NotImplementedError if there is none; EndpointClosedException once
        closed.
        """

    def fileno():
        """Return the same as `get_fd`, but -1 once closed."""


class IPipeChannel(IChannel):
    """``PipeChannel(faucet=None, sink=None, *, high_water=1048576,
    buffering=None, encoding=None, limit=1048576)``

    Reads from the descriptor `faucet` and writes to `sink`, which may be the
    same. It owns and closes them. While open they do not block.
    """


class ISocketChannel(IChannel):
    """``SocketChannel(sock, *, high_water=1048576, buffering=None,
    encoding=None, limit=1048576)``

    Reads from and writes to a connected stream socket, which it owns.
    """


class ILineChannel(IChannel):
    """``LineChannel(channel, *, encoding=None, limit=1048576)``

    Reads lines from another channel of any class; all else is done by that
    one. ValueError for an encoding if that one has one already.
    """


class ITestChannel(IChannel):
    """``TestChannel(*, buffering=None, encoding=None, limit=1048576)``

    A channel without descriptors, for tests, which play the other side. It
    cannot be polled, and `read_until` does not wait in it.
    """

    def put(*data):
        """Have chunks of bytes, or of text, come in.

        As those of a stream they have no borders: one `read` gives all that
        was put before. EndpointClosedException after `put_eof` and `close`.
        """

    def put_eof():
        """End the stream as the other side would, after what was put."""

    def get():
        """Return what was written since the last call, ``b''`` if nothing was.
        """


class ISource(Interface):
    """What a poller can wait for: a channel, a process or a timer.

    `gocept.runner.source` has the base class, with what pollers and sources
    tell each other.
    """

    def collect():
        """Return a sequence of what there is now and whether it is the last.
        """


class IPoller(Interface):
    """``Poller(*, buffering=None)``

    Waits until one of many sources is ready, or time is over.

    Belongs to the thread that calls `poll` or `wait`. All else may be called
    from any thread, and takes effect at once. In a forked child it is empty,
    as the registrations are the parent's. A context manager, which closes it.

    `buffering` is that of the channels of accepted clients.
    """

    wakeup_fd = Attribute(
        'A descriptor; any byte but 255 written to it wakes. For the standard '
        "library's ``signal.set_wakeup_fd()``.")

    def register(source, callback=None):
        """Wait for a channel, a process or a timer from now on.

        What it gives is returned by `poll`; with a `callback`, that is called
        with the same pair as its arguments instead, by the thread that calls
        `poll`, and what it raises is logged. Registering again changes the
        callback only.

        TypeError for anything else; NotImplementedError for a channel that
        has no descriptor; ValueError if another source with the same
        descriptor is registered. A regular file is always ready.
        """

    def unregister(source):
        """Wait for it no more; nothing if it is not registered."""

    def send_for(channel):
        """Send what is kept in `channel` now and in future, but do not read.

        A registered channel needs no such call.
        """

    def add_server(sock, callback=None):
        """Accept connections of a listening socket, and register the clients.

        If that fails for lack of descriptors, say, it is logged and tried
        again after a while. `unregister` takes the socket as well.
        """

    def poll(timeout=None):
        """Wait for `timeout` seconds at most (None: for ever), and return what
        there is as a list of pairs:

        * ``(data, channel)``: one read of a channel, all complete lines of
          one read with ``buffering='line'``. ``(b'', channel)`` is its end
          (``''`` with an encoding), also if it was closed here: it comes
          once, and the channel is registered no more.
        * ``((address, channel), sock)``: a client, accepted and registered.
        * ``(status, process)``: a process has ended.
        * ``(expirations, timer)``: how often it was due since the last time.

        An empty list when time is over or `wakeup` was called.
        """

    def wait(timeout=None):
        """Wait as `poll` does, but read nothing.

        True as soon as `poll` would have something or there was a wake-up,
        also one since the last wait; False when the time is over.
        """

    def pause(timeout=None, over=lambda: False):
        """Wait as `wait` does, but only for what is new.

        What was ready in an earlier pause, and was not fetched by `poll`, does
        not end this one until more arrives (where the system has no epoll:
        until it is fetched). What a `poll` has left of a source that it has
        fetched from does, so no more than one `poll` is needed between two
        pauses. A signal does not. `over` is called before each wait; something
        true ends the pause.

        True if it was ended so, or by something new or a `wakeup`; False when
        the time is over.
        """

    def wakeup():
        """End the wait in progress, or else the next one.

        From any thread and from signal handlers; nothing once closed.
        """

    def interrupt():
        """Do the same, but let a pause only ask whether it is over."""

    def close_all():
        """Unregister and close all registered channels and servers."""

    def close():
        """Close its own descriptors, none of the sources'; again does nothing.

        RuntimeError for `poll`, `wait` and registering afterwards.
        """


class ITimer(ISource):
    """``Timer(seconds, interval=None)``

    Due `seconds` after it is registered, and every `interval` seconds from
    then on. Without an interval it is registered no more once it was due.
    """


class IProcess(ISource):
    """``Process(command, *, ...)``: one child, started at once.

    `command` is a list of arguments, or a string that is split as a shell
    would split it. ValueError, TypeError and LookupError for what cannot be
    meant; OSError if the program cannot be run, as from `subprocess.Popen`.
    What follows are the keywords, with their defaults.

    How it is started:

    * ``shell=False``: have ``/bin/sh`` run `command`, a string.
    * ``cwd=None``: the directory it starts in.
    * ``env=None``: replaces the environment, which otherwise is ours.
      ``extra_env={}`` is added to it; a variable that is None is removed.
      What a service manager has told us (``NOTIFY_SOCKET``, ``WATCHDOG_*``,
      ``LISTEN_*``) is passed on by `extra_env` only.
    * ``user=None, group=None, extra_groups=None``: names or numbers. With a
      user but no group the child gets the groups of that user, and none of
      ours; LookupError for a number of which no group is known. Our own user
      needs no privileges.
    * ``umask=-1``: the file mode mask; -1 is ours.
    * ``rlimits={}``: limits by their lower-case names, such as ``nofile``; a
      number for both, or a pair of the soft and the hard limit; -1 is none.
    * ``setpgrp=False``: a process group of its own, so that signals for ours
      (as from the keyboard) do not reach it. ``setsid=False``: a session.
    * ``stdin='inherit', stdout='inherit', stderr='inherit'``: 'inherit',
      'null', 'pipe', a path (a string with a slash or a path object; output
      is appended), a file or a descriptor; `stderr` also 'merge', to go where
      `stdout` goes.
    * ``pass_fds=()``: descriptors it gets, under the same numbers.
    * ``die_with_parent=False``: a signal that the system sends it when we
      end, however that is; True is SIGKILL. Its own children do not get it.
      Linux only.
    * ``detached=False``: it is meant to outlive us: a session of its own, no
      mark, not ended at exit. A Python program gets our ``sys.path``.
    * Other keywords are those of `subprocess.Popen`, without ``preexec_fn``
      and what makes text of streams; ``popen_kwargs={}`` are given to it as
      they are (a ``preexec_fn`` among them may lock up where there are
      threads).

    How it is talked to: ``buffering``, ``encoding``, ``limit`` and
    ``high_water`` are those of the channels.

    How it is watched: ``poller=None`` is the one that it is registered with,
    and that sends what its channels keep; None for that of the background
    thread. ``on_start=None`` is called with the process before its end can be
    noticed, and ``on_end=None`` when it was reaped, by the thread that did it.
    ``name`` is for messages; by default the program's.

    How it is ended: ``stop_signal=SIGTERM``, ``stop_timeout=10``,
    ``kill_signal=SIGKILL``, see `terminate`. ``adopt=False`` makes this
    process the parent of descendants that have lost their own: those known to
    be of this child end with it: by a mark, or if they have overwritten it by
    its session or group. All that are dead are reaped when we exit.

    What has not ended when the interpreter exits is ended then, but nothing by
    a forked copy of it. A context manager, which closes it.
    """

    pid = Attribute('Its number.')

    args = Attribute('The list of arguments.')

    name = Attribute('What messages call it.')

    returncode = Attribute(
        'None until it was noticed that it has ended; then the status, or -N '
        'if signal N ended it; `gocept.runner.process.LOST_STATUS` if others '
        'have reaped it.')

    channel = Attribute(
        'An `IChannel` that reads its standard output and writes to its '
        'standard input, as far as they are pipes; or None.')

    stderr = Attribute('An `IChannel` that reads its standard error, or None.')

    killed = Attribute('Whether `terminate` had to use its `kill_signal`.')

    is_ours = Attribute(
        'Whether it is our child, not that of a process that we are a fork '
        'of.')

    def channels():
        """Iterate over the two of them, without None."""

    def poll():
        """Return `returncode`, after a look whether it has ended.

        None for ever in a forked copy, of which it is no child.
        """

    def wait(timeout=None):
        """Wait for its end and return `returncode`.

        DeadlineExceeded after `timeout` seconds; RuntimeError in a forked
        copy.
        """

    def send_signal(signum):
        """Send a signal to the child alone; nothing if it has ended."""

    def signal_group(signum):
        """Send a signal to its process group, if it leads one, or to it.

        When it has ended, to those it has left behind there.
        """

    def signal_all(signum):
        """Send a signal to it and its descendants, each once; do not wait.

        Those who are born meanwhile may miss it. RuntimeError in a forked
        copy.
        """

    def terminate(signum=None, timeout=None):
        """End it and its descendants, and return `returncode`.

        The signal (by default `stop_signal`) goes to the child, and its group
        if it leads one; to its other descendants when the child has ended.
        Who is stopped is continued. Whatever is left after `timeout` seconds
        (by default `stop_timeout`) is sent `kill_signal`, and
        `killed` is true.

        Descendants are the children of its children and so on, its group, and
        those that have left it, known by a mark in their environment.

        If it has ended already, its descendants are ended. DeadlineExceeded if
        something does not end even though it was killed; RuntimeError in a
        forked copy.
        """

    def close():
        """End it, and close its channels; read them before.

        A forked copy closes its channels only.
        """


class IRunner(Interface):
    """``Runner(extra_paths=(), *, poller=None)``

    Starts applications that are known by name, under aliases, so that one
    application may run several times.

    `extra_paths` are directories appended to the PATH of all children.
    `poller` is one of your own, which then does all that happens by itself:
    sends what channels keep, notices ends, restarts. None for that of the
    background thread.

    May be used by several threads. A context manager, which closes it.
    """

    def add(name, command, **kwargs):
        """Add an application, or replace it.

        `command` and the keywords are those of `IProcess` (without `poller`,
        `on_end` and `name`), and:

        * ``type='stdio'``: the channel is the standard output and input of
          the process, and standard error is ours, by default. Or 'socket':
          the channel is connected to the Unix socket that it listens on.
        * ``socket``: the path of that, seen from `cwd`.
        * ``start_timeout=30``: how many seconds it has until it listens.
        * ``buffering``, ``encoding``, ``limit`` and ``high_water`` are those
          of its channels.
        * ``restart='never'``: or 'on-failure' (a status other than 0) or
          'always'. ``restart_delay=0.1`` is how many seconds to wait before
          the first restart; twice as many before each further one, a minute
          at most. ``restart_limit=5`` is how many restarts there are in a
          row, until it has run for 10 seconds.

        What a 'socket' application says on standard output and error is
        logged by ``gocept.runner.spawn`` (level INFO), unless you say where
        it goes; the tail is part of error messages.

        TypeError, ValueError and LookupError for what cannot be meant.
        """

    def update_config(config):
        """Add several: a dictionary of the keywords of each, by name.

        ``{'app': {'command': 'cat', 'buffering': 'line'}}``. If one of them
        is wrong, none is added.
        """

    def start(app_name, alias=None, with_args=None, **kwargs):
        """Start an application under `alias`, or under its own name.

        `with_args` is a list of more arguments; the keywords replace those of
        the configuration.

        ProcessExistsException if the alias runs already; KeyError for an
        unknown application; OSError if the program cannot be run.

        With a socket it returns when it is connected. A stale socket or an
        empty regular file in its place is removed. StartError if something
        else is there, and, with the status and output, if the process ends
        before it listens; DeadlineExceeded if it does not in time. Then the
        process has been ended.
        """

    def ensure_running(app_name, alias=None, with_args=None, **kwargs):
        """Do nothing if the alias runs, or else `start` it, also anew."""

    def get_channel(alias, stream=None):
        """Return an `IChannel` to the process, or None.

        `stream` 'stdout' is its standard output and input, 'stderr' its
        standard error; each is None unless it is a pipe. Without one it is
        what the type of the application says.

        None if the alias does not run; but what it has said before it ended
        can still be read. After a restart there is a new channel; with a
        socket, this waits until it is connected, as `start` does, also if you
        have closed the one before; the errors are those of `start`, but the
        process is left as it is. The channel of the process before a restart
        is closed with the next one. ValueError for an unknown stream.
        """

    def get_process(alias):
        """Return the `IProcess`, also one that has ended.

        KeyError for an unknown alias.
        """

    def running(alias):
        """Return whether it runs; False for an unknown alias."""

    def status(alias):
        """Return what it has ended with, as `IProcess.returncode`.

        None while it runs. KeyError for an unknown alias.
        """

    def aliases():
        """Return a sorted list of all aliases that were ever started."""

    def give_up(alias):
        """Restart it no more. KeyError for an unknown alias."""

    def terminate(alias, signum=None, timeout=None):
        """End it as `IProcess.terminate` does, and close its channels.

        It is not restarted. KeyError for an unknown alias; the errors of
        `IProcess.terminate`, with the channels closed even so.
        """

    def close():
        """End all, side by side, and close their channels.

        In a forked copy it closes the channels only.
        """


class ICondition(Interface):
    """What a child is to be waited for. May be used by several executors.

    * ``tcp(host, port)``: connections are accepted there. With port 0 a free
      one is chosen, which `port` tells; it is held until the child listens
      (which must set SO_REUSEADDR, as servers do), and replaces ``{port}`` in
      the command.
    * ``http(url, status=r'^2\\d\\d$', method='HEAD', payload=None,
      headers=None, request_timeout=None, *, ssl_context=None, expect=None)``:
      a request is answered with a status that equals `status` or matches it.
      `payload` is a dictionary, sent as a form. `request_timeout` is how many
      seconds one request may take; None or 0 for the whole time of the start.
      `expect` is called, in a thread of its own, with the
      `http.client.HTTPResponse`, and says whether it is the right one. With
      https, `ssl_context` is by default one that verifies.
    * ``unix(path)``: connections to a Unix socket are accepted.
    * ``output(banner, failure=None)``: a line of the output, complete or not,
      matches `banner`, a regular expression, in which ``^`` and ``$`` are the
      ends of a line. A match of `failure` ends the wait. Of a line longer than
      64 KiB the end is searched.
    * ``pid_file(path)``: the file is written after the start.
    * ``exits_zero(command)``: a command ends with 0.
    * ``notified()``: the child says so, by a newline written to the
      descriptor ``$NOTIFY_FD`` (also ``{notify_fd}`` in its command), or with
      ``READY=1`` sent to ``$NOTIFY_SOCKET``, see sd_notify(3).
    * ``all_of(condition, ...)``: each has held once.

    ValueError for what cannot be meant.
    """

    def check():
        """Return a `gocept.runner.executor.Check`, for one start."""

    def holds_already(poller, deadline):
        """Return who is in the way of a new child, as text; '' for nobody."""

    def replaced(text):
        """Return a part of a command with what the condition has chosen."""

    def servers():
        """Yield the pids of those who bring it about.

        Only children of ours that are no `IProcess` count: if an executor's
        child has ended, that is the daemon it has become, which may be known
        by nothing else.
        """


class IExecutor(Interface):
    """``SimpleExecutor(command, cwd=None, shell=False, timeout=3600,
    sleep=0.1, stop_signal=SIGTERM, kill_signal=SIGKILL,
    expected_returncode=None, envvars=None, stdin=PIPE, stdout=PIPE,
    stderr=None, popen_kwargs=None, *, stop_timeout=None, output_size=2**20,
    log_file=None, requires=(), die_with_parent=False, name='')``

    Starts one child at a time, again and again, and ends it with all its
    descendants. A context manager, which starts and stops it. An executor that
    is forgotten ends its child.

    `command` is a list of arguments, or a string that is split as a shell
    would split it; with `shell`, ``/bin/sh`` runs it. `timeout` is how many
    seconds a start may take, and a stop until the child is killed, unless
    `stop_timeout` says it. `sleep` is the longest pause between two probes.
    `envvars` are added to our environment. `stdin`, `stdout` and `stderr` are
    those of `subprocess.Popen`, which is given `popen_kwargs` too, unchanged
    and before all else that is said here; of these, ``encoding`` and
    ``errors`` are also those of `output`.

    What the child writes to pipes is read all the time. The last `output_size`
    bytes of each can be read; all of it is appended to `log_file`. `requires`
    are other executors, see `gocept.runner.executor.start_all`.
    `die_with_parent` is as in `IProcess`. `name` is for messages and events.

    The child is started in a session of its own, with ``adopt=True``, see
    `IProcess`.
    """

    command = Attribute('The command as text.')

    command_parts = Attribute('The command as a list.')

    name = Attribute('What it was called, or the name of its program.')

    process = Attribute(
        'The `IProcess`; None before the start and after the stop.')

    envvars = Attribute('The environment of the child, a dictionary.')

    requires = Attribute('A tuple of executors that are to be started before.')

    dropped = Attribute('How many bytes of the output are not kept any more.')

    def start():
        """Start it, and return the executor when the child is ready.

        If it runs already, nothing happens; one that has ended is started
        anew. OSError if the program cannot be run.
        """

    def ensure_running():
        """Start it, unless it is up, and before it what it requires.

        Returns the executor; the errors are those of `start`.
        """

    def stop(stop_signal=None, expected_returncode=None):
        """End it and its descendants; returns the executor.

        What is left after the time is sent the kill signal. Nothing if there
        is no child. ProcessFinishedWithError if its status is none of 0,
        `expected_returncode` and minus the signal; the child is gone then all
        the same. ExecutorError if something cannot be ended; then `stop` may
        be called again.
        """

    def kill(wait=True, sig=None):
        """Send it, and all its descendants, the kill signal, or `sig`.

        Unless `wait`, return at once.
        """

    def stopped():
        """A context manager: stopped inside, and started again after it.

        If it is not up, it is not started either.
        """

    def running():
        """Return whether the child runs."""

    def is_up():
        """Return whether it runs, or has become a daemon that does.

        It has become one if it has ended with 0 and left something behind.
        """

    def output():
        """Return a text stream of what it writes; None before the start.

        Reading waits for what is to come. Where something was dropped that
        was not read, a line in brackets says how much. None as well if its
        standard output is no pipe.
        """

    def err_output():
        """Return the same for its standard error."""

    def wait_for(condition):
        """Call it until it returns something true; returns the executor.

        It is called when something has happened to the child, and after
        pauses of 1 ms at first, growing to `sleep`. TimeoutExpired when the
        time of the start is over; then, and after any other exception, the
        child has been killed.
        """

    def check_timeout():
        """Return whether there is time left for what is going on."""


class ICheckedExecutor(IExecutor):
    """``Executor``: the base of those that look for themselves.

    Override `pre_start_check` and `after_start_check`; if neither is, `start`
    waits for nothing.
    """

    def start():
        """Start it, and wait until `check_subprocess` returns true.

        AlreadyRunning if `pre_start_check` returns true, as it may for a
        daemon, whose parent has ended with 0; TimeoutExpired;
        ProcessExitedWithError if the child fails before it is ready, or its
        end makes it impossible. Then everything that was started has ended.
        """

    def pre_start_check():
        """Return whether what is waited for is there before the start."""

    def after_start_check():
        """Return whether the child is ready."""

    def check_subprocess():
        """Return `after_start_check`; ProcessExitedWithError if the child has
        ended with a failure."""


class IConditionExecutor(ICheckedExecutor):
    """``ConditionExecutor(command, condition, **kwargs)``

    The keywords are those of `IExecutor`. Those with a name are called

    * ``OutputExecutor(command, banner, *, failure=None)``: after its start,
      `output` continues behind the line of the banner;
    * ``TCPExecutor(command, host, port)``, with `host` and `port`;
    * ``HTTPExecutor(command, url, ...)``, see ``http()``, with `url` (as from
      ``urlsplit``), `host` and `port`; anybody who listens on the port is in
      its way;
    * ``PidExecutor(command, filename)``: a file whose process runs is in its
      way, a stale one is not;
    * ``UnixSocketExecutor(command, socket_name)``.
    """

    condition = Attribute('The `ICondition`.')


class IExecutorLayer(Interface):
    """``ExecutorLayer(name, make, *, bases=(), module=None)``

    A layer of zope.testrunner: an executor that runs as long as tests need it.

    `make` is called when the layer is set up, and returns the executor. `name`
    is the one that the test runner shows, with `module` (by default the one
    that makes the layer); it is best the name of the variable. `bases` are
    other layers, which are set up before this one.
    """

    executor = Attribute(
        'The executor; RuntimeError while the layer is not set up.')

    def setUp():
        """Start it, with what it requires."""

    def testSetUp():
        """Start anew what a test before has stopped, or what has failed."""

    def tearDown():
        """Stop what was started."""


class ISupervisor(Interface):
    """The utility that knows what ZCML declares.

    ``<include package="gocept.runner" />`` registers it, and beside it

    * the `IRunner` utility: `get_channel` of an application that is declared
      starts it, if nobody has. What it requires is started before it. When
      one was restarted, the worker is woken.
    * the `IPoller` utility, whose `pause` is that between two ticks. It
      belongs to the worker, and is opened at its first use.

    Executors are `IExecutor` utilities with a name.
    """

    children = Attribute('A dictionary of apps and executors, by name.')

    workers = Attribute('A dictionary of workers, by name.')

    def add_app(name, eager=False, requires=(), **keywords):
        """Add an application to the runner; see `IRunner.add`."""

    def add_executor(name, executor, eager=False, requires=(),
                     description=''):
        """Know an `IExecutor`. `description` is for ``gocept-runner list``."""

    def connect(name):
        """Look up what a child requires.

        ValueError for what is not there, and if it requires itself.
        """

    def running(shutdown_timeout):
        """Return a context manager, in which they run.

        First those that are `eager` are started, as `start_all` of
        `gocept.runner.executor` does. CannotStart if one fails; Terminated if
        a signal comes meanwhile. At the end there is `stop`, unless another
        thread is inside; Terminated if the first signal comes then. A signal
        ends the loop inside.
        """

    def stop(timeout):
        """Stop all children that run, and close runner and poller.

        Each is stopped after all that require it, and beside all that may be
        stopped then; what is left after `timeout` seconds in all is killed.
        Children that have ended badly are logged.
        """


class ILoopEvent(Interface):
    """Something happened to a loop, see `IMainLoop`.

    Events are sent through zope.event, by the thread in which they happen. A
    subscriber that fails is logged, and changes nothing. Outside a tick there
    is no transaction, so what subscribers change in the database is not kept.
    Who subscribes during a tick hears of it from the next one on.
    """

    loop = Attribute('The `IMainLoop`.')


class ILoopStarted(ILoopEvent):
    """The first tick is next. Its site is set, and the handlers are."""


class ILoopStopped(ILoopEvent):
    """The last tick is over, whatever ended it."""


class ITickStarted(ILoopEvent):
    """The transaction is begun next."""


class ITickCommitted(ILoopEvent):
    """It was committed; in a dry run, it would have been."""


class ITickAborted(ILoopEvent):
    """It was aborted, and is not tried again before the next tick."""

    error = Attribute('The exception.')


class IConflictRetried(ILoopEvent):
    """It was aborted, and is tried again in the same tick."""

    error = Attribute('The exception.')

    attempt = Attribute('Which one has failed; the first is 1.')


class IChildEvent(Interface):
    """Something happened to a child of a runner or an executor.

    Sent as an `ILoopEvent` is, but by whatever thread has started it or
    noticed its end, often the one that polls in the background. A worker that
    is to react calls `wakeup` of its poller in a subscriber.
    """

    process = Attribute('The `IProcess`.')

    name = Attribute('Its alias or name.')


class IChildStarted(IChildEvent):
    """Its program runs."""


class IChildReady(IChildEvent):
    """It can be used: what was waited for has happened."""


class IChildEnded(IChildEvent):
    """It has ended, wanted or not."""

    status = Attribute('As `IProcess.returncode`.')


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

    def pause(seconds=None, poller=None):
        """Sleep as `wait` does, but no longer than `IPoller.pause` either.

        Without a `poller` it is ended by `wakeup`. None is for ever.
        """

    def wakeup():
        """End such a pause without a request; from any thread."""
