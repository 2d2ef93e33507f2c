"""The parameters of an executor, which are those of Popen, as those of a
`Process`."""

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gocept.runner.executor.conditions.base import Check

_STREAMS: dict[Any, str] = {
    subprocess.PIPE: 'pipe', subprocess.DEVNULL: 'null',
    subprocess.STDOUT: 'merge', None: 'inherit'}

# What a process has to know of the keywords of Popen.
_GROUP = ('process_group', 'start_new_session')
_KNOWN = ('user', 'group', 'extra_groups', *_GROUP)


def process_options(command: str | Sequence[str], streams: Mapping[str, Any],
                    envvars: Mapping[str, str], added: Iterable[str],
                    popen_kwargs: Mapping[str, Any], check: Check | None,
                    ) -> dict[str, Any]:
    """The keywords of a process that depend on what the caller has said.

    `envvars` is the environment, and `added` are the names in it that were
    added to ours. `popen_kwargs` come before all else.
    """
    popen = dict(popen_kwargs)
    options = {key: popen.pop(key) for key in _KNOWN if key in popen}
    environment = popen.pop('env', envvars)
    # What is never inherited has to be said once more.
    extra = {name: environment[name] for name in added if name in environment}
    pass_fds = tuple(popen.pop('pass_fds', ()))
    if check is not None:
        extra |= check.variables
        pass_fds += tuple(check.pass_fds)
        fd = check.variables.get('NOTIFY_FD', '{notify_fd}')
        command = (command.replace('{notify_fd}', fd)
                   if isinstance(command, str)
                   else [os.fspath(each).replace('{notify_fd}', fd)
                         for each in command])
    return options | {
        name: _STREAMS.get(stream, stream) for name, stream in streams.items()
    } | {
        'command': command, 'env': environment, 'extra_env': extra,
        'pass_fds': pass_fds, 'popen_kwargs': popen,
        'setsid': not any(each in options for each in _GROUP)}
