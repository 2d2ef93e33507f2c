"""What the keywords of a child are called on all sides.

`IProcess`, `IRunner.add` and the ZCML directive ``app`` use the same names.
`IExecutor` and the directive ``executor`` use them too, with two exceptions:
they call ``extra_env`` ``envvars``, and in Python an executor takes those of
`POPEN` as keys of ``popen_kwargs``.

What belongs to none of the parts below is for the start (see `Launch`).
"""

import subprocess
from collections.abc import Mapping
from typing import Any

Keywords = Mapping[str, Any]
"""Keywords by name. Only who takes one knows the type of its value."""

CHANNEL = frozenset({'buffering', 'encoding', 'limit', 'high_water'})
"""Options of the channels."""

WATCH = frozenset({'poller', 'on_start', 'on_end', 'servers', 'name'})
"""What is the business of an application itself."""

END = frozenset({'stop_signal', 'stop_timeout', 'kill_signal', 'adopt'})
"""How the child is ended."""

POPEN = frozenset({
    'env', 'user', 'group', 'extra_groups', 'umask', 'process_group',
    'start_new_session', 'pass_fds'})
"""Keywords of Popen that a process has to know, so that an executor takes them
out of its `popen_kwargs`."""

STREAMS: dict[str, int | None] = {
    'pipe': subprocess.PIPE, 'null': subprocess.DEVNULL, 'inherit': None,
    'merge': subprocess.STDOUT}
"""Streams of a process, and what Popen and executors call them."""
