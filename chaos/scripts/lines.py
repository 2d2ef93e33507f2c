"""A worker that reads the lines of a child in a kernel, and may be killed.

The position is stored in the transaction that stores what was read.
"""

import os
import pathlib
import sys
from typing import Any

import transaction
from persistent.mapping import PersistentMapping
from zope.component.hooks import getSite

import gocept.runner
from gocept.runner.kernel import Kernel, Watcher
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for

NAME = 'source'


class Reading:
    """What a worker has beside the database."""

    def __init__(self, kernel: Kernel, directory: pathlib.Path) -> None:
        self._kernel = kernel
        self._directory = directory
        self._watcher: Watcher | None = None

    def tick(self) -> None:
        """Read what there is, and store it."""
        site = getSite()
        if not hasattr(site, 'counts'):
            site.counts, site.rest = PersistentMapping(), b''
            site.position, site.failures = None, ()
        if not self._watcher:
            self._watcher = self._watch(site.position)
        if not wait_for(self._watcher.fileno(), 1, Deadline(0.05)) and (
                not self._watcher.ready):
            return
        out, _, closed = self._watcher.read() or ((), (), ())
        for each in out:
            assert isinstance(each.data, bytes)
            self._store(site, each.data)
        if closed:
            site.rest = b''  # half a line of one that was killed
        site.position = self._watcher.position
        transaction.get().addAfterCommitHook(self._tell)

    def _watch(self, position: Any) -> Watcher:
        from chaos.scripts import source
        self._kernel.make_process(
            NAME, sys.executable,
            ['-I', '-S', source.__file__, str(self._directory / 'written')],
            env={}, working_dir=str(self._directory), overflow='block')
        return self._kernel.watch_processes(
            NAME, after=position, transactional=True)

    @staticmethod
    def _store(site: Any, data: bytes) -> None:
        *lines, site.rest = (site.rest + data).split(b'\n')
        for line in lines:
            life, number, _ = line.decode().split(' ')
            expected = site.counts.get(life, 0)
            if int(number) != expected:
                site.failures += (f'{life}: {number}, not {expected}',)
            site.counts[life] = int(number) + 1

    def _tell(self, is_committed: bool) -> None:
        """The file grows with each commit."""
        if is_committed:
            with open(self._directory / 'committed', 'ab', 0) as file:
                file.write(b'x')


def main() -> None:
    directory = pathlib.Path(os.getcwd())
    with Kernel(sys.argv.pop(1), DEADLINE, autostart=False) as kernel:
        reading = Reading(kernel, directory)

        @gocept.runner.appmain(attempts=1000)
        def worker() -> None:
            reading.tick()

        sys.exit(worker())


if __name__ == '__main__':
    main()
