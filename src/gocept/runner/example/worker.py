"""A worker to copy: it keeps a full-text index of files up to date.

The worker is `index_tree`. ``example.zcml`` declares the worker, and the child
that makes text of other formats, `gocept.runner.example.converter`. Both need
``gocept.runner[example]``. Write a ``zope.conf`` that names ``example.zcml``
and the command of the child::

    site-definition PATH/TO/gocept/runner/example/example.zcml
    <product-config example>
      converter python -m gocept.runner.example.converter
    </product-config>
    <zodb>
      <filestorage>
        path $here/Data.fs
      </filestorage>
    </zodb>

Start the worker with one or more directories; it runs until a signal ends it.
The files of a directory that is not named stay in the index, until the worker
`forget` removes them::

    gocept-runner run index --config zope.conf -- DIRECTORY ...
    gocept-runner run forget --config zope.conf -- DIRECTORY

A tick compares the disk and the database, and indexes a batch of the files
that differ. So it does not matter whether the tick before was committed,
aborted or killed: each tick finds the work that is left. The child is
transactional: an answer that was fetched in an aborted tick comes again, and a
request is sent when the tick is committed, so that the database knows what was
asked for. No answer is skipped (``redeliveries="none"``), since its file would
wait for the next converter. An answer of the child ends the pause between two
ticks.

`gocept.runner.example.demo` runs the worker on the source of Python's standard
library.
"""

import contextlib
import json
import logging
import os
import stat
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import persistent
import transaction
from BTrees.IOBTree import IOBTree
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from zope.component import getUtility
from zope.component.hooks import getSite
from zope.container.contained import Contained
from zope.index.text.textindex import TextIndex
from zope.interface import Interface, implementer
from zope.security.management import getInteraction

import gocept.runner
from gocept.runner.channel import Channel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import IPoller, IRunner

log = logging.getLogger('gocept.runner.example')

TEXT = '.py'
CONVERTED = '.rst'
LEFT_OUT = {'__pycache__', 'dist-packages', 'idle_test', 'site-packages',
            'test', 'tests'}

# An interruption loses one batch at most. Smaller batches take longer in all,
# since every commit writes the index entries of common words once more.
BATCH = 20

# How many requests the converter has at a time, and how often it may end
# before it has answered the request for one file.
ASKED = 20
TRIES = 5

# When a file changed, in ns, and its size.
Stamp = tuple[int, int]


class Catalog(persistent.Persistent, Contained):  # type: ignore[misc]
    """A full-text index of files, with the stamp of each indexed version."""

    # Databases have stored objects under this name. Leave the line out in a
    # copy: ZODB would look for the class of the copy in this package.
    __module__ = 'gocept.runner.example'

    def __init__(self) -> None:
        self._text = TextIndex()  # ranks by Okapi BM25
        self._entries = OOBTree()  # path -> (docid, stamp)
        self._paths = IOBTree()  # docid -> path

    def stamps(self, directory: str = '/') -> dict[str, Stamp]:
        """The files in the index that are below `directory`, by path."""
        below = directory.rstrip('/')
        return {path: stamp for path, (_, stamp) in self._entries.items(
            f'{below}/', f'{below}0', excludemax=True)}  # "0" follows "/"

    def put(self, path: str, stamp: Stamp, text: str) -> None:
        """Index a file, or a new version of it."""
        if path in self._entries:
            docid, _ = self._entries[path]
        else:
            docid = self._paths.maxKey() + 1 if self._paths else 1
        self._entries[path] = (docid, stamp)
        self._paths[docid] = path
        self._text.index_doc(docid, text)

    def remove(self, path: str) -> None:
        """Forget a file."""
        docid, _ = self._entries.pop(path)
        del self._paths[docid]
        self._text.unindex_doc(docid)

    def search(self, query: str) -> list[tuple[float, str]]:
        """Scores and paths, best first.

        Raises ParseError for a query that cannot be parsed.
        """
        scores = self._text.apply(query) or {}
        return sorted(((score, self._paths[docid])
                       for docid, score in scores.items()),
                      key=lambda hit: (-hit[0], hit[1]))


class Changes(NamedTuple):
    """Numbers of files: in a batch, left after it, and found on the disk.

    Some of those that are left are waiting for the converter.
    """

    new: int
    changed: int
    gone: int
    left: int
    found: int
    waiting: int = 0

    def __str__(self) -> str:
        return (f'Indexed {self.new + self.changed} files ({self.new} new, '
                f'{self.changed} changed), removed {self.gone}; '
                f'{self.left} to go')


