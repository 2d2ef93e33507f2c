"""The subcommands of ``gocept-runner`` for background servers."""

import argparse
import collections
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gocept.runner import errors
from gocept.runner.cli import server_parser, table
from gocept.runner.cli.mistakes import UserError, guarded
from gocept.runner.operation.amounts import NONE, duration
from gocept.runner.version import version as version_of_this
from gocept.runner.waits.standard import is_terminal

if TYPE_CHECKING:  # imported once the command line is known to be right
    from gocept.runner.background.client import Client
    from gocept.runner.background.roster import Entry
    from gocept.runner.background.tls import TLS

_PATIENCE = 3.0
"""Seconds in which a server has to tell its status."""


def server(argv: Sequence[str]) -> int:
    """Start a background server, or become one."""
    parser = server_parser.server_parser()
    options = parser.parse_args(server_parser.parted(argv))
    if options.config is None:
        for name in ('principal', 'site', 'application', 'server_url',
                     'log_config'):
            if getattr(options, name):
                parser.error(f'--{name.replace("_", "-")} needs --config')
    return _guarded(parser, lambda: _server(options))


def _server(options: argparse.Namespace) -> int:
    from gocept.runner.background.server import Server
    it = Server(
        options.host, options.port, _token(options), options.log_level,
        options.log_file, options.init_file, tls=_tls(options),
        insecure=options.insecure, zope_conf=options.config,
        principal=options.principal, site=options.site,
        application=options.application, server_url=options.server_url,
        log_config=options.log_config)
    if options.foreground:
        it.check_log()
        with _reaping_strangers(), _printing_to(options.log_file):
            it.run()
    else:
        pid = it.run_background(options.timeout)
        print(f'A server runs at {_place(options.host, options.port)} now, '
              f'with pid {pid}.')
    return errors.SUCCESS


def _reaping_strangers() -> contextlib.AbstractContextManager[None]:
    """Reap what others leave to the first process of a container."""
    if os.getpid() != 1:
        return contextlib.nullcontext()
    from gocept.runner.process.adoption import adoption
    return adoption.reaping_strangers()


@contextlib.contextmanager
def _printing_to(path: str | None) -> Iterator[None]:
    """Have what tasks print go to the log file; later errors do not."""
    if path is None:
        yield
        return
    import fcntl

    from gocept.runner.process import inheritance
    from gocept.runner.waits.standard import fill_standard
    fill_standard()
    streams = [each for each in (sys.stdout, sys.stderr)
               if isinstance(each, io.TextIOWrapper)]
    with contextlib.ExitStack() as stack:
        for number in 1, 2:
            before = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, number)
        for each in streams:
            each.flush()
            stack.callback(each.reconfigure,
                           line_buffering=each.line_buffering)
            each.reconfigure(line_buffering=True)  # as the log is read
            stack.callback(each.flush)
        inheritance.open_standard((1, 2), path, inheritance.LOG_FLAGS)
        yield


def terminate(argv: Sequence[str]) -> int:
    """End a background server."""
    parser = server_parser.terminate_parser()
    options = _with_args(parser, argv)
    return _guarded(parser, lambda: _terminate(options))


def _terminate(options: argparse.Namespace) -> int:
    from gocept.runner.background.answers import Ending
    from gocept.runner.waits.deadline import Deadline
    place = _place(options.host, options.port)
    deadline = Deadline(options.timeout)
    response = None
    with _client(options) as client:
        try:
            response = client.terminate(dict(options.args), True)
        except errors.NoResponse:  # most exit tasks give none
            pass
        except Ending:
            client.wait_for_end(deadline)
        except errors.NobodyListens as error:
            raise UserError(
                f'no server listens at {place}: "gocept-runner servers" shows '
                'those of this user on this machine', error.status) from error
        except errors.RemoteTaskError as error:
            raise _failure(error, options.traceback,
                           f'the server at {place} has ended, but its exit '
                           'task has failed') from error
        except KeyboardInterrupt:
            raise UserError(
                f'interrupted: the server at {place} may end all the same, '
                'after its tasks', errors.INTERRUPTED) from None
    print(f'The server at {place} has ended.')
    if response is not None:
        print(_as_text(response))
    return errors.SUCCESS


