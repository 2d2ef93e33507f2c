"""The configuration of a template, and what it tells of it.

Nothing is open when it is done: no database, no thread, no connection. What is
there stays for all workers, so the collector never looks at it again.
"""

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Iterator

import zope.component

from gocept.runner.boot import environments, program
from gocept.runner.boot import preload as imports
from gocept.runner.boot.environments import Settings
from gocept.runner.boot.housed import Warm
from gocept.runner.boot.program import Program
from gocept.runner.cli.worker import expecting
from gocept.runner.house.launch import Wanted
from gocept.runner.house.link import DeclaredChild, DeclaredWorker, Ready
from gocept.runner.interfaces import ISupervisor
from gocept.runner.waits import libc


def configure(wanted: Wanted) -> Warm:
    """Read the configuration; UserError where `gocept-runner run` has one."""
    settings = Settings(wanted.application, wanted.server_url,
                        wanted.log_config, wanted.log_format)
    with program.configuration(wanted.config, expecting, settings,
                               verbose=wanted.verbose) as options:
        pass
    return Warm(options, settings, wanted.verbose)


def preload(warmth: Warm) -> None:
    """Import what the declared workers will need."""
    supervisor = zope.component.queryUtility(ISupervisor)
    if supervisor is not None:
        imports.preload(
            warmth.options, environments.current().name,
            [each.decorator for each in supervisor.workers.values()])


def rehearse() -> None:
    """Do what fills caches when it is done for the first time.

    Whether the class of an object is that of a mapping, say, is asked with
    each line of the log. The first time, Python asks all classes that there
    are, and writes to each.
    """
    log = logging.getLogger(__name__)
    for each in 'text', 1, 1.0, log, None:
        record = log.makeRecord(
            log.name, logging.INFO, __file__, 1, '%s', (each,), None)
        for handler in logging.getLogger().handlers:
            handler.format(record)


def freeze() -> None:
    """Leave what there is to all workers: they share it while nobody writes.

    The collector writes to what it looks at, so it does that here for the last
    time.
    """
    rehearse()
    gc.collect()
    gc.freeze()
    gc.enable()
    with contextlib.suppress(NotImplementedError, OSError):
        libc.call('malloc_trim', 0)


def ready() -> Ready:
    """What is declared, and which threads there are."""
    supervisor = zope.component.queryUtility(ISupervisor)
    workers = {} if supervisor is None else supervisor.workers
    children = {} if supervisor is None else supervisor.children
    return Ready(
        environments.current().name,
        tuple(_declared(each) for each in workers.values()),
        tuple(DeclaredChild(
            each.kind, each.name, each.start, each.requires, each.description,
            each.kernel is not None) for each in children.values()),
        tuple(threads()))


def _declared(it: Program) -> DeclaredWorker:
    decorator = it.decorator
    ticks = decorator.ticks
    runs_by_ticks = decorator.schedule is None and not decorator.once
    return DeclaredWorker(
        it.name, it.site, tuple(map(str, it.arguments)), decorator.once,
        float(ticks) if runs_by_ticks and isinstance(ticks, int | float)
        else None,
        decorator.schedule, decorator.timezone, decorator.jitter,
        decorator.missed, decorator.lock, decorator.tick_timeout,
        decorator.shutdown_timeout, tuple(getattr(it, 'apps', ())))


def threads() -> Iterator[str]:
    """The names of all threads beside this one.

    A fork has one thread. What the others have locked stays locked there.
    """
    numbers = {str(threading.get_native_id())}
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            numbers.add(str(thread.native_id))
            yield thread.name
    for number in sorted({*os.listdir('/proc/self/task')} - numbers):
        yield f'thread {number}, which is none of Python'
