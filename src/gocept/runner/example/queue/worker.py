"""The worker that does the jobs of the queue."""

import functools
import logging
from collections.abc import Callable, Iterator

from zope.component.hooks import getSite
from zope.component.interfaces import ISite

import gocept.runner
from gocept.runner.example.queue.jobs import (
    Path,
    Queue,
    content_at,
    find_queue,
)
from gocept.runner.example.queue.words import count

log = logging.getLogger('gocept.runner.example')


def watched(site: ISite) -> object:
    """What ends the pause of the worker when it changes.

    This is the queue with its jobs, or the site as long as it has no queue.
    """
    queue = find_queue(site)
    return site if queue is None else queue


@gocept.runner.appmain(ticks=600)
@gocept.runner.transaction_per_item(attempts=5)
def work() -> Iterator[Callable[[], None]]:
    """Do all jobs, each in a transaction of its own.

    A job that fails stays in the queue, for the next tick, and the others are
    done.
    """
    queue = find_queue(getSite())
    if queue is not None:
        for key, path in list(queue.jobs.items()):
            yield functools.partial(do, queue, key, path)


def do(queue: Queue, key: int, path: Path) -> None:
    """Do this job, unless it has been done.

    Where two workers do it at the same time, their transactions conflict. One
    of them calls this again, and then the job is not there any more.
    """
    if queue.jobs.pop(key, None) is None:
        return
    try:
        content = content_at(getSite(), path)
    except KeyError:
        log.info('%r is gone', '/'.join(path))
        return
    log.info('%r has %d words', '/'.join(path), count(content))