def call(argv: Sequence[str]) -> int:
    """Run the task of a background server."""
    parser = server_parser.call_parser()
    options = _with_args(parser, argv)
    return _guarded(parser, lambda: _call(options))


def _with_args(parser: argparse.ArgumentParser, argv: Sequence[str],
               ) -> argparse.Namespace:
    """Each KEY=VALUE may be there once."""
    options = parser.parse_intermixed_args(server_parser.parted(argv))
    counts = collections.Counter(key for key, _ in options.args)
    for key, count in counts.items():
        if count > 1:
            parser.error(f'{key!r} is given more than once')
    return options


def _call(options: argparse.Namespace) -> int:
    with _client(options) as client:
        try:
            response = client.execute(
                dict(options.args), await_response=not options.no_wait)
        except errors.RemoteTaskError as error:
            raise _failure(error, options.traceback) from error
        except errors.NoResponse as error:
            raise UserError(
                'the task has ended without a response: with --no-wait, none '
                'is awaited', error.status) from error
    if options.no_wait:
        print('The server has the request.')
    else:
        print(_as_text(response))
    return errors.SUCCESS


def _failure(error: errors.RemoteTaskError, traceback: bool,
             what: str = 'the task has failed') -> UserError:
    """What the user is told of a task that has failed."""
    message = str(error.args[0]) if error.args else ''
    if error.type:
        message = f'{what}: {error.type}: {message}'
    if error.traceback and traceback:
        for line in error.traceback.rstrip().splitlines():
            print(table.shown(line), file=sys.stderr)
    elif error.traceback:
        message = f'{message.rstrip()} (--traceback shows where)'
    return UserError(table.shown(message), error.status)


def _as_text(value: object) -> str:
    """As JSON, or else as Python shows it."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return table.shown(repr(value))
    # In JSON, no other escape sequence would do.
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    try:
        text.encode(encoding)
        is_fit = all(map(str.isprintable, text.split('\n')))
    except UnicodeError:
        is_fit = False
    return text if is_fit else json.dumps(value, indent=2)


def servers(argv: Sequence[str]) -> int:
    """Show the background servers of this user."""
    parser = server_parser.servers_parser()
    options = parser.parse_args(argv)
    return _guarded(parser, lambda: _servers(options))


def _servers(options: argparse.Namespace) -> int:
    from gocept.runner.background import roster
    tls = _tls(options)
    entries = roster.servers()
    found = [*zip(entries, _statuses(entries, tls), strict=True)]
    if options.json:
        print(json.dumps([
            {'host': entry.host, 'port': entry.port, 'pid': entry.pid,
             'started': entry.started, **status}
            for entry, status in found], indent=2))
    elif not found:
        print('No background server of this user runs on this machine.')
    else:
        import shutil
        columns = (shutil.get_terminal_size().columns
                   if is_terminal(sys.stdout) and not options.wide else None)
        for line in table.lines(_rows(found), columns, (1, 2, 4, 5)):
            print(line)
    return errors.SUCCESS


def _statuses(entries: 'Sequence[Entry]', tls: 'TLS | None',
              ) -> Sequence[Mapping[str, object]]:
    """Ask all of them at once, as each that hangs takes a while."""
    if not entries:
        return []
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(len(entries)) as pool:
        return [*pool.map(lambda entry: _status(entry, tls), entries)]


def _status(entry: 'Entry', tls: 'TLS | None') -> Mapping[str, object]:
    """What a server tells about itself, or why it does not."""
    from gocept.runner.background.client import Client
    if entry.tls and tls is None:
        return {'silent': 'needs --tls-cert, --tls-key and --tls-ca'}
    host = {'': '127.0.0.1', '0.0.0.0': '127.0.0.1',
            '::': '::1'}.get(entry.host, entry.host)
    try:
        with Client(host, entry.port, tls=tls if entry.tls else None,
                    timeout=_PATIENCE, connect_timeout=_PATIENCE,
                    status_key=bytes.fromhex(entry.status_key)) as client:
            return client.status()
    except errors.DeadlineExceeded:
        return {'silent': f'no answer in {_PATIENCE:g} s: it hangs'}
    except (errors.RunnerError, OSError) as error:
        return {'silent': _in_options(str(error))}


_TITLES = ('ADDRESS', 'PID', 'AGE', 'STATE', 'REQUESTS', 'FAILURES',
           'LAST ERROR')


def _rows(found: 'Sequence[tuple[Entry, Mapping[str, object]]]',
          ) -> Iterator[Sequence[str]]:
    now = time.time()
    yield _TITLES
    for entry, status in found:
        last = status.get('last_error')
        if 'silent' in status:
            text = f'({status["silent"]})'
        elif isinstance(last, Mapping):
            when = duration(max(0, now - float(last['time'])))
            what = last.get('type') or last.get('error')
            text = f'{when} ago, {last["task"]}: {what}: {last["message"]}'
        else:
            text = NONE
        yield (_place(entry.host, entry.port), str(entry.pid),
               duration(max(0, now - entry.started)), _state(status),
               *(str(status.get(key, NONE)) for key in (
                   'requests', 'failures')), text)


def _state(status: Mapping[str, object]) -> str:
    """The task that runs, and how many requests wait."""
    if 'silent' in status:
        return NONE
    waiting = status.get('waiting')
    return str(status.get('running') or (
        'idle' if status.get('initialized') else 'no tasks')) + (
        f', {waiting} waiting' if waiting else '')


def version(argv: Sequence[str]) -> int:
    """Show the versions that matter to both sides of a connection."""
    parser = server_parser.version_parser()
    parser.parse_args(argv)
    return _guarded(parser, _version)


def _version() -> int:
    from gocept.runner.background.handshake import MAGIC
    for line in table.lines([
            ('gocept.runner', version_of_this()),
            ('Python', f'{sys.version.split()[0]} ({sys.executable})'),
            ('protocol', MAGIC.decode().strip())]):
        print(line)
    return errors.SUCCESS


# What they share

def _guarded(parser: argparse.ArgumentParser, run: Callable[[], int]) -> int:
    """Call it; an error of ours becomes one line and its status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # of a C locale

    def expecting() -> int:
        try:
            return run()
        except errors.DeadlineExceeded as error:
            raise _mistake(error, errors.TIMED_OUT) from error
        except errors.RunnerError as error:
            raise _mistake(error, error.status) from error
    return guarded(parser.prog, expecting)


