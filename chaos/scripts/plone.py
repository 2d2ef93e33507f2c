"""Workers on a Plone site, with documents; see `chaos.plone`.

usage: plone.py WORKER [option ...] [-- NAME COUNT]

``documents`` creates COUNT documents in /news, and publishes, moves and
deletes them: each tick creates one, publishes the one before it, moves the one
before that to /archive and deletes the one before that. `items` does each of
these in a transaction of its own. Every fifth one is not deleted. How far it
is, is an annotation of the site under NAME.

`lives` does all of this with one document in each of COUNT ticks, and `looks`
only looks at the site. `living` and `looking` do the same in COUNT items of
one tick.

The first two print the number of each tick that they begin; the others print
the number of some ticks, and the memory that they have.
"""

import collections
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import transaction
from persistent.mapping import PersistentMapping
from plone import api
from zope.annotation.interfaces import IAnnotations

import gocept.runner

KEPT = 5
"""Each document with a multiple of this as its number stays."""

STEPS = 4

SHOWN = 50
"""How many ticks there are between two lines with the memory."""

ticks: collections.Counter[str] = collections.Counter()
"""How many this process has begun."""

SERVER = 'https://www.example.org/portal'


def progress(name: str) -> Any:
    """What this worker alone changes."""
    annotations = IAnnotations(api.portal.get())
    if name not in annotations:
        annotations[name] = PersistentMapping(done=0)
    return annotations[name]


@gocept.runner.appmain(ticks=0, principal='writer', attempts=100)
def documents(name: str, count: str) -> object:
    """All steps of a tick in one transaction."""
    number = progress(name)['done']
    print(number, flush=True)
    if number == int(count) + STEPS - 1:
        return gocept.runner.Exit
    for step in steps(name, number, int(count)):
        step()
    progress(name)['done'] += 1
    return None


@gocept.runner.appmain(ticks=0, principal='writer')
@gocept.runner.transaction_per_item(attempts=100)
def items(name: str, count: str) -> Iterator[Callable[[], object]]:
    """Each step in a transaction of its own."""
    number = progress(name)['done']
    print(number, flush=True)
    if number == int(count) + STEPS - 1:
        return gocept.runner.Exit
    yield from steps(name, number, int(count))
    yield functools.partial(finish, name, number, int(count))
    return None


def finish(name: str, number: int, count: int) -> None:
    """The item that ends a tick, and does what others were too slow for."""
    for step in steps(name, number, count):
        step()  # most find that there is nothing to do
    progress(name)['done'] = number + 1


def steps(name: str, number: int, count: int) -> Iterator[
        Callable[[], object]]:
    """What is done in the tick with this number, the oldest document first.

    A tick that was killed has perhaps done some of its items.
    """
    for step, does in reversed([*enumerate((create, publish, move, delete))]):
        if 0 <= number - step < count:
            yield functools.partial(does, f'{name}-{number - step}')


def create(title: str) -> None:
    """In the folder that all workers use."""
    news = api.content.get('/news')
    if title not in news:
        document = api.content.create(news, 'Document', title, title=title)
        check_url(document, f'news/{title}')


def publish(title: str) -> None:
    """With the rights of the worker's user."""
    document = api.content.get(f'/news/{title}')
    if api.content.get_state(document) != 'published':
        api.content.transition(document, 'publish')
    check_url(document, f'news/{title}')


def move(title: str) -> None:
    """To the other folder."""
    document = api.content.get(f'/news/{title}')
    if document is not None:
        api.content.move(document, api.content.get('/archive'))
    check_url(api.content.get(f'/archive/{title}'), f'archive/{title}')


def delete(title: str) -> None:
    """Unless it is to stay."""
    document = api.content.get(f'/archive/{title}')
    if int(title.rpartition('-')[2]) % KEPT and document is not None:
        api.content.delete(document)


def check_url(document: Any, path: str) -> None:
    """It is what browsers see, in each attempt of each item."""
    if document.absolute_url() != f'{SERVER}/{path}':
        raise AssertionError(document.absolute_url())


@gocept.runner.appmain(ticks=0, principal='writer')
def lives(name: str, count: str) -> object:
    """The whole life of one document in each tick."""
    return at_tick(name, int(count), live)


@gocept.runner.appmain(ticks=0, principal='writer')
@gocept.runner.transaction_per_item
def living(name: str, count: str) -> Iterator[Callable[[], object]]:
    """The same in the items of one tick."""
    return in_items(name, int(count), live)


@gocept.runner.appmain(ticks=0, principal='reader')
def looks(name: str, count: str) -> object:
    """Look at the site in each tick."""
    return at_tick(name, int(count), look)


@gocept.runner.appmain(ticks=0, principal='reader')
@gocept.runner.transaction_per_item
def looking(name: str, count: str) -> Iterator[Callable[[], object]]:
    """The same in the items of one tick."""
    return in_items(name, int(count), look)


def at_tick(name: str, count: int, does: Callable[[str], None]) -> object:
    """Do it, and count; `Exit` in the last tick."""
    number = ticks[name]
    ticks[name] += 1
    does(f'{name}-{number}')
    show(number)
    return gocept.runner.Exit if number == count else None


def in_items(name: str, count: int, does: Callable[[str], None],
             ) -> Iterator[Callable[[], object]]:
    """Do it in each item, and count."""
    for number in range(count + 1):
        yield functools.partial(does, f'{name}-{number}')
        show(number)
    return gocept.runner.Exit


def show(number: int) -> None:
    """Print the memory now and then."""
    if number % SHOWN == 0:
        print(number, memory(), flush=True)


def live(title: str) -> None:
    """Create, publish, move, and delete or keep."""
    create(title)
    transaction.savepoint()  # what is moved has to have an oid
    publish(title)
    move(title)
    delete(title)


def look(title: str) -> None:
    """Ask the parts of a site that keep what they have found."""
    site = api.portal.get()
    api.content.find(portal_type='Folder', sort_on='modified')
    api.portal.get_registry_record('plone.site_title')
    state = api.content.get_view('plone_portal_state', site, site.REQUEST)
    state.navigation_root_url()
    IAnnotations(site.REQUEST)['chaos'] = b'x' * 10_000


def memory() -> int:
    """The resident memory of this process, in KiB."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file
                    if line.startswith('VmRSS:'))


if __name__ == '__main__':
    sys.exit(globals()[sys.argv.pop(1)]())
