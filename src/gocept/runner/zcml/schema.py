"""The schemas of the ZCML directives.

The attributes are the keywords of the Python interface. What these mean is in
`IRunner`, `IProcess`, `IExecutor`, `ICondition` and `IAppMain`.
"""

from zope.interface import Interface

from gocept.runner.zcml import fields


class IKernelDirective(Interface):
    """Declare a kernel, which keeps children when workers end; see `IKernel`.
    """

    name = fields.Name(
        'The name by which apps and executors refer to it (default: none).')

    path = fields.AbsolutePath(
        'The path of the Unix socket that the kernel listens on. As all paths '
        'in ZCML, a relative one starts in the directory in which the program '
        'is started, so an absolute one is better here.')

    port = fields.Number(
        'Its port, in place of a path (default: 20202).', min=1, max=65535)

    instance = fields.Text(
        'What the names of its processes begin with, and a dot (default: a '
        'name made of that of the database). Programs with different '
        'databases can share one kernel.')


class IChildDirective(Interface):
    """What apps and executors have in common."""

    name = fields.Text(
        'The name to look the child up by. Apps and executors share one list '
        'of names.', required=True)

    command = fields.Text(
        'The program and its arguments, split as a shell would split them.',
        required=True)

    start = fields.Choice(
        'When the child is started: "eager" before the first tick, "lazy" at '
        'its first use.', values=('lazy', 'eager'), default='lazy')

    requires = fields.Words(
        'The names of apps and executors that are started before this child, '
        'and stopped after it.')

    shell = fields.Bool('Have /bin/sh run the command (default: false).')

    cwd = fields.Text('The directory the child starts in (default: ours).')

    user = fields.NameOrNumber('The user of the child: a name or a number.')

    group = fields.NameOrNumber(
        'The group the child runs as (default: that of the user).')

    extra_groups = fields.Words(
        'The other groups of the child (default: those of the user).',
        word=fields.NameOrNumber.convert)

    umask = fields.Mode('The mask in octal digits (default: ours).')

    die_with_parent = fields.SignalOrBool(
        'A signal that the child gets when we end for any reason; "true" is '
        'SIGKILL (default: false).')

    stop_signal = fields.Signal(
        'The signal that tells the child to end (default: SIGTERM).')

    stop_timeout = fields.Seconds(
        'How many seconds the end of the child may take until the child is '
        'killed (default: 10 for an app, "timeout" for an executor).')

    kill_signal = fields.Signal(
        'The signal that kills the child (default: SIGKILL).')

    popen_kwargs = fields.Object(
        'The dotted name of a dictionary of keywords that subprocess.Popen '
        'gets unchanged.')

    kernel = fields.Name(
        'The name of the kernel that the child lives in, so that it goes on '
        'when we end; "" is the kernel without a name (default: the child is '
        'ours).')


