"""The command lines of the commands for background servers.

`gocept.runner.cli.servers` does what they say.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import NoReturn

from gocept.runner.cli.application import add_application

PROG = 'gocept-runner'

STATUSES = {
    0: 'success',
    1: 'the task has failed, or has given no response; or the output could '
       'not be\n      written',
    2: 'bad usage, or a token file that cannot be read or is not safe',
    66: 'zope.conf: unknown site',
    67: 'zope.conf: unknown principal',
    69: 'nobody listens there',
    71: 'the server cannot be started',
    74: 'the connection broke: the request may have been run, or not',
    75: 'the server has too many requests or clients: try again later',
    77: 'the server does not know this token',
    78: 'a file for TLS is missing or wrong',
    124: 'no answer came in time: the request may still be run, unless the\n'
         '      error says that none was sent',
    130: 'interrupted',
}

SERVER = '''\
Start a server in the background, to which programs give Python tasks:
initialize(), execute() and terminate() of gocept.runner.background. It goes on
when this command and its terminal end.

Whoever knows the token can run any code as the user of the server. On an
address of this machine, such as 127.0.0.1, a server that is given no token
makes one and keeps it where only programs of its user find it. On any other
address, a server needs a token, and certificates for TLS.

With --config, each task runs in a transaction, with a site and an interaction,
and is run again after a conflict.'''

TERMINATE = '''\
Have a server run its exit task and end. The requests that came before are
completed first. The command returns when the port is free, and shows what the
exit task has responded, if it has. The exit task gets a dictionary with each
KEY, as the task of "gocept-runner call" does.'''

CALL = '''\
Have a server run its exec task, and show the response, as JSON where that is
possible. The task gets a dictionary with each KEY. A VALUE is JSON, such as 3,
true or ["a", "b"]; what is no JSON is text.'''

SERVERS = '''\
Show the background servers of this user on this machine. AGE is how long a
server has run. STATE is the task that it runs and the number of requests that
wait, "idle", or "no tasks" before it was given any. REQUESTS are those that it
has begun, FAILURES those of them that failed.'''

VERSION = '''\
Show the versions of the program, of Python, and of the protocol that
background servers and their clients speak. Both sides need the same protocol.
Code that is sent by value needs the same minor version of Python.'''


def server_parser() -> argparse.ArgumentParser:
    """The parser of ``gocept-runner server``."""
    parser = _parser('server', 'HOST PORT [options]', SERVER, [
        'server 127.0.0.1 54321 --init-file tasks.py',
        'server 127.0.0.1 54321 --foreground',
        'server 0.0.0.0 54321 --token-file token --tls-cert here.pem \\\n'
        '      --tls-key here.key --tls-ca clients.pem'],
        (0, 1, 2, 66, 67, 69, 71, 78, 124, 130),
        {1: 'the init file fails, or the state directory is not safe; or the '
            'output\n      could not be written',
         69: 'zope.conf: the database is locked, or cannot be reached',
         78: 'others could get in, or a file is missing or wrong: for TLS,\n'
             '      zope.conf or ZCML',
         124: 'the server was not ready in time, and was ended'})
    _add_place(parser, 'where it listens; "" for all addresses')
    _add_proofs(parser, 'which clients have to know', 'of the server')
    parser.add_argument(
        '--init-file', metavar='FILE', type=_file,
        help='a Python file with init_task, exec_task and exit_task, with '
             'which the server initializes itself')
    parser.add_argument(
        '--log-file', metavar='FILE', type=os.path.abspath,
        help='append the log, and what tasks print, to this file (default: '
             'nowhere; with --foreground: standard error)')
    parser.add_argument(
        '--log-level', metavar='LEVEL', default='INFO', type=str.upper,
        choices=('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'),
        help='DEBUG, INFO, WARNING, ERROR or CRITICAL (default: %(default)s)')
    parser.add_argument(
        '--foreground', action='store_true',
        help='be the server, with the pid of this command, as systemd and '
             'other supervisors want it')
    parser.add_argument(
        '--insecure', action='store_true',
        help='listen on an address that other machines can reach, without TLS')
    parser.add_argument(
        '--timeout', metavar='SECONDS', type=_seconds, default=30.0,
        help='how long to wait until it is ready (default: %(default)g)')
    house = parser.add_argument_group('component architecture')
    house.add_argument(
        '--config', metavar='FILE', type=_file,
        help='the zope.conf')
    house.add_argument(
        '--principal', metavar='ID', help='who runs the tasks')
    house.add_argument(
        '--site', metavar='PATH',
        help='the path of the object that becomes the site, such as shop or '
             'intranet/news (default: the root)')
    add_application(house, _file)
    return parser


def terminate_parser() -> argparse.ArgumentParser:
    """The parser of ``gocept-runner terminate``."""
    parser = _parser(
        'terminate', 'HOST PORT [options] [KEY=VALUE ...]', TERMINATE,
        ['terminate 127.0.0.1 54321'], _OF_CLIENTS,
        {1: 'the server has refused it, or has ended and its exit task has '
            'failed; or\n      the output could not be written',
         124: 'no answer came in time: the server may still end'})
    _add_client(parser)
    _add_args(parser)
    return parser


def call_parser() -> argparse.ArgumentParser:
    """The parser of ``gocept-runner call``."""
    parser = _parser(
        'call', 'HOST PORT [options] [KEY=VALUE ...]', CALL,
        ['call 127.0.0.1 54321 command=increase value_change=10',
         'call 127.0.0.1 54321 --no-wait name=Ann zip=\'"0815"\''],
        _OF_CLIENTS)
    _add_client(parser)
    _add_args(parser)
    parser.add_argument(
        '--no-wait', action='store_true',
        help='return when the server has the request, without a response')
    return parser


def _add_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'args', nargs='*', metavar='KEY=VALUE', type=_argument,
        help='what the task gets')
    parser.add_argument(
        '--traceback', action='store_true',
        help='if the task fails, show its traceback too')


def servers_parser() -> argparse.ArgumentParser:
    """The parser of ``gocept-runner servers``."""
    parser = _parser(
        'servers', '[options]', SERVERS, ['servers', 'servers --json'],
        (0, 1, 2, 130), {1: 'the output could not be written'})
    parser.add_argument(
        '--json', action='store_true',
        help='show all that is known, as JSON: times in seconds since 1970')
    parser.add_argument(
        '--wide', action='store_true',
        help='do not cut lines at the width of the terminal')
    _add_tls(parser, 'of this command, to ask servers with TLS')
    return parser


def version_parser() -> argparse.ArgumentParser:
    """The parser of ``gocept-runner version``."""
    return _parser('version', '', VERSION, ['version'], (0, 1, 2), {
        1: 'the output could not be written'})


_OF_CLIENTS = 0, 1, 2, 69, 74, 75, 77, 78, 124, 130


def _parser(name: str, usage: str, description: str, examples: Sequence[str],
            statuses: Sequence[int], meanings: dict[int, str] | None = None,
            ) -> argparse.ArgumentParser:
    known = {**STATUSES, **(meanings or {})}
    return argparse.ArgumentParser(
        f'{PROG} {name}', f'%(prog)s {usage}'.rstrip(), description,
        'examples:\n' + ''.join(f'  {PROG} {each}\n' for each in examples)
        + '\nstatuses:\n' + ''.join(
            f' {status:3}  {known[status]}\n' for status in statuses),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)


def _add_place(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        'host', metavar='HOST', help=meaning,
        type=lambda text: text.removeprefix('[').removesuffix(']'))
    parser.add_argument(
        'port', metavar='PORT', type=_port,
        help='a number from 1 to 65535. In front of the options, HOST:PORT is '
             'understood as well')


def _add_client(parser: argparse.ArgumentParser) -> None:
    _add_place(parser, 'the address or the name of the machine')
    _add_proofs(parser, 'of the server', 'of this command')
    parser.add_argument(
        '--timeout', metavar='SECONDS', type=_seconds,
        help='how long to wait in all (default: no limit)')


def _add_proofs(parser: argparse.ArgumentParser, whose: str, side: str,
                ) -> None:
    """What the server and its clients know each other by."""
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        '--token', metavar='TOKEN',
        help=f'the token {whose} (default: $GOCEPT_RUNNER_TOKEN, then the one '
             'that a server of this machine has made). Other users may see it '
             'in the list of processes')
    token.add_argument(
        '--token-file', metavar='FILE',
        help='a file with the token, which other users cannot read; - for '
             'standard input')
    _add_tls(parser, side)


def _add_tls(parser: argparse.ArgumentParser, side: str) -> None:
    tls = parser.add_argument_group('TLS (all three, as PEM files)')
    tls.add_argument('--tls-cert', metavar='FILE', type=os.path.abspath,
                     help=f'the certificate {side}')
    tls.add_argument('--tls-key', metavar='FILE', type=os.path.abspath,
                     help='its private key')
    tls.add_argument('--tls-ca', metavar='FILE', type=os.path.abspath,
                     help='who has signed the certificates of the other side')


def parted(argv: Sequence[str]) -> Sequence[str]:
    """The arguments; HOST:PORT, if it is the first of them, becomes two."""
    found = re.fullmatch(r'(\[[^]]*\]|[^]:=[]*):([0-9]+)',
                         argv[0] if argv else '')
    return [*found.groups(), *argv[1:]] if found else argv


def _port(text: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f'not a number from 1 to 65535: {text!r}')


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if 0 < seconds < 2 ** 31:
        return seconds
    raise argparse.ArgumentTypeError(f'not a number of seconds: {text!r}')


def _file(text: str) -> str:
    path = os.path.abspath(text)
    if not os.path.isfile(path):
        raise argparse.ArgumentTypeError(f'no such file: {path}')
    return path


def _refuse(word: str) -> NoReturn:
    raise ValueError(f'{word} is no JSON')


def _argument(text: str) -> tuple[str, object]:
    key, found, value = text.partition('=')
    if not key or not found:
        raise argparse.ArgumentTypeError(f'not like KEY=VALUE: {text!r}')
    try:
        return key, json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return key, value