class Requests(persistent.Persistent, Contained):  # type: ignore[misc]
    """What the converter was asked for and has not answered yet.

    They are in the database, since they are sent when the tick is committed.
    """

    def __init__(self) -> None:
        self.child = 0  # the pid of the converter that has been asked
        # By path, in the order of the requests.
        self.asked: MutableMapping[str, Stamp] = PersistentMapping()
        # How often the converter has ended, by path.
        self.losses: MutableMapping[str, int] = PersistentMapping()

    def begin(self, child: int) -> None:
        """A new converter knows of no request."""
        self.child = child
        if self.asked:
            self.asked.clear()

    def blame(self) -> tuple[str, Stamp] | None:
        """The converter has ended, so nothing of this will be answered.

        The converter works in the order of the requests, so the first one may
        be the cause of its end. Returned at its last try.
        """
        first = next(iter(self.asked.items()), None)
        self.begin(0)
        if first is not None:
            path, _ = first
            self.losses[path] = self.losses.get(path, 0) + 1
            if self.losses[path] >= TRIES:
                del self.losses[path]
                return first
        return None


class IConverter(Interface):  # type: ignore[misc]
    """Turns files into text, while the worker does other work."""


@implementer(IConverter)
class Converter:
    """Talks to the child that ZCML declares as "converter".

    The app is transactional: what `fetch` returns in a tick that is aborted
    comes again in the next one, and what this tick asks for is not asked. So
    nothing has to be remembered but the pids that the children have told.

    A request is a line with a path and a stamp, and the answer repeats both.
    If a file has no text after TRIES ends of the converter, it is indexed
    without text until the file changes. A converter that ends before it is
    ready was not asked for anything, so no file is to blame.
    """

    def __init__(self) -> None:
        self._children: WeakKeyDictionary[Channel, int] = WeakKeyDictionary()
        self._channel: Channel | None = None

    def fetch(self, requests: Requests) -> dict[str, tuple[Stamp, str]]:
        """The texts that have come, with the stamps of their files."""
        poller = getUtility(IPoller)
        self._channel = getUtility(IRunner).get_channel('converter')
        if self._channel is not None:
            poller.register(self._channel)
        texts = {}
        new = None
        for line, channel in poller.poll(0):
            if not line:
                log.warning('The converter has ended')
                if self._children.get(channel) == requests.child:
                    lost = requests.blame()
                    if lost is not None:
                        path, stamp = lost
                        log.error('The converter has ended at each try to '
                                  'convert %r', path)
                        texts[path] = (stamp, '')
            elif line.endswith('\n'):  # or else the converter has ended in it
                answer = json.loads(line)
                if 'ready' in answer:
                    new = self._children[channel] = answer['ready']
                else:
                    path, stamp = answer['path'], tuple(answer['stamp'])
                    if requests.asked.get(path) == stamp:
                        del requests.asked[path]
                    if answer['error']:
                        log.warning('Cannot convert %r: %s', path,
                                    answer['error'])
                    texts[path] = (stamp, answer['text'])
        if new is not None:
            requests.begin(new)
        return texts

    def ask(self, requests: Requests, path: str, stamp: Stamp) -> None:
        """Ask for the text of a file, unless that was done already.

        Only a converter that is ready is asked, and for a few at a time.
        """
        if (self._channel is None
                or self._children.get(self._channel) != requests.child
                or requests.asked.get(path) == stamp
                or len(requests.asked) >= ASKED):
            return
        # If the child has ended, the poller gives the end at the next `fetch`.
        with contextlib.suppress(EndpointClosedException):
            self._channel.write(
                json.dumps({'path': path, 'stamp': stamp}) + '\n')
            requests.asked[path] = stamp


def scan(directory: str) -> dict[str, Stamp]:
    """The files below `directory`; OSError if it cannot be listed itself."""
    paths = []

    def cannot_list(error: OSError) -> None:
        if error.filename == directory:
            raise error  # otherwise all its files would count as gone
        paths.append(error.filename)

    for folder, names, files in os.walk(directory, onerror=cannot_list):
        names[:] = set(names) - LEFT_OUT
        paths += [os.path.join(folder, name) for name in files
                  if name.endswith((TEXT, CONVERTED))]
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # gone already, or a broken link
            status = os.stat(path)
            # Reading other kinds of files, such as named pipes, may block.
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                # The mtime can be set to any value, and chmod leaves it alone.
                found[path] = (status.st_ctime_ns, status.st_size)
    return found


