"""A daemon that owns sockets, values and processes, and its client.

The names are handed out lazily: the daemon imports no client.
"""

from typing import TYPE_CHECKING

from gocept.runner.waits.lazy import handing_out

if TYPE_CHECKING:
    from gocept.runner.errors import KernelError as Error
    from gocept.runner.kernel.client.client import Kernel
    from gocept.runner.kernel.client.defaults import (
        DEVNULL,
        PIPE,
        STDOUT,
        set_default_connection_timeout,
        set_default_path,
        set_default_port,
    )
    from gocept.runner.kernel.client.reading import ProcessOutput
    from gocept.runner.kernel.client.watcher import Watcher

__all__ = [
    'DEVNULL',
    'PIPE',
    'STDOUT',
    'Error',
    'Kernel',
    'ProcessOutput',
    'Watcher',
    'set_default_connection_timeout',
    'set_default_path',
    'set_default_port',
]

__getattr__, __dir__ = handing_out(__name__, {
    'Error': 'gocept.runner.errors:KernelError',
    'Kernel': f'{__name__}.client.client',
    'ProcessOutput': f'{__name__}.client.reading',
    'Watcher': f'{__name__}.client.watcher',
    **dict.fromkeys((
        'DEVNULL', 'PIPE', 'STDOUT', 'set_default_connection_timeout',
        'set_default_path', 'set_default_port'),
        f'{__name__}.client.defaults'),
})
