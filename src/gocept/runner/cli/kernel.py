"""The subcommand ``gocept-runner kernel``."""

import argparse
import contextlib
import io
import os
import select
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, TextIO

from gocept.runner import errors
from gocept.runner.cli import table
from gocept.runner.cli.kernel_parser import PORT, PROG, parser_of
from gocept.runner.cli.mistakes import UserError, guarded
from gocept.runner.waits.standard import is_terminal

if TYPE_CHECKING:  # imported once the command line is known to be right
    from gocept.runner.cli.feed import Feed, RawFeed
    from gocept.runner.kernel import Kernel, Watcher
    from gocept.runner.kernel.keeper.options import Options

TIMEOUT = 30  # seconds, until a kernel listens


def kernel(argv: Sequence[str]) -> int:
    """Start, show and stop a kernel, and what runs in it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # of a C locale
    options = parser_of(*argv[:1]).parse_args(argv)
    return guarded(f'{PROG} {options.command}', lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    try:
        status: int = _COMMANDS[options.command](options)
    except errors.RunnerError as error:
        # A message may have the names and commands of others.
        raise UserError(table.shown(str(error)), error.status) from error
    return status


def start(options: argparse.Namespace) -> int:
    """Start a kernel, or become one."""
    from gocept.runner.kernel.keeper.options import Options
    wanted = Options(
        options.path or options.port, log=options.log or '',
        allow_users=tuple(map(_uid, options.allow_user)),
        limits=dict(options.limit))
    started = _start(wanted, options.foreground)
    where = _where(options)
    if started:
        print(f'A kernel runs on {where} now.')
        return errors.SUCCESS
    try:
        with _connected(options):
            pass
    except errors.KernelRefused:
        raise
    except errors.KernelError as error:
        raise UserError(
            f'no kernel can be started on {where}: {table.shown(str(error))}',
            errors.CANNOT_START) from error
    if wanted.log or wanted.allow_users or wanted.limits:
        raise UserError(
            f'a kernel runs on {where} already, and its options cannot be '
            'changed: stop it first', errors.WORKER_FAILED)
    print(f'A kernel runs on {where} already.')
    return errors.SUCCESS


def _start(wanted: 'Options', foreground: bool = False) -> bool:
    """Whether it was started, as somebody may listen there already."""
    from gocept.runner.kernel.client import autostart
    try:
        if foreground:
            autostart.become(wanted)
        started, _ = autostart.start(wanted, TIMEOUT)
    except errors.KernelError as error:
        raise UserError(
            table.shown(str(error)), errors.CANNOT_START) from error
    return started


def _uid(name: str) -> int:
    import pwd
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UserError(f'there is no user {name!r}', errors.BAD_USAGE
                        ) from None


def stop(options: argparse.Namespace) -> int:
    """End a kernel."""
    with _connected(options) as kernel:
        processes = kernel.status()['processes']
        try:
            kernel.stop(force=options.force)
        except errors.KernelError as error:
            if not str(error).startswith('the kernel is not idle'):
                raise
            raise UserError(
                f'{table.shown(str(error))} (--force). A process that has '
                'ended counts until its output was acknowledged; '
                f'{_other(options, "remove")} NAME ... removes it',
                error.status) from error
    print(f'The kernel on {_where(options)} has ended.')
    running = [f'{table.shown(name)} ({entry["pid"]})' for name, entry
               in sorted(processes.items()) if entry['running']]
    if running:
        print(f'These run on, without it: {", ".join(running)}')
    return errors.SUCCESS


def status(options: argparse.Namespace) -> int:
    """Show what a kernel holds."""
    import shutil

    from gocept.runner.cli import inventory
    with _connected(options) as kernel:
        found = kernel.status()
    if options.json:
        print(inventory.as_json(found))
        return errors.SUCCESS
    columns = (None if options.wide or not is_terminal(sys.stdout)
               else shutil.get_terminal_size().columns)
    for line in inventory.as_text(found, _where(options), columns):
        print(line)
    return errors.SUCCESS


def tail(options: argparse.Namespace) -> int:
    """Show output of processes, without acknowledging it."""
    with _connected(options) as kernel:
        entries = kernel.list_processes(*options.names)
        for name in options.names:
            if not (name in entries or name.endswith('*') or name.isdecimal()):
                raise UserError(
                    f'there is no process {table.shown(name)}: '
                    f'{_other(options, "status")} shows what there is',
                    errors.WORKER_FAILED)
        with kernel.follow_processes(*options.names) as watcher:
            feed = _feed(options, entries)
            try:
                while _is_behind(watcher, entries):
                    _show(watcher, feed)
                if options.follow:
                    feed.catch_up()
                    while watcher:
                        _show(watcher, feed)
            except KeyboardInterrupt:  # the usual end of "tail -f"
                return errors.INTERRUPTED
            finally:
                feed.close()
    return errors.SUCCESS


def _feed(options: argparse.Namespace, names: Iterable[str],
          ) -> 'Feed | RawFeed':
    from gocept.runner.cli import cells, feed
    output = _binary(sys.stdout)
    if options.raw:
        return feed.RawFeed(output, _binary(sys.stderr))
    return feed.Feed(
        output, sorted(names), escape=is_terminal(sys.stdout),
        last=options.lines,
        colour=cells.wants_colour(options.color, is_terminal(sys.stdout)))


def _is_behind(watcher: 'Watcher', entries: Mapping[str, Mapping[str, object]],
               ) -> bool:
    """Whether something is not read yet that was there when `entries` were."""
    for name, entry in entries.items():
        life, offset, ended = watcher.position.get(name, ('', 0, False))
        if life == entry['life'] and (
                (entry['closed'] and not ended)
                or (entry['buffered'] and offset < int(str(entry['end'])))):
            return bool(watcher)
    return False


def _show(watcher: 'Watcher', feed: 'Feed | RawFeed') -> None:
    if not watcher.ready:
        _wait_for(watcher)
    found = watcher.read()
    if found is not None:
        feed.show(*found, watcher.missing)


def _wait_for(watcher: 'Watcher') -> None:
    """Wait for output, and end when nobody reads ours any more."""
    from gocept.runner.waits.deadline import (
        Deadline,
        is_broken,
        wait_for_any,
    )
    ours = [] if sys.stdout is None else [sys.stdout.fileno()]
    masks = {watcher.fileno(): select.POLLIN, **dict.fromkeys(ours, 0)}
    # Anew each second, as Ctrl-C may come just before a wait begins.
    while not wait_for_any(masks, Deadline(1)):
        pass
    if any(map(is_broken, ours)):
        raise BrokenPipeError


def upgrade(options: argparse.Namespace) -> int:
    """Replace the kernel by this version."""
    with _connected(options) as kernel:
        before = _version(kernel.status())
        kernel.upgrade()
        print(f'The kernel on {_where(options)} was upgraded\n'
              f'  from {before}\n    to {_version(kernel.status())}')
    return errors.SUCCESS


def _version(status: Mapping[str, object]) -> str:
    return (f'version {status.get("version")}, Python {status.get("python")}, '
            f'{status.get("path")}')


def run(options: argparse.Namespace) -> int:
    """Run a program in the kernel."""
    program = options.program
    if program[:1] == ['--']:
        del program[0]
    elif program and program[0].startswith('-'):
        raise UserError(
            f'{program[0]} stands after NAME, where the COMMAND begins: put '
            'options before NAME', errors.BAD_USAGE)
    if not program:
        raise UserError('a COMMAND is needed after NAME', errors.BAD_USAGE)
    environment = {} if options.clear_env else dict(os.environ)
    environment.update(options.env)
    with _started(options) as kernel:
        before = kernel.list_processes(options.name).get(options.name)
        entry = kernel.make_process(
            options.name, program[0], args=program[1:], env=environment,
            working_dir=os.path.abspath(options.cwd), bufsize=options.bufsize,
            overflow=options.overflow)
    assert isinstance(entry, dict)  # and no watcher
    name = table.shown(options.name)
    is_old = before is not None and before.get('life') == entry.get('life')
    if is_old and not entry.get('running', True):
        from gocept.runner.cli import inventory
        raise UserError(
            f'{name} was run before ({inventory.state(entry.get("status"))}), '
            'and is not run again while the kernel keeps its output: '
            f'{_other(options, "tail")} {name} shows it, and '
            f'{_other(options, "remove")} {name} removes it',
            errors.WORKER_FAILED)
    verb = 'runs already' if is_old else 'runs'
    print(f'{name} {verb} with pid {entry["pid"]}')
    return errors.SUCCESS


def remove(options: argparse.Namespace) -> int:
    """Take out what nobody needs any more."""
    with _connected(options) as kernel:
        if options.kind == 'sockets':
            kernel.remove_sockets(*options.names)
        elif options.kind == 'values':
            kernel.remove_values(*options.names)
        else:
            kernel.remove_processes(*options.names)
            running = [
                f'{table.shown(name)} ({entry["pid"]})' for name, entry
                in sorted(kernel.list_processes().items())
                if entry['running'] and _is_named(name, options.names)]
            if running:
                print('These run on, and their output is thrown away: '
                      + ', '.join(running))
    return errors.SUCCESS


def _is_named(name: str, names: Iterable[str]) -> bool:
    return any(name.startswith(each[:-1]) if each.endswith('*')
               else name == each for each in names)


@contextlib.contextmanager
def _connected(options: argparse.Namespace) -> Iterator['Kernel']:
    from gocept.runner.kernel import Kernel
    with Kernel(options.path or options.port, user=options.user,
                autostart=False) as kernel:
        yield kernel


@contextlib.contextmanager
def _started(options: argparse.Namespace) -> Iterator['Kernel']:
    """Like `_connected`, but a kernel is started if none listens."""
    with contextlib.ExitStack() as stack:
        try:
            kernel = stack.enter_context(_connected(options))
        except errors.KernelSilent:
            raise
        except errors.KernelNotRunning:
            if options.user is not None:  # ours would not be the one
                raise
            from gocept.runner.kernel.keeper.options import Options
            if _start(Options(options.path or options.port)):
                print(f'A kernel was started on {_where(options)}.')
            kernel = stack.enter_context(_connected(options))
        yield kernel


def _other(options: argparse.Namespace, command: str) -> str:
    """Another command for the same kernel, to be typed."""
    place = (f' --path {shlex.quote(options.path)}' if options.path
             else '' if options.port == PORT else f' --port {options.port}')
    return f'{PROG} {command}{place}'


def _where(options: argparse.Namespace) -> str:
    return options.path or f'port {options.port}'


def _binary(stream: TextIO | None) -> BinaryIO:
    if stream is None:  # it was closed at the start
        return open(os.devnull, 'wb')
    if isinstance(stream.buffer, io.RawIOBase):  # as of PYTHONUNBUFFERED
        return open(stream.fileno(), 'wb', closefd=False)
    return stream.buffer


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    'start': start, 'stop': stop, 'status': status, 'tail': tail,
    'upgrade': upgrade, 'run': run, 'remove': remove}
