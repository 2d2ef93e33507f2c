"""The command line of ``gocept-runner kernel``; `kernel` does what it says."""

import argparse
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gocept.runner import errors

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PROG = 'gocept-runner kernel'
PORT = 20202
LONGEST_PATH = 107  # bytes, of a Unix socket

EXAMPLES = '''\
examples:
  gocept-runner kernel run web python3 -m http.server 8000
  gocept-runner kernel status
  gocept-runner kernel tail -f web

gocept-runner kernel COMMAND --help shows more.
'''

STATUSES = '''\
statuses:
   0  success
   1  the kernel could not do what was asked, or the output could not be
      written
   2  bad usage
  69  no kernel runs there, or it does not answer
  71  the kernel cannot be started
  77  the kernel belongs to another user, or refuses this one
 130  interrupted
'''

DESCRIPTION = '''\
A kernel is a small program in the background. It holds processes with their
output, sockets and named values, so that these outlive the program that made
them. A kernel listens on a port of this machine, or on a Unix socket.'''

START = '''\
Start a kernel in the background. It goes on when this command, its terminal
and its user's session end, unless the system ends all processes of a session.

A kernel may be told to do anything that its user can do. So it only talks to
programs of its own user and of root, on this machine.'''

STOP = '''\
End a kernel that is idle: it has no processes, sockets or values. A process
that has ended counts until its output was acknowledged. "remove" takes out
what nobody needs any more.'''

STATUS = '''\
Show the kernel, and its sockets, values and processes. CPU and MEMORY are
those of the process itself, without its children. BUFFERED is output that is
kept until somebody has read and acknowledged it. DROPPED is output that did
not fit into the buffer of the process. No kernel is started.'''

TAIL = '''\
Show the output of processes that the kernel keeps. The output stays in the
kernel: whoever records it misses nothing.

Each line has the time when the kernel read it, the name of the process, and a
mark: | for standard output, ! for standard error, = for the end, and ~ where
output is missing. A line is shown when it is complete. On a terminal, names
have colours, and control characters are shown as \\x1b, so that no program can
take over the terminal. Into a file or a pipe, the bytes of a line are written
as they are. If NO_COLOR is set, there are no colours.'''

UPGRADE = '''\
Replace the code of the running kernel by the version, and the Python, of this
command. So call the gocept-runner of the new release. All processes, sockets,
values and output are kept. Clients connect again by themselves. If the new
version cannot start, the old one goes on.'''

RUN = '''\
Run a program in the kernel. It gets the environment and the directory of this
command, and reads nothing. The kernel is started if none runs. The options of
this command stand before NAME; all that follows is for the program.

If the same program runs under this NAME already, nothing changes. A program
that has ended keeps its NAME until somebody has read and acknowledged its
output, or until it is removed.'''

REMOVE = '''\
Take processes out of the kernel, with the output that it keeps. A process that
runs goes on. Its output is thrown away from now on, and it leaves the list
when it ends. To end it, use kill with its PID.

With --sockets or --values, the names are those of sockets or values. Programs
that have inherited a socket keep it.'''


def parser_of(wanted: str = '') -> argparse.ArgumentParser:
    """With the command that is wanted alone, if there is such a one."""
    parser = argparse.ArgumentParser(
        prog=PROG, usage='%(prog)s COMMAND [options]', allow_abbrev=False,
        description=DESCRIPTION, epilog=EXAMPLES + '\n' + STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(
        dest='command', metavar='COMMAND', required=True, title='commands')
    adders = {'start': _add_start, 'stop': _add_stop, 'status': _add_status,
              'tail': _add_tail, 'upgrade': _add_upgrade, 'run': _add_run,
              'remove': _add_remove}
    for name, add in adders.items():
        if wanted not in adders or wanted == name:
            add(commands)
    return parser


def _command(commands: '_Commands', name: str, usage: str, summary: str,
             description: str, examples: Sequence[str],
             ) -> argparse.ArgumentParser:
    """A parser with what all commands share."""
    parser = commands.add_parser(
        name, prog=f'{PROG} {name}', usage=f'%(prog)s {usage}', help=summary,
        description=description, allow_abbrev=False,
        epilog='examples:\n' + ''.join(
            f'  {PROG} {each}\n' for each in examples) + f'\n{STATUSES}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--port', type=_port, default=PORT, metavar='N',
        help='the port of the kernel, on 127.0.0.1 (default: %(default)s)')
    where.add_argument(
        '--path', type=_path, metavar='P',
        help='the Unix socket of the kernel, in place of a port')
    return parser


def _add_user(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--user', metavar='NAME',
        help='whose kernel to talk to (default: your own, or one of root)')


def _add_start(commands: '_Commands') -> None:
    parser = _command(
        commands, 'start', '[options]', 'start a kernel', START,
        ['start', 'start --path /run/example/kernel --log kernel.log',
         'start --allow-user deploy --limit processes=500'])
    parser.set_defaults(user=None)
    parser.add_argument(
        '--foreground', action='store_true',
        help='become the kernel, with the pid of this command, as systemd and '
             'other supervisors want it')
    parser.add_argument(
        '--log', metavar='FILE', type=os.path.abspath,
        help='append to this file what goes wrong with the kernel (default: '
             'nothing is kept; with --foreground: standard error)')
    parser.add_argument(
        '--allow-user', metavar='NAME', action='append', default=[],
        help='another user who may use this kernel; can be given several '
             'times. CAUTION: this user can then run any program as the user '
             'who starts the kernel, and can read all output')
    parser.add_argument(
        '--limit', metavar='NAME=VALUE', type=_limit, action='append',
        default=[],
        help='how much the kernel takes on; see below. Can be given several '
             'times')
    parser.epilog = f'{_limits()}\n{parser.epilog}'


def _add_stop(commands: '_Commands') -> None:
    parser = _command(commands, 'stop', '[options]', 'end an idle kernel',
                      STOP, ['stop', 'stop --force'])
    _add_user(parser)
    parser.add_argument(
        '--force', action='store_true',
        help='end it even if it is not idle. Its processes go on without it, '
             'and their output is thrown away')


def _add_status(commands: '_Commands') -> None:
    parser = _command(
        commands, 'status', '[options]', 'show what a kernel holds', STATUS,
        ['status', 'status --wide | less', 'status --json'])
    _add_user(parser)
    parser.add_argument(
        '--json', action='store_true',
        help='show it as JSON: sizes in bytes, times in seconds since 1970')
    parser.add_argument(
        '--wide', action='store_true',
        help='do not cut lines at the width of the terminal')


def _add_tail(commands: '_Commands') -> None:
    parser = _command(
        commands, 'tail', '[options] NAME ...', 'show output of processes',
        TAIL, ['tail web', 'tail -f -n 20 web "worker.*"',
               'tail --raw web > web.txt'])
    _add_user(parser)
    parser.add_argument(
        'names', nargs='+', metavar='NAME',
        help='a process; a * at the end stands for any rest of a name')
    parser.add_argument(
        '-f', '--follow', action='store_true',
        help='go on with new output, until the processes have ended')
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        '-n', '--lines', type=_count, metavar='N',
        help='of what is there already, show the last N lines of each process '
             '(default: all)')
    form.add_argument(
        '--raw', action='store_true',
        help='write just the bytes of the processes, those of standard error '
             'to standard error. On a terminal, this lets them control it')
    parser.add_argument(
        '--color', choices=('auto', 'always', 'never'), default='auto',
        help='(default: auto, which means: on a terminal)')


