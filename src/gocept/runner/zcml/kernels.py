"""The kernels that ZCML declares."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import ZODB.interfaces
import zope.component
import zope.interface

from gocept.runner.boot.creation import name_of
from gocept.runner.errors import ConfigurationError, KernelError
from gocept.runner.interfaces import IKernel
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.launch import Command
from gocept.runner.waits.forks import Lock

if TYPE_CHECKING:
    from gocept.runner.kernel import Kernel


@zope.interface.implementer(IKernel)
class DeclaredKernel:
    """A kernel that is looked for, or started, when it is first needed.

    So nothing is open where ZCML is read but no worker runs. The names of its
    processes begin with that of the instance.
    """

    def __init__(self, place: int | str | None = None, instance: str = '',
                 ) -> None:
        self._place = place
        self._instance = instance
        self._lock = Lock()
        self._kernel: Kernel | None = None

    @property
    def opened(self) -> 'Kernel':
        """The kernel itself; KernelError if it cannot be reached."""
        with self._lock:
            if self._kernel is None:
                from gocept.runner.kernel import Kernel
                self._kernel = Kernel(self._place)
            return self._kernel

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        return getattr(self.opened, name)

    @property
    def place(self) -> int | str:
        """Its port, or the path of its socket."""
        return 20202 if self._place is None else self._place

    @property
    def instance(self) -> str:
        """What the names of its processes begin with."""
        if not self._instance:
            self._instance = _instance_of_database()
        return self._instance

    @property
    def description(self) -> str:
        """What ``gocept-runner list`` shows."""
        return ' '.join([
            f'at {self.place}' if isinstance(self.place, str)
            else f'on port {self.place}',
            *([f'for instance {self._instance}'] if self._instance else [])])

    def look_for(self, key: str) -> dict[str, int]:
        """The numbers of the processes that run under this name.

        Also those of other instances, as long as ours is not known. No kernel
        is started.
        """
        from gocept.runner.kernel import Kernel
        try:
            with Kernel(self._place, autostart=False) as kernel:
                found = kernel.list_processes()
        except KernelError:
            return {}
        wanted = re.compile(
            (re.escape(self._instance) or r'[^.]+') + r'\.' + re.escape(key)
            + r'(#\d+)?')
        return {name: cast(int, entry['pid']) for name, entry in found.items()
                if entry['running'] and wanted.fullmatch(name)}

    def _key(self, key: str) -> str:
        return f'{self.instance}.{key}'

    def check_process(self, command: Command, **keywords: Any) -> None:
        """See `IKernel`."""
        from gocept.runner.kernel.child.child import check_process
        check_process(command, **keywords)

    def open_process(self, key: str, command: Command, *,
                     make_way: Callable[[], object] = lambda: None,
                     on_change: str = 'keep', **keywords: Any) -> BaseProcess:
        """See `IKernel`."""
        return self.opened.open_process(
            self._key(key), command, make_way=make_way, on_change=on_change,
            **keywords)

    def has_process(self, key: str) -> bool:
        """See `IKernel`."""
        return self.opened.has_process(self._key(key))

    def ended_processes(self, key: str, **keywords: Any,
                        ) -> Sequence[BaseProcess]:
        """See `IKernel`."""
        return self.opened.ended_processes(self._key(key), **keywords)

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        with self._lock:
            kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.close()

    def __repr__(self) -> str:
        where = '' if self._place is None else f' at {self._place}'
        return f'<DeclaredKernel{where}>'


def _instance_of_database() -> str:
    """A name that stays the same as long as the database does.

    Its end is a digest of what the storage is called, such as the path of a
    file. Other paths, as that of zope.conf, may change with each release.
    """
    databases = dict(
        zope.component.getUtilitiesFor(ZODB.interfaces.IDatabase))
    for name in '', 'main', *(databases if len(databases) == 1 else ()):
        if name in databases:
            storage = name_of(databases[name].storage)
            if os.path.isabs(storage):
                storage = os.path.realpath(storage)
            word = re.sub(r'\W+', '-', os.path.splitext(
                os.path.basename(storage))[0]).strip('-')
            digest = hashlib.sha256(os.fsencode(storage)).hexdigest()[:8]
            return f'{word[:32]}-{digest}'
    raise ConfigurationError(
        'the processes of a kernel are named after the database, and there is '
        + ('none' if not databases else 'more than one')
        + ': give <runner:kernel> the attribute instance')