class IAppDirective(IChildDirective):
    """Declare an application of the runner; see `IRunner.add`."""

    type = fields.Choice(
        'What the channel is connected to: standard input and output of the '
        'child (default), or a Unix socket.', values=('stdio', 'socket'))

    socket = fields.Text('The path of the Unix socket the child listens on.')

    start_timeout = fields.Seconds(
        'How many seconds the child has until it listens (default: 30).')

    buffering = fields.Choice(
        'What one read of the channel gives: all that there is (default), or '
        'a line.', values=('bytes', 'line'))

    encoding = fields.Text(
        'The encoding of the text in the channel (default: bytes).')

    limit = fields.Number('The length of the longest line (default: 1048576).')

    high_water = fields.Number(
        'A write is an error while the channel keeps more bytes than this '
        '(default: 1048576).')

    transactional = fields.Bool(
        'Whether lines that an aborted transaction has fetched come again, '
        'and what it has written is sent with the commit (default: false).')

    redeliveries = fields.NumberOrNone(
        'How often a line whose transaction fails comes again before it is '
        'skipped; "none" for no limit (default: 5).')

    restart = fields.Choice(
        'Whether a child that has ended is started again (default: never).',
        values=('never', 'on-failure', 'always'))

    on_change = fields.Choice(
        'What is done if the child lives in a kernel, but was started by '
        'another declaration: "keep" it as it is (default), "replace" it, or '
        '"refuse" to start if its command is another one.',
        values=('keep', 'replace', 'refuse'))

    restart_delay = fields.Seconds(
        'How many seconds to wait before the first restart; each further one '
        'waits twice as long (default: 0.1).')

    restart_limit = fields.Number(
        'How many restarts there are in a row (default: 5).')

    env = fields.Pairs(
        'Replaces the environment, which otherwise is ours: NAME=VALUE ...')

    extra_env = fields.Pairs('Is added to the environment: NAME=VALUE ...')

    rlimits = fields.Limits(
        'Limits such as nofile=1024 or core=0:-1, which is soft and hard.')

    setpgrp = fields.Bool(
        'Start the child in a process group of its own, in our session: to '
        'read from the terminal stops the child. "false" leaves the child in '
        'our group (default: neither, as it has a session of its own).')

    setsid = fields.Bool(
        'Start the child in a session of its own (default: true): no signal '
        'from the terminal is for the child, which cannot open the terminal.')

    stdin = fields.Text(
        '"pipe", "null", "inherit" or a path with a slash (default: "pipe"; '
        'with a socket "null").')

    stdout = fields.Text(
        '"pipe", "null", "inherit" or a path with a slash (default: "pipe"; '
        'with a socket it is logged).')

    stderr = fields.Text(
        '"pipe", "null", "inherit", "merge" or a path with a slash (default: '
        '"inherit"; with a socket it is logged).')

    pass_fds = fields.Words(
        'Descriptors that the child gets under the same numbers.', word=int)

    detached = fields.Bool(
        'Let the child go on if we are killed: it gets a session of its own '
        'and no mark (default: false).')

    adopt = fields.Bool(
        'Become the parent of the orphans of the child, and end them as well '
        '(default: false).')


class IExecutorDirective(IChildDirective):
    """Declare an executor; see `IExecutor` and `IConditionExecutor`."""

    type = fields.Choice(
        'What a start waits for: nothing (default), a banner in the output, a '
        'port, a URL, a pid file, a Unix socket, a PostgreSQL or a Redis that '
        'serves, a notification, a command that ends with 0, or a condition '
        'of your own.',
        values=('simple', 'output', 'tcp', 'http', 'pid', 'unix',
                'postgresql', 'redis', 'notified', 'probe', 'condition'))

    class_ = fields.Object(
        'In place of a type: an executor class of your own, which is called '
        'with the command and the other attributes.')

    timeout = fields.Seconds(
        'How many seconds a start may take (default: 3600).')

    sleep = fields.Seconds(
        'The longest pause between two probes, in seconds (default: 0.1).')

    expected_returncode = fields.Number(
        'A status that is no error when the executor is stopped, beside 0 and '
        'the signal.')

    envvars = fields.Pairs('Is added to our environment: NAME=VALUE ...')

    stdin = fields.PopenStream(
        '"pipe" (default), "null", "inherit" or a path with a slash.')

    stdout = fields.PopenStream(
        '"pipe" (default), "null", "inherit" or a path with a slash.')

    stderr = fields.PopenErrorStream(
        '"pipe", "null", "inherit" (default), "merge" or a path with a slash.')

    output_size = fields.Number(
        'How many bytes of the output can be read (default: 1048576).')

    log_file = fields.Text('The file that all output is appended to.')

    banner = fields.Pattern(
        'Of type "output": a regular expression for a line of the output, '
        'which says that the child is ready.')

    failure = fields.Pattern(
        'Of type "output": a regular expression for a line of the output, '
        'which ends the wait.')

    host = fields.Text(
        'Of type "tcp", "postgresql" and "redis": the host that the child '
        'listens on. If it begins with "/": the directory of the Unix socket '
        'of a PostgreSQL, the path of that of a Redis.')

    port = fields.Number(
        'Of these types: the port that the child listens on (default: 5432 of '
        'a PostgreSQL, 6379 of a Redis); 0 chooses a free one, which replaces '
        '{port} in command and envvars.', min=0, max=65535)

    send = fields.Bytes(
        'Of type "tcp" and "unix": what is sent, PING\\r\\n for instance '
        '(default: nothing).')

    dbname = fields.Text(
        'Of type "postgresql": the database that is asked for (default: '
        'postgres).')

    dbuser = fields.Text(
        'Of type "postgresql": who asks for it (default: postgres). The '
        'attribute "user" is that of the process.')

    password = fields.Text(
        'Of type "redis": its password, best taken from zope.conf (default: '
        'none).')

    url = fields.Text('Of type "http": the URL that is requested.')

    status = fields.PatternOrNumber(
        'Of type "http": the status of the answer, or a regular expression '
        '(default: ^2\\d\\d$).')

    method = fields.Text('Of type "http": the method (default: HEAD).')

    payload = fields.Pairs('Of type "http": the form to send: NAME=VALUE ...')

    headers = fields.Pairs('Of type "http": more headers: NAME=VALUE ...')

    request_timeout = fields.Seconds(
        'Of type "http": how many seconds one request may take.')

    ssl_context = fields.Object(
        'Of type "http": the dotted name of the context (default: one that '
        'verifies).')

    expect = fields.Text(
        'Of type "tcp" and "unix": a regular expression for the answer. Of '
        'type "http": the dotted name of a function that is called with the '
        'response.')

    filename = fields.Text('Of type "pid": the path of the pid file.')

    socket_name = fields.Text('Of type "unix": the path of the socket.')

    probe = fields.Text(
        'Of type "probe": a command that ends with 0 when the child is ready.')

    condition = fields.Object(
        'Of type "condition": the dotted name of the condition.')


