"""The subcommand ``gocept-runner units``: services and timers of systemd.

See systemd.service(5), systemd.timer(5), and systemd.syntax(7) for how words
are quoted.
"""

import argparse
import contextlib
import inspect
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import zope.component

from gocept.runner import errors
from gocept.runner.boot.environments import Options
from gocept.runner.boot.program import Program, configuration
from gocept.runner.cli import worker as command
from gocept.runner.cli.application import add_application, settings_of
from gocept.runner.cli.mistakes import UserError, guarded
from gocept.runner.cli.run import named
from gocept.runner.interfaces import ISupervisor
from gocept.runner.operation.place import Place, place_of
from gocept.runner.zcml.kernels import DeclaredKernel

EXAMPLES = '''\
examples:
  gocept-runner units --config zope.conf
  gocept-runner units nightly --user shop --output /etc/systemd/system
  gocept-runner units --timers --output units

statuses:
   0  success
   1  a file could not be written
   2  bad usage; or a file would be replaced, and --force was not given
  78  bad configuration: zope.conf or ZCML
'''

_PROTECTED = '/usr', '/etc', '/boot', '/efi'
"""What ``ProtectSystem=full`` keeps services from changing."""

_LONGEST_TICK = 60
"""Seconds that a tick without a ``tick_timeout`` gets for its end."""

_MARGIN = 10
"""Seconds that the watchdog waits after a ``tick_timeout``."""

_LONGEST = 1e12
"""Seconds that systemd still takes for a time, in microseconds of 64 bits."""


class _Wish(NamedTuple):
    """What all units have in common."""

    command: Sequence[str]
    config: str
    options: Sequence[str]
    user: str | None
    prefix: str
    timers: bool
    writable: str | None
    """A directory that ``ProtectSystem=full`` must not protect."""


def units(argv: Sequence[str]) -> int:
    """Write units for the workers that ZCML declares."""
    parser = command.make_parser(
        '[options] [NAME ...]', 'Write a service of systemd for each worker '
        'and each kernel that ZCML\ndeclares, or for the workers that are '
        'named. Nothing is started or opened.', EXAMPLES,
        'gocept-runner units')
    parser.add_argument('names', nargs='*', metavar='NAME', help='a worker')
    parser.add_argument(
        '--user', help='the user of the system that the workers run as')
    parser.add_argument(
        '--site', metavar='PATH',
        help='the path of the object that becomes the site (default: as ZCML '
             'says)')
    parser.add_argument(
        '--output', metavar='DIR',
        help='the directory to write to (default: the units are shown)')
    parser.add_argument(
        '--timers', action='store_true',
        help='for a worker with a schedule: a timer, and a service that it '
             'starts for each run, instead of one that always runs')
    parser.add_argument(
        '--prefix', default='', metavar='TEXT',
        help='what the names of the units begin with (default: nothing)')
    parser.add_argument(
        '--command', metavar='FILE',
        help='the gocept-runner that the services start (default: this one)')
    parser.add_argument(
        '--force', action='store_true',
        help='replace files that differ from what is to be written')
    add_application(parser, os.path.abspath)
    options = parser.parse_args(argv)
    return guarded(parser.prog, lambda: _units(options))


def _units(options: argparse.Namespace) -> int:
    start, user = _command(options.command), _user(options.user)
    with configuration(options.config, command.expecting,
                       settings_of(options), logs=False) as conf:
        place = _place(conf)
        wish = _Wish(start, os.path.abspath(options.config),
                     [*_given(options)], user, options.prefix, options.timers,
                     _writable(place))
        files = _all_files(wish, options.names)
        _warn_of_sharing(place, options.names)
    if not files:
        print('No worker is declared, so there is nothing to write.')
    elif options.output is None:
        for name, text in files.items():
            print(f'# {name}\n\n{text}')
    else:
        _write(Path(options.output), files, options.force)
    return errors.SUCCESS


def _all_files(wish: _Wish, names: Sequence[str]) -> Mapping[str, str]:
    """The units of these workers, or of all that is declared."""
    supervisor = zope.component.queryUtility(ISupervisor)
    kernels = {} if supervisor is None else supervisor.kernels
    files: dict[str, str] = {}
    if not names:
        for name, kernel in sorted(kernels.items()):
            files |= _files_of_kernel(name, kernel, wish)
    for name in _workers(names):
        files |= _files(named(name), sorted(kernels), wish)
    return files


