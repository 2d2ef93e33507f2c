"""A kernel, or a background server, for the time of one block."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.poller import Poller
from gocept.runner.process import terminate_all
from gocept.runner.process.pidfd import hold
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import OneProcess

if TYPE_CHECKING:
    from gocept.runner.background.worker_client import WorkerClient
    from gocept.runner.kernel import Kernel

_PATIENCE = 10.0  # seconds

_GRACE = 1.0  # seconds, as what outlives a test is to be ended soon


@contextlib.contextmanager
def private_kernel() -> 'Iterator[Kernel]':
    """See `IKernelLayer.kernel`: the kernel of one ``with`` block."""
    # Imported here, as most tests need none.
    from gocept.runner.kernel import Kernel
    with tempfile.TemporaryDirectory(prefix='kernel-') as directory:
        kernel = Kernel(os.path.join(directory, 'kernel'))
        try:
            with OneProcess():
                yield kernel
        finally:
            _end(kernel)


def _end(kernel: 'Kernel') -> None:
    """End a kernel and all that lives in it, and wait for that."""
    from gocept.runner.kernel.child.child import running_processes
    kernel.autostart = False
    with contextlib.ExitStack() as stack:
        stack.callback(kernel.close)
        poller = stack.enter_context(Poller())
        # A test may have ended the kernel itself.
        stack.enter_context(contextlib.suppress(KernelError))
        status = kernel.status()
        handles = []
        for pid in {status['pid'], status['keeper']}:
            with contextlib.suppress(ProcessLookupError):
                handle = hold(pid)
                stack.callback(handle.close)
                poller.register(handle)
                handles.append(handle)
        terminate_all(running_processes(kernel), timeout=_GRACE)
        kernel.stop(force=True)
        deadline = Deadline(_PATIENCE)
        while not (all(each.has_ended() for each in handles)
                   or deadline.passed):
            poller.poll(deadline.left())


@contextlib.contextmanager
def private_server(init_task: object, exec_task: object,
                   exit_task: object = None) -> 'Iterator[WorkerClient]':
    """A background server for one ``with`` block; yields a client of it.

    The tasks are functions, as for `IClient.initialize`; the client is an
    `IWorkerClient`. The server is a child with a free port, a token and a
    state directory of its own, so it does not meet other servers. If it dies,
    the next request starts another one.
    """
    # Imported here, as most tests need none.
    from gocept.runner.zcml.servers import EagerServer
    with tempfile.TemporaryDirectory(prefix='server-') as directory:
        server = EagerServer(
            'private', (), envvars={'XDG_STATE_HOME': directory},
            client={'tasks': lambda: (init_task, exec_task, exit_task)})
        try:
            server.ensure_running()
            with OneProcess():
                yield server.client
        finally:
            server.client.close()
            server.child.kill(sig=signal.SIGTERM)  # whatever its status is