class IServerDirective(Interface):
    """Declare a background server; see `IServer` and `IWorkerClient`."""

    name = fields.Text(
        'The name of the server and of its client. Apps, executors and '
        'servers share one list of names.', required=True)

    init = fields.Function(
        'The init task, my.package:function.', required=True)

    exec = fields.Function(
        'The exec task, my.package:function.', required=True)

    exit = fields.Function(
        'The exit task, my.package:function (default: none).')

    start = fields.Choice(
        'An "eager" server is started before the first tick, and ends with '
        'the program. A "detached" one is started when nobody answers, and '
        'goes on (default: eager).', values=('eager', 'detached'),
        default='eager')

    requires = fields.Words(
        'The names of apps, executors and servers that are started before '
        'this server, and stopped after it. Of a detached one: that are '
        'started before its client uses it.')

    host = fields.Text('Where it listens (default: 127.0.0.1).')

    port = fields.Number(
        'Its port (default: 54321; of an eager one: a free port).', min=1,
        max=65535)

    token_file = fields.Text(
        'A file with the token that its clients have to know (default: the '
        'environment variable GOCEPT_RUNNER_TOKEN, or a token that the server '
        'keeps for the same user; of an eager one: a token that only this '
        'program knows).')

    tls_cert = fields.Text(
        'For TLS: the file with the certificate of both sides.')

    tls_key = fields.Text('For TLS: the file with its key.')

    tls_ca = fields.Text(
        'For TLS: the file with the certificates that are trusted.')

    insecure = fields.Bool(
        'Allow an address that other machines can reach without TLS (default: '
        'false).')

    start_timeout = fields.Seconds(
        'How many seconds the server has until it is initialized and clients '
        'can connect (default: 30).')

    stop_timeout = fields.Seconds(
        'Of an eager one: how many seconds its end may take until it is '
        'killed (default: start_timeout).')

    log_file = fields.Text(
        'The file that its log, and what its tasks print, is appended to.')

    log_level = fields.Choice(
        'The lowest level that is logged (default: INFO).',
        values=('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'))

    zope_conf = fields.Text(
        'The zope.conf of the database that its tasks use in a transaction '
        'each (default: no database).')

    principal = fields.Text('The id of the principal that its tasks run as.')

    site = fields.Text(
        'The path of the site in the database that its tasks use.')

    application = fields.Text(
        'The kind of application of its zope_conf: toolkit or zope (default: '
        'the one that the file is for).')

    server_url = fields.Text(
        'Of Zope: the URL of the site, as browsers see it.')

    log_config = fields.AbsolutePath(
        'Of Zope: a file that sets up logging, such as zope.ini.')

    max_message = fields.Number(
        'The most bytes of a request or a response (default: 1 GiB).', min=1)

    queue_size = fields.Number(
        'How many requests may wait in the server (default: 1000).', min=1)

    queue_bytes = fields.Number(
        'How many bytes these may have (default: 2 GiB).', min=1)

    transactional = fields.Bool(
        'Of the client: whether requests are sent when the transaction is '
        'committed, and answers that an aborted one has fetched come again '
        '(default: false).')

    redeliveries = fields.NumberOrNone(
        'Of a transactional client: how often an answer whose transaction '
        'fails comes again before it is skipped; "none" for no limit '
        '(default: 5).')

    retry = fields.Bool(
        'Of the client: whether a request may run twice if the connection is '
        'lost (default: false).')

    timeout = fields.Seconds(
        'Of the client: how many seconds a call waits (default: no limit).')

    heartbeat = fields.Seconds(
        'Of the client: how many seconds of silence there may be before the '
        'server is asked for a sign of life (default: 10).')


