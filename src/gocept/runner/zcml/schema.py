"""The schemas of the ZCML directives.

The attributes are the keywords of the Python interface. What these mean is in
`IRunner`, `IProcess`, `IExecutor`, `ICondition` and `IAppMain`.
"""

from zope.interface import Interface

from gocept.runner.zcml.fields import (
    Bool,
    Choice,
    Limits,
    Mode,
    NameOrNumber,
    NamesOrNumbers,
    Number,
    Numbers,
    Object,
    Pairs,
    PopenErrorStream,
    PopenStream,
    Seconds,
    Signal,
    SignalOrBool,
    Stream,
    Text,
    Words,
)


class IChildDirective(Interface):
    """What apps and executors have in common."""

    name = Text(
        'Name',
        'The name to look the child up by. Apps and executors share one list '
        'of names.', required=True)

    command = Text(
        'Command',
        'The program and its arguments, split as a shell would split them.',
        required=True)

    start = Choice(
        'Start',
        'When the child is started: "eager" before the first tick, "lazy" at '
        'its first use.', values=('lazy', 'eager'), default='lazy')

    requires = Words(
        'Requires',
        'The names of apps and executors that are started before this child, '
        'and stopped after it.')

    shell = Bool('Shell', 'Have /bin/sh run the command (default: false).')

    cwd = Text(
        'Working directory',
        'The directory the child starts in (default: ours).')

    user = NameOrNumber(
        'User', 'The user the child runs as, a name or a number.')

    group = NameOrNumber(
        'Group', 'The group the child runs as (default: that of the user).')

    extra_groups = NamesOrNumbers(
        'Further groups',
        'The other groups of the child (default: those of the user).')

    umask = Mode('File mode mask', 'The mask in octal digits (default: ours).')

    die_with_parent = SignalOrBool(
        'Die with parent',
        'A signal that the child gets when we end for any reason; "true" is '
        'SIGKILL (default: false).')

    stop_signal = Signal(
        'Stop signal',
        'The signal that tells the child to end (default: SIGTERM).')

    stop_timeout = Seconds(
        'Stop timeout',
        'How many seconds the end of the child may take until the child is '
        'killed (default: 10 for an app, "timeout" for an executor).')

    kill_signal = Signal(
        'Kill signal', 'The signal that kills the child (default: SIGKILL).')

    popen_kwargs = Object(
        'Keywords of Popen',
        'The dotted name of a dictionary of keywords that subprocess.Popen '
        'gets unchanged.')


class IAppDirective(IChildDirective):
    """Declare an application of the runner; see `IRunner.add`."""

    type = Choice(
        'Type',
        'What the channel is connected to: standard input and output of the '
        'child (default), or a Unix socket.', values=('stdio', 'socket'))

    socket = Text(
        'Socket', 'The path of the Unix socket that the child listens on.')

    start_timeout = Seconds(
        'Start timeout',
        'How many seconds the child has until it listens (default: 30).')

    buffering = Choice(
        'Buffering',
        'What one read of the channel gives: all that there is (default), or '
        'a line.', values=('bytes', 'line'))

    encoding = Text(
        'Encoding',
        'The encoding that makes text of what the channel reads (default: '
        'bytes).')

    limit = Number(
        'Limit', 'The length of the longest line (default: 1048576).')

    high_water = Number(
        'High water',
        'A write is an error while the channel keeps more bytes than this '
        '(default: 1048576).')

    restart = Choice(
        'Restart',
        'Whether a child that has ended is started again (default: never).',
        values=('never', 'on-failure', 'always'))

    restart_delay = Seconds(
        'Restart delay',
        'How many seconds to wait before the first restart; each further one '
        'waits twice as long (default: 0.1).')

    restart_limit = Number(
        'Restart limit', 'How many restarts there are in a row (default: 5).')

    env = Pairs(
        'Environment',
        'Replaces the environment, which otherwise is ours: NAME=VALUE ...')

    extra_env = Pairs(
        'Additional environment',
        'Is added to the environment: NAME=VALUE ...')

    rlimits = Limits(
        'Resource limits',
        'Limits such as nofile=1024 or core=0:-1, which is soft and hard.')

    setpgrp = Bool(
        'Process group',
        'Start the child in a process group of its own (default: false).')

    setsid = Bool(
        'Session', 'Start the child in a session of its own (default: false).')

    stdin = Stream(
        'Standard input',
        '"pipe", "null", "inherit" or a path with a slash (default: "pipe"; '
        'with a socket "null").')

    stdout = Stream(
        'Standard output',
        '"pipe", "null", "inherit" or a path with a slash (default: "pipe"; '
        'with a socket it is logged).')

    stderr = Stream(
        'Standard error',
        '"pipe", "null", "inherit", "merge" or a path with a slash (default: '
        '"inherit"; with a socket it is logged).')

    pass_fds = Numbers(
        'Descriptors',
        'Descriptors that the child gets under the same numbers.')

    detached = Bool(
        'Detached',
        'Let the child go on if we are killed: it gets a session of its own '
        'and no mark (default: false).')

    adopt = Bool(
        'Adopt',
        'Become the parent of the orphans of the child, and end them as well '
        '(default: false).')