def _add_upgrade(commands: '_Commands') -> None:
    parser = _command(
        commands, 'upgrade', '[options]', 'replace a kernel by this version',
        UPGRADE, ['upgrade', 'upgrade --path /run/example/kernel'])
    _add_user(parser)


def _add_run(commands: '_Commands') -> None:
    parser = _command(
        commands, 'run', '[options] NAME COMMAND ...',
        'run a program in a kernel', RUN, [
            'run web python3 -m http.server 8000',
            'run --cwd /srv --env LANG=C --bufsize 10m import ./import.sh'])
    _add_user(parser)
    parser.add_argument('name', metavar='NAME', help='the name of the process')
    parser.add_argument('program', nargs=argparse.REMAINDER, metavar='COMMAND',
                        help='the program and its arguments')
    parser.add_argument(
        '--cwd', metavar='DIR', default='.',
        help='its directory (default: the one of this command)')
    parser.add_argument(
        '--env', metavar='NAME=VALUE', action='append', default=[],
        type=_variable, help='a variable of its environment; can be given '
                             'several times')
    parser.add_argument(
        '--clear-env', action='store_true',
        help='begin with an empty environment')
    parser.add_argument(
        '--bufsize', metavar='SIZE', type=_size, default='1m',
        help='how much of its output to keep, in bytes, or with k, m or g '
             '(default: %(default)s)')
    parser.add_argument(
        '--overflow', choices=('drop', 'block'), default='drop',
        help='when the buffer is full: drop the oldest output and count it, '
             'or have the program wait (default: %(default)s)')


def _add_remove(commands: '_Commands') -> None:
    parser = _command(
        commands, 'remove', '[options] NAME ...', 'take out processes',
        REMOVE, ['remove import', 'remove "worker.*"',
                 'remove --values shop.wanted'])
    parser.set_defaults(kind='processes')
    _add_user(parser)
    parser.add_argument(
        'names', nargs='+', metavar='NAME',
        help='what to remove; a * at the end stands for any rest of a name')
    kind = parser.add_mutually_exclusive_group()
    for each in 'sockets', 'values':
        kind.add_argument(
            f'--{each}', action='store_const', dest='kind', const=each,
            help=f'remove {each}, and no processes')


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f'not a number from 1 to 65535: {text!r}')


def _path(text: str) -> str:
    path = os.path.abspath(text)
    if not text:
        raise argparse.ArgumentTypeError('the path is empty')
    length = len(os.fsencode(path))
    if length > LONGEST_PATH:
        raise argparse.ArgumentTypeError(
            f'the path of a Unix socket has at most {LONGEST_PATH} bytes, and '
            f'this one has {length}: {path!r}')
    return path


def _count(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f'not a number from 0 on: {text!r}')


def _size(text: str) -> int:
    from gocept.runner.kernel.wire.limits import parse_size
    try:
        return parse_size(text, 'the size')
    except errors.KernelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _variable(text: str) -> tuple[str, str]:
    name, found, value = text.partition('=')
    if name and found:
        return name, value
    raise argparse.ArgumentTypeError(f'not like NAME=VALUE: {text!r}')


def _limit(text: str) -> tuple[str, int]:
    from gocept.runner.kernel.wire.limits import Limits
    _variable(text)
    try:
        limits = Limits.parse([text])
    except errors.KernelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    name, _, _ = text.partition('=')
    return name, getattr(limits, name)


def _limits() -> str:
    """The limits, for the help."""
    from gocept.runner.kernel.wire.limits import Limits
    limits = Limits()
    return 'limits, and their defaults:\n' + ''.join(
        textwrap.fill(
            f'  {name}={_with_unit(getattr(limits, name))}'.ljust(20)
            + meaning, 79, subsequent_indent=' ' * 20) + '\n'
        for name, meaning in limits.meanings().items())


def _with_unit(number: int) -> str:
    units = ['g', 'm', 'k', '']
    while number >= 1024 and number % 1024 == 0:
        number //= 1024
        units.pop()
    return f'{number}{units[-1]}'