class IWorkerDirective(Interface):
    """Declare a worker that ``gocept-runner run`` runs; see `IAppMain`.

    If the handler has a decorator, attributes that are left out are as its
    keywords.
    """

    name = fields.Text(
        'The name of the worker on the command line.', required=True)

    handler = fields.Object(
        'The function, my.package:function, with or without a decorator of '
        'gocept.runner.', required=True)

    site = fields.Text(
        'The path of the object that becomes the site, such as intranet/news '
        '(default: the root).')

    arguments = fields.Words(
        'The arguments that the worker is called with (default: none).')

    ticks = fields.Seconds(
        'How many seconds to sleep between two calls (default: 1).')

    schedule = fields.Text(
        'In place of ticks: at which times to call it, as in a crontab, such '
        'as */15 2-5 * * mon-fri.')

    timezone = fields.Text(
        'The zone of these times, such as Europe/Berlin (default: that of the '
        'system).')

    jitter = fields.Seconds(
        'Each run of the schedule begins at a random instant, fewer than so '
        'many seconds after its time (default: 0).')

    missed = fields.Choice(
        'What becomes of runs of the schedule whose time has passed while the '
        'program did not run, or was busy: "skip" leaves them out, "once" '
        'makes one run of them all, at once (default: skip).',
        values=('skip', 'once'))

    lock = fields.Bool(
        'Whether only one process at a time may run the worker on this '
        'machine, for the same database and site (default: false).')

    tick_timeout = fields.Seconds(
        'How many seconds a tick, or an item of it, may take (default: as '
        'long as it takes).')

    tick_timeout_action = fields.Choice(
        'What is done about one that takes longer: "log" the stacks of all '
        'threads, or "abort" the process as well (default: log).',
        values=('log', 'abort'))

    principal = fields.Text('The id of the principal that the worker runs as.')

    once = fields.Bool(
        'Run one tick, and end (default: false). With a schedule, '
        '"gocept-runner up" starts a process for each of its times, and '
        '"gocept-runner run" runs one tick at once.')

    attempts = fields.Number(
        'How often a tick is run at most if it fails for a reason that passes '
        '(default: 3).', min=1)

    max_backoff = fields.Seconds(
        'The longest pause after errors in a row, in seconds (default: 60).')

    shutdown_timeout = fields.Seconds(
        'How many seconds the end of all children may take (default: 30).')

    watch = fields.Object(
        'A function, my.package:function, that is called with the site and '
        'returns objects of the database: a change of one of them ends the '
        'pause between two calls (default: none).')

    watch_interval = fields.Seconds(
        'How many seconds to wait between two looks for a change, where the '
        'storage tells nobody: RelStorage (default: 0.5).')