def read(path: str) -> str:
    """The text of a file, without bytes that are not UTF-8.

    A file that cannot be read is indexed without text. So this is reported
    once, and the file is read again when its stamp has changed.
    """
    try:
        return Path(path).read_text(encoding='utf-8', errors='replace')
    except OSError as error:
        log.warning('Cannot read %r: %s', path, error.strerror)
        return ''


def locate(catalog: Catalog, directory: str) -> str:
    """The absolute path of a directory.

    If nothing is there, and nothing ever was, this is a mistake, and ends the
    program. If something was there, the disk may be back for the next tick.
    """
    path = os.path.abspath(directory)
    if not directory or not (os.path.isdir(path) or catalog.stamps(path)):
        raise SystemExit(f'There is no directory {directory!r}, so nothing '
                         'was changed in the index.')
    return path


def update(catalog: Catalog, requests: Requests, directories: Sequence[str],
           converter: Converter) -> Changes:
    """Bring one batch of the catalog in line with the files on the disk.

    Other directories are left alone.
    """
    if not directories:
        raise SystemExit('No directory was named, so nothing was changed in '
                         'the index.')
    found: dict[str, Stamp] = {}
    known: dict[str, Stamp] = {}
    for directory in directories:
        path = locate(catalog, directory)
        found |= scan(path)
        known |= catalog.stamps(path)
    different = sorted(path for path in found.keys() | known.keys()
                       if found.get(path) != known.get(path))
    texts = converter.fetch(requests)
    batch: dict[str, str] = {}
    waiting = 0
    for path in different:
        if path in found and path.endswith(CONVERTED):
            stamp, text = texts.get(path, (None, ''))
            if stamp == found[path]:
                # Beyond the size of a batch, too: it will not come again.
                batch[path] = text
            else:
                # So that the child works meanwhile.
                converter.ask(requests, path, found[path])
                waiting += 1
        elif len(batch) < BATCH:
            batch[path] = read(path) if path in found else ''
    for path, text in batch.items():
        if path in found:
            catalog.put(path, found[path], text)
        else:
            catalog.remove(path)
    new = len(batch.keys() - known.keys())
    gone = len(batch.keys() - found.keys())
    return Changes(new, len(batch) - new - gone, gone,
                   left=len(different) - len(batch), found=len(found),
                   waiting=waiting)


def tick(directories: Sequence[str]) -> Changes:
    """Update the catalog of the site, and note this in log and database."""
    site = getSite()
    for name, factory in ('catalog', Catalog), ('requests', Requests):
        if name not in site:
            site[name] = factory()
    changes = update(site['catalog'], site['requests'], directories,
                     getUtility(IConverter))
    if changes.new or changes.changed or changes.gone:
        principal = getInteraction().participations[0].principal
        log.info('%s (as %s)', changes, principal.id)
        # Stored with the transaction, after the name of the worker; fstail, a
        # script of ZODB, shows this and the principal.
        transaction.get().note(str(changes))
    return changes


@gocept.runner.appmain(ticks=10, principal='zope.mgr')
def index_tree(directory: str, *more: str) -> int | None:
    """Keep a full-text index of the files below each directory up to date."""
    changes = tick([directory, *more])
    return 0 if changes.left > changes.waiting else None


@gocept.runner.once(principal='zope.mgr')
def forget(directory: str) -> None:
    """Remove the files below a directory from the index."""
    catalog = getSite().get('catalog') or Catalog()
    paths = catalog.stamps(os.path.abspath(directory)) if directory else ()
    if not paths:
        raise SystemExit(f'The index has no file below {directory!r}.')
    for path in paths:
        catalog.remove(path)
    log.info('Removed %d files below %r', len(paths), directory)


@gocept.runner.appmain(principal='zope.mgr')
def fill(directories: Sequence[str],
         report: Callable[[Changes], object]) -> object:
    """Like `index_tree`, but end when the index is complete."""
    changes = tick(directories)
    # Reported after the commit, as a tick may be aborted and tried again.
    transaction.get().addAfterCommitHook(
        lambda committed: committed and report(changes))
    if not changes.left:
        return gocept.runner.Exit
    if (changes.left == changes.waiting
            and getUtility(IRunner).state('converter') == 'given-up'):
        log.error('The converter has failed, so %d files are not indexed',
                  changes.waiting)
        return gocept.runner.Exit
    return 0 if changes.left > changes.waiting else None