def _workers(names: Sequence[str]) -> Sequence[str]:
    """These workers, or all that are declared."""
    if names:
        return names
    supervisor = zope.component.queryUtility(ISupervisor)
    return [] if supervisor is None else sorted(supervisor.workers)


def _command(given: str | None) -> Sequence[str]:
    """How a service starts gocept-runner."""
    name = 'gocept-runner'
    if given is not None:
        found: str | None = shutil.which(os.path.abspath(given))
        if found is None:
            raise UserError(f'--command: {given} cannot be run',
                            errors.BAD_USAGE)
        return [found]
    ours = os.path.abspath(sys.argv[0])
    if os.path.basename(ours) == name:
        return [ours]
    beside = os.path.join(sys.prefix, 'bin')
    found = shutil.which(name, path=os.pathsep.join(
        [beside, os.environ.get('PATH', os.defpath)]))
    if found is None:
        raise UserError(f'{name} is not on the PATH: say with --command which '
                        'one the services have to start', errors.BAD_USAGE)
    return [os.path.abspath(found)]


def _given(options: argparse.Namespace) -> Iterator[str]:
    """The options that ``gocept-runner run`` gets as well."""
    for name in 'site', 'application', 'server_url', 'log_config':
        value = getattr(options, name)
        if value is not None:
            yield f'--{name.replace("_", "-")}={value}'


def _user(name: str | None) -> str | None:
    if name is None:
        print('gocept-runner units: without --user, the workers run as root',
              file=sys.stderr)
    elif not re.fullmatch(
            r'[A-Za-z0-9_][A-Za-z0-9_.-]*\$?', name):
        raise UserError(f'--user: {name!r} is no name of a user',
                        errors.BAD_USAGE)
    return name


def _place(conf: Options) -> Place | None:
    """The place of a FileStorage; None if there is none."""
    try:
        place = place_of(conf)
    except ValueError:  # no directory of this user, who may be another one
        return None
    return None if place.is_of_user else place


def _writable(place: Place | None) -> str | None:
    """The directory of the database, if it is protected."""
    return place.directory if place is not None and any(
        Path(place.directory).is_relative_to(each)
        for each in _PROTECTED) else None


def _warn_of_sharing(place: Place | None, names: Sequence[str]) -> None:
    """Tell of services that cannot run at the same time."""
    count = len({*_workers(names)})
    if place is not None and count > 1:
        path = os.path.join(place.directory, place.prefix.removesuffix('.'))
        print(f'gocept-runner units: only one program at a time can open '
              f'{path}, but these are {count} workers: a ZEO server lets '
              'several share it', file=sys.stderr)


def _unit_name(*words: str) -> str:
    """The name of a unit without its end."""
    name = ''.join(map(_in_name, '-'.join(filter(None, words))))
    if len(name) > 240:
        raise UserError(f'the name of a unit would be too long: {name}',
                        errors.BAD_USAGE)
    return name


def _files(program: Program, kernels: Sequence[str], wish: _Wish,
           ) -> Mapping[str, str]:
    """The units of a worker, by the names of their files."""
    decorator = program.decorator
    stem = _unit_name(f'{wish.prefix}worker', program.name)
    timed = decorator.schedule is not None and (
        wish.timers or decorator.once)
    once = timed or decorator.once
    worker = program.worker
    doc = inspect.getdoc(worker) if hasattr(worker, '__qualname__') else ''
    purpose, _, _ = (doc or '').partition('\n')
    after = [f'{_kernel_name(name, wish)}.service' for name in kernels]
    files = {f'{stem}.service': '\n'.join([
        *_unit(f'Worker {program.name}' + (f': {purpose}' if purpose else ''),
               wish, ['network-online.target', *after]),
        '[Service]',
        *(_run_of(program, wish) if once else _service_of(program, wish)),
        *_hardening(wish),
        *([] if once else ['', '[Install]', 'WantedBy=multi-user.target']),
        ''])}
    if timed:
        files[f'{stem}.timer'] = _timer(program)
    return files


