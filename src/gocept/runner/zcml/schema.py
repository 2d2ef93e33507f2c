"""The schemas of the ZCML directives.

The attributes are the keywords of the Python interface. What these mean is in
`IRunner`, `IProcess`, `IExecutor`, `ICondition` and `IAppMain`.
"""

from zope.interface import Interface

from gocept.runner.zcml import fields


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
        'port, a URL, a pid file, a Unix socket, a notification, a command '
        'that ends with 0, or a condition of your own.',
        values=('simple', 'output', 'tcp', 'http', 'pid', 'unix', 'notified',
                'probe', 'condition'))

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

    host = fields.Text('Of type "tcp": the host that the child listens on.')

    port = fields.Number(
        'Of type "tcp": the port that the child listens on; 0 chooses a free '
        'one, which replaces {port} in command and envvars.', min=0,
        max=65535)

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

    expect = fields.Object(
        'Of type "http": the dotted name of a function that is called with '
        'the response.')

    filename = fields.Text('Of type "pid": the path of the pid file.')

    socket_name = fields.Text('Of type "unix": the path of the socket.')

    probe = fields.Text(
        'Of type "probe": a command that ends with 0 when the child is ready.')

    condition = fields.Object(
        'Of type "condition": the dotted name of the condition.')


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

    ticks = fields.Seconds(
        'How many seconds to sleep between two calls (default: 1).')

    principal = fields.Text('The id of the principal that the worker runs as.')

    once = fields.Bool('Run one tick, and end (default: false).')

    attempts = fields.Number(
        'How often a tick is run at most if it fails for a reason that passes '
        '(default: 3).', min=1)

    max_backoff = fields.Seconds(
        'The longest pause after errors in a row, in seconds (default: 60).')

    shutdown_timeout = fields.Seconds(
        'How many seconds the end of all children may take (default: 30).')
