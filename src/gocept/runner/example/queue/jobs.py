"""The queue of a site, and how a job names its object."""

import time
from typing import Any

import persistent
from BTrees.LOBTree import LOBTree
from zope.annotation.interfaces import IAnnotations
from zope.component.interfaces import ISite

KEY = 'gocept.runner.example.queue'
"""Of the annotation with the queue."""

# The names that lead from the site to an object.
Path = tuple[str, ...]


class Queue(persistent.Persistent):  # type: ignore[misc]
    """Paths of objects whose words are to be counted, the oldest first."""

    def __init__(self) -> None:
        # By the time, in ns. As the keys differ, requests that put jobs into
        # the same bucket do not conflict.
        self.jobs = LOBTree()

    def put(self, path: Path) -> None:
        """Have the words of this object counted."""
        now = time.time_ns()
        while now in self.jobs:
            now += 1
        self.jobs[now] = path


def find_queue(site: ISite) -> Queue | None:
    """The queue of this site, if anything was ever put into it."""
    queue: Queue | None = IAnnotations(site).get(KEY)
    return queue


def queue_of(site: ISite) -> Queue:
    """The queue of this site, for who puts something into it."""
    queue = find_queue(site)
    if queue is None:
        queue = IAnnotations(site)[KEY] = Queue()
    return queue


def path_of(content: Any) -> Path:
    """The names from the nearest site to this object."""
    names: list[str] = []
    while not ISite.providedBy(content):
        names.insert(0, content.__name__)
        content = content.__parent__
    return tuple(names)


def content_at(site: ISite, path: Path) -> Any:
    """The object with this path; KeyError if it is gone.

    Containers are asked, so that nothing is acquired.
    """
    content: Any = site
    for name in path:
        content = content[name]
    return content
