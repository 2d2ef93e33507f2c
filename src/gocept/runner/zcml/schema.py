"""The schemas of the ZCML directives.

The attributes are the keywords of the Python interface; `interfaces` says what
they mean, in `IRunner`, `IProcess`, `IExecutor`, `ICondition` and `IAppMain`.
What the directives do is in `gocept.runner.zcml.directives`.
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
        title='Name',
        description='What it is looked up by. Apps and executors share one '
                    'list of names.')

    command = Text(
        title='Command',
        description='The program and its arguments, split as a shell would '
                    'split them.')

    start = Choice(
        title='Start', values=('lazy', 'eager'), default='lazy',
        required=False,
        description='When it is started: "eager" before the first tick, '
                    '"lazy" at its first use.')

    requires = Words(
        title='Requires', required=False,
        description='The names of apps and executors that are to be started '
                    'before it, and stopped after it.')

    shell = Bool(
        title='Shell', required=False,
        description='Have /bin/sh run the command (default: false).')

    cwd = Text(
        title='Working directory', required=False,
        description='The directory it starts in (default: ours).')

    user = NameOrNumber(
        title='User', required=False,
        description='The user it runs as, a name or a number.')

    group = NameOrNumber(
        title='Group', required=False,
        description='The group it runs as (default: that of the user).')

    extra_groups = NamesOrNumbers(
        title='Further groups', required=False,
        description='Its other groups (default: those of the user).')

    umask = Mode(
        title='File mode mask', required=False,
        description='In octal digits (default: ours).')

    die_with_parent = SignalOrBool(
        title='Die with parent', required=False,
        description='A signal that it gets when we end, however that is; '
                    '"true" is SIGKILL (default: false).')

    stop_signal = Signal(
        title='Stop signal', required=False,
        description='What tells it to end (default: SIGTERM).')

    stop_timeout = Seconds(
        title='Stop timeout', required=False,
        description='How many seconds its end may take until it is killed '
                    '(default: 10 for an app, "timeout" for an executor).')

    kill_signal = Signal(
        title='Kill signal', required=False,
        description='What it is killed with (default: SIGKILL).')

    popen_kwargs = Object(
        title='Keywords of Popen', required=False,
        description='A dictionary of keywords that subprocess.Popen gets '
                    'unchanged, by its dotted name.')


class IAppDirective(IChildDirective):
    """Declare an application of the runner; see `IRunner.add`."""

    type = Choice(
        title='Type', values=('stdio', 'socket'), required=False,
        description='What its channel is connected to: its standard input '
                    'and output (default), or a Unix socket.')

    socket = Text(
        title='Socket', required=False,
        description='The path of the Unix socket it listens on.')

    start_timeout = Seconds(
        title='Start timeout', required=False,
        description='How many seconds it has until it listens (default: 30).')

    buffering = Choice(
        title='Buffering', values=('bytes', 'line'), required=False,
        description='What a read of its channel gives: what there is '
                    '(default), or a line.')

    encoding = Text(
        title='Encoding', required=False,
        description='What makes text of its channel (default: bytes).')

    limit = Number(
        title='Limit', required=False,
        description='The longest line (default: 1048576).')

    high_water = Number(
        title='High water', required=False,
        description='How many bytes its channel keeps at most before a write '
                    'is an error (default: 1048576).')

    restart = Choice(
        title='Restart', values=('never', 'on-failure', 'always'),
        required=False,
        description='Whether it is started again when it has ended (default: '
                    'never).')

    restart_delay = Seconds(
        title='Restart delay', required=False,
        description='How many seconds to wait before the first restart; twice '
                    'as many before each further one (default: 0.1).')

    restart_limit = Number(
        title='Restart limit', required=False,
        description='How many restarts there are in a row (default: 5).')

    env = Pairs(
        title='Environment', required=False,
        description='Replaces the environment, which otherwise is ours: '
                    'NAME=VALUE ...')

    extra_env = Pairs(
        title='Additional environment', required=False,
        description='Is added to the environment: NAME=VALUE ...')

    rlimits = Limits(
        title='Resource limits', required=False,
        description='Such as nofile=1024 or core=0:-1, soft and hard.')

    setpgrp = Bool(
        title='Process group', required=False,
        description='Start it in a process group of its own (default: false).')

    setsid = Bool(
        title='Session', required=False,
        description='Start it in a session of its own (default: false).')

    stdin = Stream(
        title='Standard input', required=False,
        description='"pipe", "null", "inherit" or a path with a slash '
                    '(default: "pipe"; with a socket "null").')

    stdout = Stream(
        title='Standard output', required=False,
        description='"pipe", "null", "inherit" or a path with a slash '
                    '(default: "pipe"; with a socket it is logged).')

    stderr = Stream(
        title='Standard error', required=False,
        description='"pipe", "null", "inherit", "merge" or a path with a '
                    'slash (default: "inherit"; with a socket it is logged).')

    pass_fds = Numbers(
        title='Descriptors', required=False,
        description='Descriptors that it gets under the same numbers.')

    detached = Bool(
        title='Detached', required=False,
        description='Give it a session of its own and no mark; it does not '
                    'end with us if we are killed (default: false).')

    adopt = Bool(
        title='Adopt', required=False,
        description='Become the parent of its orphans, and end those as well '
                    '(default: false).')


class IExecutorDirective(IChildDirective):
    """Declare an executor; see `IExecutor` and `IConditionExecutor`."""

    type = Choice(
        title='Type', required=False,
        values=('simple', 'output', 'tcp', 'http', 'pid', 'unix', 'notified',
                'probe', 'condition'),
        description='What it waits for: nothing (default), a banner in its '
                    'output, a port, a URL, a pid file, a Unix socket, a '
                    'notification, a command that ends with 0, or a condition '
                    'of your own.')

    class_ = Object(
        title='Class', required=False,
        description='In place of a type: an executor class of your own, which '
                    'is called with the command and the other attributes.')

    timeout = Seconds(
        title='Timeout', required=False,
        description='How many seconds its start may take (default: 3600).')

    sleep = Seconds(
        title='Sleep', required=False,
        description='The longest pause between two probes, in seconds '
                    '(default: 0.1).')

    expected_returncode = Number(
        title='Expected status', required=False,
        description='A status that it may end with when it is stopped, beside '
                    '0 and the signal.')

    envvars = Pairs(
        title='Environment', required=False,
        description='Is added to our environment: NAME=VALUE ...')

    stdin = PopenStream(
        title='Standard input', required=False,
        description='"pipe" (default), "null", "inherit" or a path with a '
                    'slash.')

    stdout = PopenStream(
        title='Standard output', required=False,
        description='"pipe" (default), "null", "inherit" or a path with a '
                    'slash.')

    stderr = PopenErrorStream(
        title='Standard error', required=False,
        description='"pipe", "null", "inherit" (default), "merge" or a path '
                    'with a slash.')

    output_size = Number(
        title='Output size', required=False,
        description='How many bytes of its output can be read (default: '
                    '1048576).')

    log_file = Text(
        title='Log file', required=False,
        description='Where all its output is appended.')

    banner = Text(
        title='Banner', required=False,
        description='Of type "output": a regular expression that a line of '
                    'its output matches.')

    failure = Text(
        title='Failure', required=False,
        description='Of type "output": a regular expression that ends the '
                    'wait.')

    host = Text(
        title='Host', required=False,
        description='Of type "tcp": where it listens.')

    port = Number(
        title='Port', required=False, min=0, max=65535,
        description='Of type "tcp": where it listens; 0 chooses a free port, '
                    'which replaces {port} in the command.')

    url = Text(
        title='URL', required=False,
        description='Of type "http": what is requested.')

    status = NameOrNumber(
        title='Status', required=False,
        description='Of type "http": the status of the answer, or a regular '
                    'expression (default: ^2\\d\\d$).')

    method = Text(
        title='Method', required=False,
        description='Of type "http": the method (default: HEAD).')

    payload = Pairs(
        title='Payload', required=False,
        description='Of type "http": what is sent as a form: NAME=VALUE ...')

    headers = Pairs(
        title='Headers', required=False,
        description='Of type "http": NAME=VALUE ...')

    request_timeout = Seconds(
        title='Request timeout', required=False,
        description='Of type "http": how many seconds one request may take.')

    ssl_context = Object(
        title='SSL context', required=False,
        description='Of type "http": the context, by its dotted name '
                    '(default: one that verifies).')

    expect = Object(
        title='Expectation', required=False,
        description='Of type "http": a function that is called with the '
                    'response, by its dotted name.')

    filename = Text(
        title='File name', required=False,
        description='Of type "pid": the path of the pid file.')

    socket_name = Text(
        title='Socket', required=False,
        description='Of type "unix": the path of the socket.')

    probe = Text(
        title='Probe', required=False,
        description='Of type "probe": a command that ends with 0 when it is '
                    'ready.')

    condition = Object(
        title='Condition', required=False,
        description='Of type "condition": the condition, by its dotted name.')


class IWorkerDirective(Interface):
    """Declare a worker that ``gocept-runner run`` runs; see `IAppMain`.

    What is not said is as the decorator of the handler says, if it has one.
    """

    name = Text(
        title='Name',
        description='What it is called on the command line.')

    handler = Object(
        title='Handler',
        description='The function, my.package:function, with or without a '
                    'decorator of gocept.runner.')

    ticks = Seconds(
        title='Ticks', required=False,
        description='How many seconds to sleep between two calls (default: '
                    '1).')

    principal = Text(
        title='Principal', required=False,
        description='The id of the principal that it runs as.')

    once = Bool(
        title='Once', required=False,
        description='Run one tick, and end (default: false).')

    attempts = Number(
        title='Attempts', required=False, min=1,
        description='How often a tick is run at most if it fails for a reason '
                    'that passes (default: 3).')

    max_backoff = Seconds(
        title='Longest back-off', required=False,
        description='The longest pause after errors in a row, in seconds '
                    '(default: 60).')

    shutdown_timeout = Seconds(
        title='Shutdown timeout', required=False,
        description='How many seconds the end of all children may take in all '
                    '(default: 30).')