def _unit(what: str, wish: _Wish, after: Sequence[str]) -> Iterator[str]:
    yield f'# Written by gocept-runner units for {_one_line(wish.config)}'
    yield '[Unit]'
    yield f'Description={_value(_one_line(what))}'
    yield f'Wants={" ".join(after)}'
    yield f'After={" ".join(after)}'
    yield ''


def _kernel_name(name: str, wish: _Wish) -> str:
    return _unit_name(f'{wish.prefix}process-kernel', name)


def _files_of_kernel(name: str, kernel: DeclaredKernel, wish: _Wish,
                     ) -> Mapping[str, str]:
    """The unit of a kernel, which outlives the workers that use it.

    In a service of a worker, it would end with this.
    """
    place = kernel.place
    option = (f'--path={place}' if isinstance(place, str)
              else f'--port={place}')
    where = [*wish.command, 'kernel']
    user = [] if wish.user is None else [f'User={_value(wish.user)}']
    runtime = re.fullmatch('/run/([A-Za-z0-9_.-]+)/[^/]+', str(place))
    return {f'{_kernel_name(name, wish)}.service': '\n'.join([
        *_unit(f'Process kernel {name}'.rstrip(), wish,
               ['network.target']),
        '[Service]', 'Type=notify', 'NotifyAccess=all', *user,
        *([f'RuntimeDirectory={runtime[1]}', 'RuntimeDirectoryPreserve=yes']
          if runtime else []),
        'ExecStart=' + command_line([*where, 'start', '--foreground', option]),
        'ExecReload=' + command_line([*where, 'upgrade', option]),
        'KillMode=process', 'OOMPolicy=continue', 'OOMScoreAdjust=-500',
        'Restart=on-failure', 'RestartPreventExitStatus=71',
        '', '[Install]', 'WantedBy=multi-user.target', ''])}


def _service_of(program: Program, wish: _Wish) -> Iterator[str]:
    """What is said of a worker that always runs."""
    decorator = program.decorator
    yield 'Type=notify'
    yield from _process(program, wish)
    yield 'ExecReload=/bin/kill -USR2 $MAINPID'
    yield 'TimeoutStartSec=10min'
    yield from _end(program)
    if decorator.tick_timeout is not None:
        yield f'WatchdogSec={_seconds(decorator.tick_timeout + _MARGIN)}'
    yield 'Restart=on-failure'
    yield 'RestartSec=5'
    yield 'RestartPreventExitStatus=2 66 67 78'


def _run_of(program: Program, wish: _Wish) -> Iterator[str]:
    """What is said of a service that is started for each run."""
    yield 'Type=oneshot'
    yield 'NotifyAccess=main'
    yield from _process(program, wish,
                        *([] if program.decorator.once else ['--once']))
    yield from _end(program)


def _process(program: Program, wish: _Wish, *more: str) -> Iterator[str]:
    if wish.user is not None:
        yield f'User={_value(wish.user)}'
    yield f'WorkingDirectory={_value(os.path.dirname(wish.config))}'
    yield 'ExecStart=' + command_line([
        *wish.command, 'run', program.name, f'--config={wish.config}',
        *wish.options, *more])
    yield 'KillMode=mixed'


def _end(program: Program) -> Iterator[str]:
    decorator = program.decorator
    tick = decorator.tick_timeout or _LONGEST_TICK
    yield f'TimeoutStopSec={_seconds(tick + decorator.shutdown_timeout)}'
    yield 'SuccessExitStatus=143'


def _hardening(wish: _Wish) -> Iterator[str]:
    yield 'NoNewPrivileges=yes'
    yield 'ProtectSystem=full'
    if wish.writable is not None:
        yield f'ReadWritePaths={_quoted(wish.writable)}'
    yield 'ProtectControlGroups=yes'
    yield 'ProtectKernelModules=yes'
    yield 'ProtectKernelTunables=yes'
    yield 'RestrictSUIDSGID=yes'
    yield 'LockPersonality=yes'