class IExecutorDirective(IChildDirective):
    """Declare an executor; see `IExecutor` and `IConditionExecutor`."""

    type = Choice(
        'Type',
        'What a start waits for: nothing (default), a banner in the output, a '
        'port, a URL, a pid file, a Unix socket, a notification, a command '
        'that ends with 0, or a condition of your own.',
        values=('simple', 'output', 'tcp', 'http', 'pid', 'unix', 'notified',
        'probe', 'condition'))

    class_ = Object(
        'Class',
        'In place of a type: an executor class of your own, which is called '
        'with the command and the other attributes.')

    timeout = Seconds(
        'Timeout', 'How many seconds a start may take (default: 3600).')

    sleep = Seconds(
        'Sleep',
        'The longest pause between two probes, in seconds (default: 0.1).')

    expected_returncode = Number(
        'Expected status',
        'A status that is no error when the executor is stopped, beside 0 and '
        'the signal.')

    envvars = Pairs(
        'Environment', 'Is added to our environment: NAME=VALUE ...')

    stdin = PopenStream(
        'Standard input',
        '"pipe" (default), "null", "inherit" or a path with a slash.')

    stdout = PopenStream(
        'Standard output',
        '"pipe" (default), "null", "inherit" or a path with a slash.')

    stderr = PopenErrorStream(
        'Standard error',
        '"pipe", "null", "inherit" (default), "merge" or a path with a slash.')

    output_size = Number(
        'Output size',
        'How many bytes of the output can be read (default: 1048576).')

    log_file = Text('Log file', 'The file that all output is appended to.')

    banner = Text(
        'Banner',
        'Of type "output": a regular expression for a line of the output, '
        'which says that the child is ready.')

    failure = Text(
        'Failure',
        'Of type "output": a regular expression for a line of the output, '
        'which ends the wait.')

    host = Text('Host', 'Of type "tcp": the host that the child listens on.')

    port = Number(
        'Port',
        'Of type "tcp": the port that the child listens on; 0 chooses a free '
        'one, which replaces {port} in the command.', min=0, max=65535)

    url = Text('URL', 'Of type "http": the URL that is requested.')

    status = NameOrNumber(
        'Status',
        'Of type "http": the status of the answer, or a regular expression '
        '(default: ^2\\d\\d$).')

    method = Text('Method', 'Of type "http": the method (default: HEAD).')

    payload = Pairs(
        'Payload', 'Of type "http": the form that is sent: NAME=VALUE ...')

    headers = Pairs('Headers', 'Of type "http": more headers: NAME=VALUE ...')

    request_timeout = Seconds(
        'Request timeout',
        'Of type "http": how many seconds one request may take.')

    ssl_context = Object(
        'SSL context',
        'Of type "http": the dotted name of the context (default: one that '
        'verifies).')

    expect = Object(
        'Expectation',
        'Of type "http": the dotted name of a function that is called with '
        'the response.')

    filename = Text('File name', 'Of type "pid": the path of the pid file.')

    socket_name = Text('Socket', 'Of type "unix": the path of the socket.')

    probe = Text(
        'Probe',
        'Of type "probe": a command that ends with 0 when the child is ready.')

    condition = Object(
        'Condition', 'Of type "condition": the dotted name of the condition.')


class IWorkerDirective(Interface):
    """Declare a worker that ``gocept-runner run`` runs; see `IAppMain`.

    If the handler has a decorator, attributes that are left out are as its
    keywords.
    """

    name = Text(
        'Name', 'The name of the worker on the command line.', required=True)

    handler = Object(
        'Handler',
        'The function, my.package:function, with or without a decorator of '
        'gocept.runner.', required=True)

    ticks = Seconds(
        'Ticks', 'How many seconds to sleep between two calls (default: 1).')

    principal = Text(
        'Principal', 'The id of the principal that the worker runs as.')

    once = Bool('Once', 'Run one tick, and end (default: false).')

    attempts = Number(
        'Attempts',
        'How often a tick is run at most if it fails for a reason that passes '
        '(default: 3).', min=1)

    max_backoff = Seconds(
        'Longest back-off',
        'The longest pause after errors in a row, in seconds (default: 60).')

    shutdown_timeout = Seconds(
        'Shutdown timeout',
        'How many seconds the end of all children may take in all (default: '
        '30).')