def _mistake(error: Exception, status: int) -> UserError:
    # A message may have what a server has sent.
    return UserError(table.shown(_in_options(str(error))), status)


def _in_options(message: str) -> str:
    """A message for callers from Python, with the options for keywords."""
    for keyword, option in (
            ('give token=', 'give --token-file'),
            ('give tls=', 'give --tls-cert, --tls-key and --tls-ca'),
            ('leave tls= out',
             'leave out --tls-cert, --tls-key and --tls-ca'),
            ('initialize() first', 'initialize() first, from Python, or start '
             'it with --init-file'),
            (', or give the client retry=True if it may run twice', ''),
            (', or send it with by_value=[...]', ''),
            ('insecure=True', '--insecure')):
        message = message.replace(keyword, option)
    return message


def _client(options: argparse.Namespace) -> 'Client':
    from gocept.runner.background.client import Client
    if not options.host:
        raise UserError('HOST is empty', errors.BAD_USAGE)
    return Client(options.host, options.port, _token(options),
                  tls=_tls(options), timeout=options.timeout)


def _token(options: argparse.Namespace) -> str | None:
    """What the user gives as the token; see `given_token` for the rest."""
    if options.token_file is None:
        if options.token == '':
            raise UserError('the token is empty', errors.BAD_USAGE)
        token: str | None = options.token
        return token
    from gocept.runner.background.tokens import token_in
    path = '/dev/stdin' if options.token_file == '-' else options.token_file
    try:
        return token_in(path)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}',
                        errors.BAD_USAGE) from error
    except errors.BackgroundError as error:
        raise UserError(str(error), errors.BAD_USAGE) from error


def _tls(options: argparse.Namespace) -> 'TLS | None':
    paths = {'--tls-cert': options.tls_cert, '--tls-key': options.tls_key,
             '--tls-ca': options.tls_ca}
    missing = [name for name, path in paths.items() if not path]
    if len(missing) == len(paths):
        return None
    if missing:
        raise UserError(f'TLS needs {" and ".join(missing)} too',
                        errors.BAD_USAGE)
    from gocept.runner.background.tls import TLS
    return TLS(*paths.values())


def _place(host: str, port: int) -> str:
    return (f'[{host}]' if ':' in host else host or '*') + f':{port}'