def _timer(program: Program) -> str:
    # Imported here, since few workers need it.
    from gocept.runner.schedule.calendar import on_calendar
    decorator = program.decorator
    assert decorator.schedule is not None
    try:
        times = on_calendar(decorator.schedule, decorator.timezone)
    except ValueError as error:
        raise UserError(f'{program.name}: {error}; leave out --timers',
                        errors.BAD_USAGE) from error
    lines = [
        '# Written by gocept-runner units for the schedule '
        f'{_one_line(decorator.schedule)}',
        '# systemd leaves out times that the clocks skip in spring.',
        '[Unit]', f'Description={_value(_one_line(program.name))}, by its '
        'schedule', '',
        '[Timer]', *(f'OnCalendar={time}' for time in times),
        'AccuracySec=1s']
    if decorator.jitter:
        lines.append(f'RandomizedDelaySec={_seconds(decorator.jitter)}')
    if decorator.missed == 'once':
        lines.append('Persistent=yes')
    return '\n'.join([*lines, '', '[Install]', 'WantedBy=timers.target', ''])


def command_line(words: Sequence[str]) -> str:
    """Words as ``ExecStart=`` reads them back.

    UserError for a word that no unit can have.
    """
    # A dollar sign begins a variable in an argument, but not in the path of
    # the program; with the colon, nowhere.
    if set(words[0]) & set('"\'\\'):
        raise UserError(f'{words[0]}: systemd starts no program whose path '
                        'has a quote or a backslash; name another path with '
                        '--command', errors.BAD_USAGE)
    colon = ':' if any('$' in word for word in words) else ''
    return colon + ' '.join(map(_quoted, words))


def _quoted(word: str) -> str:
    word = _value(word)
    if re.fullmatch('[A-Za-z0-9_./:=@%+,-]+', word):
        return word
    return '"' + word.replace('\\', r'\\').replace('"', r'\"') + '"'


def _value(text: str) -> str:
    """Text of a unit, where "%" begins a specifier."""
    if not text.isprintable() or text != text.strip() or text.endswith('\\'):
        raise UserError(f'{text!r} cannot stand in a unit of systemd: it has '
                        'a character that cannot be printed, or begins or '
                        'ends with a space, or ends with a backslash',
                        errors.BAD_USAGE)
    return text.replace('%', '%%')


def _one_line(text: str) -> str:
    """Text for people, who do not miss what cannot be printed."""
    return ''.join(each if each.isprintable() else ' '
                   for each in text).strip().rstrip('\\')


def _in_name(character: str) -> str:
    """A character of the name of a unit, as of systemd-escape(1)."""
    if re.fullmatch('[A-Za-z0-9:_.-]', character):
        return character
    return ''.join(f'\\x{byte:02x}' for byte in character.encode(
        errors='surrogateescape'))


def _seconds(value: float) -> str:
    return 'infinity' if value >= _LONGEST else str(math.ceil(value))


def _write(directory: Path, files: Mapping[str, str], force: bool) -> None:
    """Write all of `files`, or none of them if one would be replaced."""
    try:
        present = {name: _read(directory / name) for name in files}
        differing = [name for name, text in files.items()
                     if present[name] not in (None, text)]
        if differing and not force:
            raise UserError(
                f'{", ".join(differing)} in {directory} would be replaced, so '
                'nothing was written: look at the differences, and use '
                '--force or --prefix', errors.BAD_USAGE)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if present[name] != text:
                _replace(directory / name, text)
    except OSError as error:
        raise UserError(
            f'{error.filename or directory} cannot be written: '
            f'{error.strerror}', errors.WORKER_FAILED) from error
    for name, text in files.items():
        print(f'{"Unchanged" if present[name] == text else "Written"}: '
              f'{directory / name}')
    starting = [name for name, text in files.items() if '[Install]' in text]
    print('Go on, as root, with:\n    systemctl daemon-reload')
    if starting:
        print('    systemctl enable --now '
              + ' '.join(map(shlex.quote, starting)))


def _read(path: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding='utf-8', errors='replace')
    return None


def _replace(path: Path, text: str) -> None:
    """Write a file; whoever reads it sees all of the old or the new one."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix='.units-')
    try:
        with open(fd, 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
